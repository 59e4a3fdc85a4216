//! The linears of a model that can be quantized, under the names that ModelOpt's configs match.

use crate::arch::{Architecture, SpecKeys};
use crate::config::ModelConfig;
use crate::mapping::{Mapping, Place};
use crate::options::SpecName;
use serde::Serialize;
use std::collections::BTreeMap;

/// Which names a config's patterns are matched against, and which modules therefore exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Naming {
    /// Megatron's local spec as ModelOpt has it: an expert each (`SequentialMLP`), the attention core of the TE spec.
    MegatronLocal,
    /// Megatron's Transformer-Engine spec: grouped experts, quantizers of keys and values.
    MegatronTe,
    /// transformers: q, k and v apart, experts fused, quantizers of keys and values.
    HuggingFace,
}

impl Naming {
    /// That of a spec of Megatron.
    pub fn of(spec: SpecName) -> Self {
        match spec {
            SpecName::Te => Self::MegatronTe,
            SpecName::Local => Self::MegatronLocal,
        }
    }
}

/// A linear of the Megatron side; of grouped experts, one expert's.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// Its module with an expert each, as torch_dist names it: `decoder.layers.1.mlp.experts.experts.3.linear_fc1`.
    pub module: String,
    /// The Hugging Face modules whose weights are its rows, in release names and order: one, or q, k and v.
    pub hf: Vec<String>,
    /// Output features.
    pub rows: u64,
    /// Input features.
    pub cols: u64,
    /// The expert.
    pub expert: Option<u64>,
    /// Where it lives.
    pub place: Place,
    /// The axis of its weight that tensor parallelism cuts.
    pub tp_axis: Option<usize>,
    /// Whether it is the output layer, whose weight may be the embedding's.
    pub is_output_layer: bool,
}

/// The name of a quantizer of a linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Of the input.
    Input,
    /// Of the weight.
    Weight,
    /// Of the output.
    Output,
}

impl Role {
    /// All of them, in the order in which ModelOpt stores their states.
    pub const ALL: [Self; 3] = [Self::Input, Self::Weight, Self::Output];

    /// `input_quantizer`
    pub fn quantizer(self) -> &'static str {
        match self {
            Self::Input => "input_quantizer",
            Self::Weight => "weight_quantizer",
            Self::Output => "output_quantizer",
        }
    }
}

impl Linear {
    /// The module without the expert: the one that shares an input quantizer, `decoder.layers.1.mlp.experts.linear_fc1`.
    pub fn shared_module(&self) -> String {
        match self.expert {
            Some(e) => self.module.replace(&format!(".experts.experts.{e}."), ".experts."),
            None => self.module.clone(),
        }
    }

    /// The module of all experts as torch_dist names it, `decoder.layers.1.mlp.experts.experts.linear_fc1`; else the module.
    pub fn grouped_module(&self) -> String {
        match self.expert {
            Some(e) => self.module.replace(&format!(".experts.experts.{e}."), ".experts.experts."),
            None => self.module.clone(),
        }
    }

    /// The full names of a quantizer under a naming. Several where transformers has several linears for this one.
    pub fn quantizers(&self, naming: Naming, role: Role) -> Vec<String> {
        let quantizer = role.quantizer();
        match (naming, self.expert) {
            (Naming::MegatronLocal, Some(e)) => {
                let from = format!(".experts.experts.{e}.");
                vec![format!("{}.{quantizer}", self.module.replace(&from, &format!(".experts.local_experts.{e}.")))]
            }
            (Naming::MegatronTe, Some(e)) if role == Role::Weight => {
                vec![format!("{}.{quantizer}.{e}", self.shared_module())]
            }
            (Naming::MegatronLocal | Naming::MegatronTe, _) => vec![format!("{}.{quantizer}", self.shared_module())],
            (Naming::HuggingFace, expert) => self.hf.iter().map(|hf| fused_name(hf, expert, role)).collect(),
        }
    }
}

/// `model.layers.1.mixer.q_proj.weight_quantizer`; for an expert of transformers' fused experts
/// `model.layers.1.mixer.experts.up_proj_weight_quantizers.3` and, shared, `….experts.up_proj_input_quantizer`.
fn fused_name(hf: &str, expert: Option<u64>, role: Role) -> String {
    let module = hf.strip_prefix("backbone.").map_or_else(|| hf.to_string(), |rest| format!("model.{rest}"));
    let quantizer = role.quantizer();
    match expert {
        None => format!("{module}.{quantizer}"),
        Some(e) => {
            let fused = module.replace(&format!(".experts.{e}."), ".experts.");
            if role == Role::Weight { format!("{fused}_{quantizer}s.{e}") } else { format!("{fused}_{quantizer}") }
        }
    }
}

/// All linears of a model, in the order of its layers.
pub fn linears(architecture: &Architecture, config: &ModelConfig) -> Vec<Linear> {
    let keys = SpecKeys { single_experts: true, ..SpecKeys::CANONICAL };
    from_mapping(&(architecture.mapping)(config, &keys, config.vocab_size))
}

