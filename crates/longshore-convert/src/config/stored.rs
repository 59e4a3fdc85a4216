//! A model read back from a Megatron checkpoint: from its stored arguments as far as they say it, from the shapes of its
//! tensors for the rest, and from both where both say it. Tensor names: `docs/torch_dist.md`, section "Hybrid".

use crate::config::hf::nemotron_h;
use crate::config::megatron::{Arg, Args};
use crate::config::pattern::{self, Pattern};
use crate::config::{Activation, Attention, Forward, Kinds, Mamba, Mlp, ModelConfig, Moe, Mtp};
use crate::error::Problem;
use longshore_ckpt::Dtype;
use std::collections::BTreeMap;

/// Reads a model from stored arguments (which may lack anything) and the shapes of the checkpoint's tensors by name.
///
/// Also the fields that nothing said, with the value taken, a line each. Two fields decide the function and no tensor
/// shows them: where they are not stored, [`Moe::top_k`] and [`Moe::routed_scaling_factor`] are 0, and no config.json can
/// be rebuilt, but the weights can be mapped.
pub fn read(args: &Args, keys: &BTreeMap<String, Vec<u64>>) -> Result<(ModelConfig, Vec<String>), Vec<Problem>> {
    let mut r = Reader { args, keys, problems: Vec::new(), assumed: Vec::new() };
    let (trunk, mtp) = r.patterns();
    r.refuse_what_is_not_known(trunk.contains('E'));
    let mtp_letters = mtp.as_ref().map(|m| m.0.clone()).unwrap_or_default();
    let kinds = r.kinds(&trunk, &mtp_letters);
    let embedding = "embedding.word_embeddings.weight";
    let max_positions =
        args.int("max_position_embeddings").unwrap_or_else(|| r.assume("max_position_embeddings", 4096));
    let norm_eps = args.float("layernorm_epsilon").or(args.float("norm_epsilon"));
    let config = ModelConfig {
        architecture: nemotron_h::ARCHITECTURE.to_owned(),
        hidden_size: r.size("hidden_size", args.int("hidden_size"), r.shape(embedding, 1)),
        vocab_size: r.vocab_size(r.shape(embedding, 0)),
        layers: kinds.layers(&trunk),
        mtp: mtp.map(|(letters, depth, repeated)| Mtp { depth, layers: kinds.layers(&letters), repeated }),
        tie_word_embeddings: r.tied(),
        norm_eps: norm_eps.unwrap_or_else(|| r.assume("layer_norm_epsilon", 1e-5)),
        max_position_embeddings: max_positions,
        dtype: r.dtype(),
        intermediate_size: args.int("ffn_hidden_size").or(kinds.mlp.map(|m| m.ffn)),
        forward: Forward { residual_in_fp32: args.flag("fp32_residual_connection"), ..Forward::default() },
    };
    if r.problems.is_empty() {
        for (field, what) in config.contradictions() {
            r.problem(field, what);
        }
    }
    if r.problems.is_empty() { Ok((config, r.assumed)) } else { Err(r.problems) }
}

/// Arguments that change tensors or the function, with the only value that the mapping supports. `None` and absent pass.
const SUPPORTED: [(&str, Supported); 15] = [
    ("normalization", Supported::Text("RMSNorm")),
    ("squared_relu", Supported::Flag(true)),
    ("swiglu", Supported::Flag(false)),
    ("add_bias_linear", Supported::Flag(false)),
    ("add_qkv_bias", Supported::Flag(false)),
    // Norms whose weights are stored minus 1.
    ("apply_layernorm_1p", Supported::Flag(false)),
    ("multi_latent_attention", Supported::Flag(false)),
    ("qk_layernorm", Supported::Flag(false)),
    ("attention_output_gate", Supported::Flag(false)),
    ("softmax_type", Supported::Text("vanilla")),
    ("window_size", Supported::Nothing),
    ("mtp_hsm", Supported::Flag(false)),
    ("moe_apply_probs_on_input", Supported::Flag(false)),
    ("heterogeneous_layers_config_path", Supported::Nothing),
    ("heterogeneous_layers_config_encoded_json", Supported::Nothing),
];