/// Modules with an extra state and a matrix are the linears; norms have vectors.
fn from_mapping(mapping: &Mapping) -> Vec<Linear> {
    let mut by_module: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in mapping.mc.keys() {
        if let Some(at) = name.rfind(".weight") {
            by_module.entry(&name[..at]).or_default().push(name);
        }
    }
    let mut hf_of: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let order: BTreeMap<&str, usize> = mapping.hf_order.iter().enumerate().map(|(i, n)| (n.as_str(), i)).collect();
    for tie in &mapping.ties {
        if let Some(at) = tie.mc.0.rfind(".weight") {
            let names = hf_of.entry(&tie.mc.0[..at]).or_default();
            if !names.contains(&tie.hf.0.as_str()) {
                names.push(&tie.hf.0);
            }
        }
    }
    let linear = |object: &String| {
        let module = object.strip_suffix("._extra_state/shard_0_1")?;
        let weights = by_module.get(module)?;
        let declared = weights.iter().filter_map(|name| mapping.mc.get(*name)).collect::<Vec<_>>();
        let first = declared.first().filter(|d| d.shape.len() == 2)?;
        let mut hf = hf_of.get(module)?.clone();
        hf.sort_by_key(|name| order.get(name));
        let linear = Linear {
            module: module.into(),
            hf: hf.iter().map(|name| name.trim_end_matches(".weight").to_string()).collect(),
            rows: declared.iter().map(|d| d.shape[0]).sum(),
            cols: first.shape[1],
            expert: expert_of(module),
            place: first.place,
            tp_axis: first.tp_axis,
            is_output_layer: module == "output_layer",
        };
        Some((order.get(hf[0]).copied(), linear))
    };
    let mut found: Vec<_> = mapping.objects.keys().filter_map(linear).collect();
    found.sort_by_key(|(position, _)| *position);
    found.into_iter().map(|(_, linear)| linear).collect()
}

/// The expert in `….experts.experts.3.linear_fc1`.
fn expert_of(module: &str) -> Option<u64> {
    let (_, rest) = module.split_once(".experts.experts.")?;
    rest.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch;

    fn example() -> Vec<Linear> {
        let architecture = arch::find("nemotron_h").expect("in the registry");
        linears(architecture, &(architecture.example)())
    }

    fn one(module: &str) -> Linear {
        example().into_iter().find(|l| l.module == module).expect("a linear of the example")
    }

    #[test]
    fn every_projection_is_a_linear_and_no_norm_router_or_embedding_is() {
        let modules: Vec<String> = example().into_iter().map(|l| l.module).collect();
        let trunk: Vec<&str> = modules.iter().map(String::as_str).filter(|m| !m.starts_with("mtp.")).collect();
        assert_eq!(
            trunk,
            [
                "decoder.layers.0.mixer.in_proj",
                "decoder.layers.0.mixer.out_proj",
                "decoder.layers.1.self_attention.linear_qkv",
                "decoder.layers.1.self_attention.linear_proj",
                "decoder.layers.2.mlp.linear_fc1",
                "decoder.layers.2.mlp.linear_fc2",
                "decoder.layers.3.mlp.fc1_latent_proj",
                "decoder.layers.3.mlp.fc2_latent_proj",
                "decoder.layers.3.mlp.experts.experts.0.linear_fc1",
                "decoder.layers.3.mlp.experts.experts.1.linear_fc1",
                "decoder.layers.3.mlp.experts.experts.2.linear_fc1",
                "decoder.layers.3.mlp.experts.experts.3.linear_fc1",
                "decoder.layers.3.mlp.experts.experts.0.linear_fc2",
                "decoder.layers.3.mlp.experts.experts.1.linear_fc2",
                "decoder.layers.3.mlp.experts.experts.2.linear_fc2",
                "decoder.layers.3.mlp.experts.experts.3.linear_fc2",
                "decoder.layers.3.mlp.shared_experts.linear_fc1",
                "decoder.layers.3.mlp.shared_experts.linear_fc2",
                "output_layer",
            ]
        );
    }

    #[test]
    fn sizes_are_those_of_the_whole_linear() {
        let in_proj = one("decoder.layers.0.mixer.in_proj");
        assert_eq!((in_proj.rows, in_proj.cols, in_proj.tp_axis), (2 * 32 + 2 * 32 + 8, 16, Some(0)));
        let qkv = one("decoder.layers.1.self_attention.linear_qkv");
        assert_eq!((qkv.rows, qkv.cols), ((8 + 2 * 2) * 4, 16));
        assert_eq!(qkv.hf, ["q_proj", "k_proj", "v_proj"].map(|p| format!("backbone.layers.1.mixer.{p}")));
        assert_eq!(one("decoder.layers.3.mlp.experts.experts.2.linear_fc2").tp_axis, Some(1));
    }

    #[test]
    fn quantizers_are_named_as_each_side_names_its_modules() {
        let expert = one("decoder.layers.3.mlp.experts.experts.2.linear_fc1");
        let names = |naming, role| expert.quantizers(naming, role);
        assert_eq!(
            names(Naming::MegatronLocal, Role::Input),
            ["decoder.layers.3.mlp.experts.local_experts.2.linear_fc1.input_quantizer"]
        );
        assert_eq!(
            names(Naming::MegatronTe, Role::Weight),
            ["decoder.layers.3.mlp.experts.linear_fc1.weight_quantizer.2"]
        );
        assert_eq!(names(Naming::MegatronTe, Role::Input), ["decoder.layers.3.mlp.experts.linear_fc1.input_quantizer"]);
        assert_eq!(
            names(Naming::HuggingFace, Role::Weight),
            ["model.layers.3.mixer.experts.up_proj_weight_quantizers.2"]
        );
        assert_eq!(names(Naming::HuggingFace, Role::Input), ["model.layers.3.mixer.experts.up_proj_input_quantizer"]);
        let qkv = one("decoder.layers.1.self_attention.linear_qkv").quantizers(Naming::HuggingFace, Role::Weight);
        assert_eq!(qkv[1], "model.layers.1.mixer.k_proj.weight_quantizer");
        assert_eq!(one("output_layer").quantizers(Naming::HuggingFace, Role::Input), ["lm_head.input_quantizer"]);
    }
}