/// As [`SUPPORTED`], for models with experts.
const SUPPORTED_WITH_EXPERTS: [(&str, Supported); 2] = [
    ("moe_router_score_function", Supported::Text("sigmoid")),
    ("moe_router_enable_expert_bias", Supported::Flag(true)),
];

#[derive(Clone, Copy)]
enum Supported {
    Flag(bool),
    Text(&'static str),
    Nothing,
}

struct Reader<'a> {
    args: &'a Args,
    keys: &'a BTreeMap<String, Vec<u64>>,
    problems: Vec<Problem>,
    assumed: Vec<String>,
}

impl Reader<'_> {
    fn problem(&mut self, field: &str, what: impl Into<String>) {
        let problem = Problem::Config { file: self.args.file.to_owned(), field: field.to_owned(), what: what.into() };
        self.problems.push(problem);
    }

    fn assume<T: std::fmt::Display>(&mut self, field: &str, value: T) -> T {
        self.assumed.push(format!("{field} = {value}"));
        value
    }

    fn shape(&self, tensor: &str, axis: usize) -> Option<u64> {
        self.keys.get(tensor)?.get(axis).copied()
    }

    /// A size that the arguments or a tensor must show; both where both do. 1 where there is a problem.
    fn size(&mut self, field: &str, stored: Option<u64>, shown: Option<u64>) -> u64 {
        match (stored, shown) {
            (None, None) => self.problem(field, "not stored, and no tensor shows it; `--base DIR` can supply it"),
            (Some(a), Some(b)) if a != b => self.problem(field, format!("{a} is stored, but the tensors show {b}")),
            (Some(n), _) | (_, Some(n)) if (1..1 << 31).contains(&n) => return n,
            (Some(n), _) | (_, Some(n)) => {
                self.problem(field, format!("expected a number from 1 to 2^31 - 1, found {n}"));
            }
        }
        1
    }

    fn refuse_what_is_not_known(&mut self, has_experts: bool) {
        let experts = SUPPORTED_WITH_EXPERTS.iter().filter(|_| has_experts);
        for &(name, supported) in SUPPORTED.iter().chain(experts) {
            let Some(found) = self.args.get(name) else { continue };
            let expected = match supported {
                Supported::Flag(flag) => Arg::from(flag),
                Supported::Text(text) => Arg::from(text),
                Supported::Nothing => Arg::None,
            };
            if *found != expected {
                self.problem(name, format!("expected {expected}, found {found}: not supported"));
            }
        }
        // ModelOpt's script of Nemotron-H says `rope`, while no Hugging Face implementation rotates anything.
        if let Some(found) = self.args.text("position_embedding_type").filter(|t| *t != "none") {
            let line = format!(
                "position_embedding_type = none, although `{found}` is stored: Nemotron-H has no position embedding"
            );
            self.assumed.push(line);
        }
    }

    /// The letters of the trunk, and of one MTP block with depth and repetition.
    fn patterns(&mut self) -> (String, Option<(String, u64, Option<bool>)>) {
        let stored = self.stored_pattern();
        let shown = self.shown_patterns();
        let blocks = u64::try_from(shown.mtp.len()).unwrap_or(u64::MAX);
        let trunk = match (&stored, shown.trunk) {
            (Some(stored), Some(shown)) if stored.trunk != shown => {
                self.problem(
                    "hybrid_layer_pattern",
                    format!("`{}` is stored, but the tensors show `{shown}`", stored.trunk),
                );
                shown
            }
            (Some(stored), _) => stored.trunk.clone(),
            (None, Some(shown)) => shown,
            (None, None) => {
                self.problem("hybrid_layer_pattern", "not stored, and no tensor shows a layer of a hybrid model");
                String::new()
            }
        };
        if let Some(other) = shown.mtp.iter().find(|block| **block != shown.mtp[0]) {
            self.problem("mtp_num_layers", format!("the MTP blocks `{}` and `{other}` differ", shown.mtp[0]));
        }
        let count = self.args.int("mtp_num_layers").filter(|n| *n > 0);
        let stored_mtp = stored.and_then(|p| p.mtp).or_else(|| {
            let text = self.args.text("mtp_hybrid_override_pattern")?;
            Some((pattern::parse(text).ok()?.trunk, count?))
        });
        let flag = self.args.flag("mtp_use_repeated_layer");
        let Some(letters) = shown.mtp.into_iter().next() else {
            // Without a tensor the plan will say what is missing, if the arguments claim MTP.
            return (trunk, stored_mtp.map(|(letters, depth)| (letters, depth, flag)));
        };
        if let Some((stored, _)) = stored_mtp.as_ref().filter(|m| m.0 != letters) {
            self.problem("hybrid_layer_pattern", format!("MTP `{stored}` is stored, but the tensors show `{letters}`"));
        }
        let depth =
            stored_mtp.map(|m| m.1).or(count).unwrap_or_else(|| self.assume("num_nextn_predict_layers", blocks));
        if blocks != depth && blocks != 1 {
            self.problem("mtp_num_layers", format!("{depth} is stored, but the tensors show {blocks} MTP blocks"));
        }
        let repeated = if depth > 1 { Some(blocks == 1) } else { flag };
        (trunk, Some((letters, depth, repeated)))
    }

    /// What the arguments say, in the form of any version: see [`megatron::args`](crate::config::megatron::args).
    fn stored_pattern(&mut self) -> Option<Pattern> {
        let mut found: Option<Pattern> = None;
        for name in ["hybrid_layer_pattern", "hybrid_override_pattern"] {
            let Some(text) = self.args.text(name) else { continue };
            match (pattern::parse(text), &found) {
                (Err(what), _) => self.problem(name, what),
                (Ok(pattern), None) => found = Some(pattern),
                (Ok(pattern), Some(first)) if pattern.trunk != first.trunk => {
                    self.problem(
                        name,
                        format!("`{}` contradicts `hybrid_layer_pattern` `{}`", pattern.trunk, first.trunk),
                    );
                }
                (Ok(_), Some(_)) => {}
            }
        }
        found
    }

    /// What the names of the tensors say.
    fn shown_patterns(&mut self) -> Shown {
        let (mut trunk, mut mtp) = (BTreeMap::new(), BTreeMap::<u64, BTreeMap<u64, String>>::new());
        for name in self.keys.keys() {
            if let Some(rest) = name.strip_prefix("decoder.layers.") {
                match split_index(rest) {
                    Some((layer, rest)) => add_letter(&mut trunk, layer, rest),
                    None if letter(rest).is_some() => {
                        self.problem(
                            "hybrid_layer_pattern",
                            format!("`{name}` holds all layers at once: a GPT model, not a hybrid"),
                        );
                        return Shown::default();
                    }
                    None => {}
                }
            } else if let Some((block, rest)) = name.strip_prefix("mtp.layers.").and_then(split_index) {
                let inner = rest.strip_prefix("mtp_model_layer.layers.").and_then(split_index);
                if let Some((layer, rest)) = inner {
                    add_letter(mtp.entry(block).or_default(), layer, rest);
                }
            }
        }
        let trunk = if trunk.is_empty() { None } else { Some(self.joined("decoder.layers", &trunk)) };
        let mtp = mtp.iter().map(|(block, layers)| self.joined(&format!("mtp.layers.{block}"), layers)).collect();
        Shown { trunk, mtp }
    }

    /// The letters in order. Every index must occur, with one letter.
    fn joined(&mut self, what: &str, layers: &BTreeMap<u64, String>) -> String {
        for (expected, (&found, letters)) in (0u64..).zip(layers) {
            if expected != found {
                self.problem("hybrid_layer_pattern", format!("`{what}` has no layer {expected}, but a layer {found}"));
                break;
            }
            if letters.len() != 1 {
                self.problem(
                    "hybrid_layer_pattern",
                    format!("layer {found} of `{what}` is several layers in one: a GPT model, not a hybrid"),
                );
                break;
            }
        }
        layers.values().map(String::as_str).collect()
    }

    fn kinds(&mut self, trunk: &str, mtp: &str) -> Kinds {
        let prefix = |letter| {
            let in_trunk = trunk.find(letter).map(|i| format!("decoder.layers.{i}."));
            in_trunk.or_else(|| mtp.find(letter).map(|k| format!("mtp.layers.0.mtp_model_layer.layers.{k}.")))
        };
        Kinds {
            mamba: prefix('M').map(|p| self.mamba(&p)),
            attention: prefix('*').map(|p| self.attention(&p)),
            mlp: prefix('-').map(|p| self.mlp(&p)),
            moe: prefix('E').map(|p| self.moe(&p)),
        }
    }

    fn mamba(&mut self, layer: &str) -> Mamba {
        let rows = |tensor: &str| self.shape(&format!("{layer}mixer.{tensor}"), 0);
        let (inner, bc, heads) = (rows("in_proj.weight.x"), rows("in_proj.weight.B"), rows("A_log"));
        let conv_kernel = self.shape(&format!("{layer}mixer.conv1d.weight.x"), 2);
        let (groups, state) = (self.args.int("mamba_num_groups"), self.args.int("mamba_state_dim"));
        let head_dim = self.args.int("mamba_head_dim");
        let heads = self.size("mamba_num_heads", self.args.int("mamba_num_heads"), heads);
        Mamba {
            heads,
            head_dim: self.size("mamba_head_dim", head_dim, exact(inner, Some(heads))),
            groups: self.size("mamba_num_groups", groups, exact(bc, state)),
            state: self.size("mamba_state_dim", state, exact(bc, groups)),
            conv_kernel: self.size("conv_kernel", None, conv_kernel),
        }
    }

    fn attention(&mut self, layer: &str) -> Attention {
        // linear_qkv has (q + 2 kv) * head_dim rows, linear_proj q * head_dim columns.
        let q = self.shape(&format!("{layer}self_attention.linear_proj.weight"), 1);
        let qkv = self.shape(&format!("{layer}self_attention.linear_qkv.weight"), 0);
        let kv = qkv.zip(q).and_then(|(qkv, q)| exact(qkv.checked_sub(q), Some(2)));
        let heads = self.args.int("num_attention_heads");
        let kv_heads = match self.args.flag("group_query_attention") {
            Some(false) => heads,
            _ => self.args.int("num_query_groups"),
        };
        let head_dim = self.args.int("kv_channels");
        // One of the three gives the other two.
        let shown = exact(q, heads).or_else(|| exact(kv, kv_heads));
        let head_dim = self.size("kv_channels", head_dim, shown);
        Attention {
            heads: self.size("num_attention_heads", heads, exact(q, Some(head_dim))),
            kv_heads: self.size("num_query_groups", kv_heads, exact(kv, Some(head_dim))),
            head_dim,
            rotary: None,
        }
    }

    fn mlp(&mut self, layer: &str) -> Mlp {
        let ffn = self.shape(&format!("{layer}mlp.linear_fc1.weight"), 0);
        let ffn = self.size("ffn_hidden_size", self.args.int("ffn_hidden_size"), ffn);
        Mlp { ffn, activation: Activation::ReluSquared }
    }

    fn moe(&mut self, layer: &str) -> Moe {
        let shape = |tensor: &str, axis| self.shape(&format!("{layer}mlp.{tensor}.weight"), axis);
        let (experts, shared) = (shape("router", 0), shape("shared_experts.linear_fc1", 0));
        // All experts in one tensor, or each in its own.
        let expert_ffn = shape("experts.experts.linear_fc1", 1).or_else(|| shape("experts.experts.0.linear_fc1", 0));
        let latent = shape("fc1_latent_proj", 0);
        let stored_latent = self.args.int("moe_latent_size");
        let latent =
            (stored_latent.is_some() || latent.is_some()).then(|| self.size("moe_latent_size", stored_latent, latent));
        let top_k = self.args.int("moe_router_topk");
        let factor = match self.args.values.get("moe_router_topk_scaling_factor") {
            // Megatron's default, which multiplies nothing.
            Some(Arg::None) => Some(1.0),
            _ => self.args.float("moe_router_topk_scaling_factor"),
        };
        if !self.args.values.contains_key("moe_router_num_groups") {
            self.assume("n_group", 1);
        }
        let groups = self.args.int("moe_router_num_groups").filter(|n| *n > 0).unwrap_or(1);
        Moe {
            experts: self.size("num_experts", self.args.int("num_experts"), experts),
            top_k: top_k.unwrap_or(0),
            expert_ffn: self.size("moe_ffn_hidden_size", self.args.int("moe_ffn_hidden_size"), expert_ffn),
            shared_ffn: self.size(
                "moe_shared_expert_intermediate_size",
                self.args.int("moe_shared_expert_intermediate_size"),
                shared,
            ),
            latent,
            n_group: groups,
            topk_group: self.args.int("moe_router_group_topk").filter(|n| *n > 0).unwrap_or(groups),
            // What Megatron computes, whatever config the weights came with.
            norm_topk_prob: top_k != Some(1),
            routed_scaling_factor: factor.unwrap_or(0.0),
        }
    }

    /// Tokens, without padding where that was stored. Megatron's null tokenizers count one token less.
    fn vocab_size(&mut self, rows: Option<u64>) -> u64 {
        let stored = self.args.int("vocab_size");
        let null = self.args.text("tokenizer_type").is_some_and(|t| t.contains("Null"));
        match (stored.filter(|_| !null), rows) {
            (Some(tokens), Some(rows)) if tokens <= rows => self.size("vocab_size", Some(tokens), None),
            (Some(tokens), Some(rows)) => self.size("vocab_size", Some(tokens), Some(rows)),
            (tokens, rows) => {
                let size = self.size("vocab_size", rows.or(tokens).or(self.args.int("padded_vocab_size")), None);
                self.assume(
                    "vocab_size",
                    format!("{size}, all rows of the embedding: padding cannot be told from tokens"),
                );
                size
            }
        }
    }

    fn tied(&mut self) -> bool {
        let shown = !self.keys.contains_key("output_layer.weight");
        match self.args.flag("untie_embeddings_and_output_weights") {
            Some(untied) if untied == shown => {
                let what = format!(
                    "{untied} is stored, but there is {} `output_layer.weight`",
                    if shown { "no" } else { "an" }
                );
                self.problem("untie_embeddings_and_output_weights", what);
                shown
            }
            _ => shown,
        }
    }

    fn dtype(&self) -> Option<Dtype> {
        match self.args.get("params_dtype") {
            Some(Arg::Dtype(dtype)) => Some(*dtype),
            _ if self.args.flag("bf16") == Some(true) => Some(Dtype::Bfloat16),
            _ if self.args.flag("fp16") == Some(true) => Some(Dtype::Float16),
            _ => None,
        }
    }
}

/// The patterns that tensor names show: the trunk, and every MTP block.
#[derive(Default)]
struct Shown {
    trunk: Option<String>,
    mtp: Vec<String>,
}

/// `12.rest` as 12 and `rest`.
fn split_index(name: &str) -> Option<(u64, &str)> {
    let (index, rest) = name.split_once('.')?;
    Some((index.parse().ok()?, rest))
}

/// The kind of layer that has this tensor, where only one kind has it.
fn letter(tensor: &str) -> Option<char> {
    match tensor {
        "mixer.A_log" => Some('M'),
        "self_attention.linear_qkv.weight" => Some('*'),
        "mlp.linear_fc1.weight" => Some('-'),
        "mlp.router.weight" => Some('E'),
        _ => None,
    }
}

fn add_letter(layers: &mut BTreeMap<u64, String>, layer: u64, tensor: &str) {
    let letters = layers.entry(layer).or_default();
    letters.extend(letter(tensor));
}

/// `n / by`, where both are known and nothing remains.
fn exact(n: Option<u64>, by: Option<u64>) -> Option<u64> {
    let (n, by) = (n?, by?);
    if n.is_multiple_of(by) { n.checked_div(by) } else { None }
}
