//! Checkpoints as other programs lay them out: Megatron-Bridge's folders, NeMo's prefixes, experts each on their own, pruned
//! models. Each is made of a conversion by moving its files and renaming its keys.

use crate::hf_folder::{self, Tensor, declared};
use crate::random::Random;
use crate::refusals::import_options;
use crate::snapshots;
use longshore_ckpt::fs::ReadFile;
use longshore_ckpt::torch_dist::item::{Frame, empty_extra_state, object_item};
use longshore_ckpt::torch_dist::metadata::{self, Metadata};
use longshore_ckpt::torch_dist::pickle::{Plain, dump};
use longshore_ckpt::torch_dist::{locate_payload, metadata_json};
use longshore_ckpt::{Catalog, Dtype, Rect};
use longshore_convert::config::{LayerSpec, ModelConfig, release};
use longshore_convert::diff::{DiffOptions, Tolerance, diff};
use longshore_convert::model::{Model, spec, spec_keys};
use longshore_convert::options::{ExportOptions, ImportOptions, NormKeys, SpecName};
use longshore_convert::plan::{Plan, plan_export, plan_import};
use longshore_convert::progress::Silent;
use longshore_convert::run::{RunOptions, execute};
use longshore_convert::source::Source;
use longshore_convert::verify::{VerifyOptions, verify};
use longshore_convert::{Error, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The model with every kind of layer, and the width that every writer stores.
fn model() -> ModelConfig {
    ModelConfig { intermediate_size: Some(16), ..snapshots::model() }
}

/// A folder with a model at `hf` and its conversion at `mc/release`.
struct Case {
    dir: tempfile::TempDir,
    config: ModelConfig,
}

impl Case {
    fn new(config: ModelConfig, options: &ImportOptions) -> Self {
        let case = Self { dir: tempfile::tempdir().unwrap(), config };
        let rng = &mut Random(7);
        let fill = &mut |tensor: &Tensor, bytes: &mut [u8]| rng.finite(tensor, bytes);
        let tensors = declared(&case.config, Dtype::Bfloat16);
        hf_folder::write(&case.path("hf"), &config_json(&case.config), &tensors, u64::MAX, Some(fill));
        run(&plan_import(&case.path("hf"), &case.path("mc"), options).unwrap());
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the conversion holds.
    fn stored(&self) -> Stored {
        Stored::read(&self.path("mc/release"))
    }

    /// The notes of an export of `source`, which must give the model's tensors.
    fn export(&self, source: &str, base: Option<&Path>) -> Vec<String> {
        let out = self.path("out");
        let options = ExportOptions { base: base.map(Path::to_owned), ..ExportOptions::default() };
        let plan = plan_export(&self.path(source), &out, &options).unwrap();
        run(&plan);
        assert_eq!(differences(&self.path("hf"), &out), Vec::<String>::new());
        plan.summary().notes.iter().map(|note| note.text.clone()).collect()
    }
}

fn config_json(config: &ModelConfig) -> String {
    serde_json::to_string_pretty(&release::hf_json(config).0).unwrap()
}

fn run(plan: &Plan) {
    execute(plan, &RunOptions { threads: 2, force: false }, &Silent).unwrap();
}

fn differences(a: &Path, b: &Path) -> Vec<String> {
    let options = DiffOptions { glob: None, tolerance: Tolerance::Bits, threads: 2 };
    let report = diff(a, b, &options, &Silent).unwrap();
    assert!(report.compared > 20);
    report.entries.iter().map(|entry| format!("{entry:?}")).collect()
}

/// A tensor with its bytes.
type Bytes = (Dtype, Vec<u64>, Vec<u8>);

/// The tensors and objects of a checkpoint in memory.
struct Stored {
    tensors: BTreeMap<String, Bytes>,
    objects: Vec<String>,
}

impl Stored {
    fn read(folder: &Path) -> Self {
        let catalog = Catalog::open(folder).unwrap();
        let tensors = catalog.tensors.iter().map(|(key, info)| {
            let mut chunks: Vec<_> = info.chunks.iter().collect();
            chunks.sort_by(|a, b| a.rect.offsets.cmp(&b.rect.offsets));
            let mut bytes = Vec::new();
            for chunk in chunks {
                let file = ReadFile::open(&catalog.path(chunk.extent.file)).unwrap();
                let (extent, _) = locate_payload(&file, info, chunk).unwrap();
                let start = bytes.len();
                bytes.resize(start + extent.len as usize, 0);
                file.read_exact_at(extent.offset, &mut bytes[start..]).unwrap();
            }
            (key.clone(), (info.dtype, info.shape.clone(), bytes))
        });
        Self { tensors: tensors.collect(), objects: catalog.objects.keys().cloned().collect() }
    }

    fn prefixed(self, prefix: &str) -> Self {
        Self {
            tensors: self.tensors.into_iter().map(|(key, tensor)| (format!("{prefix}{key}"), tensor)).collect(),
            objects: self.objects.into_iter().map(|key| format!("{prefix}{key}")).collect(),
        }
    }

    /// Every expert as a tensor of its own, as under `singleton_local_shards`.
    fn single_experts(self) -> Self {
        let mut out = Self { tensors: BTreeMap::new(), objects: Vec::new() };
        for (key, (dtype, shape, bytes)) in self.tensors {
            match key.split_once(".experts.experts.") {
                Some((layer, linear)) => {
                    let experts = shape[0] as usize;
                    for (e, part) in bytes.chunks_exact(bytes.len() / experts).enumerate() {
                        let key = format!("{layer}.experts.experts.{e}.{linear}");
                        out.tensors.insert(key, (dtype, shape[1..].to_vec(), part.to_vec()));
                    }
                }
                None => {
                    out.tensors.insert(key, (dtype, shape, bytes));
                }
            }
        }
        for key in self.objects {
            let single = key.split_once(".experts.experts.").and_then(|(layer, rest)| {
                let (linear, shard) = rest.split_once("._extra_state/shard_")?;
                let (e, _) = shard.split_once('_')?;
                Some(format!("{layer}.experts.experts.{e}.{linear}._extra_state/shard_0_1"))
            });
            out.objects.push(single.unwrap_or(key));
        }
        out
    }

    /// Writes an inner folder.
    fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        let (mut table, mut data) = (Metadata::default(), Vec::new());
        let file = table.add_path("__0_0.distcp");
        for key in &self.objects {
            let item = empty_extra_state();
            table.add_object(key, file, data.len() as u64, item.len() as u64);
            data.extend(item);
        }
        for (key, (dtype, shape, bytes)) in &self.tensors {
            let frame = Frame::tensor(*dtype, shape);
            let item = [&frame.head[..], bytes, &frame.tail(crc32fast::hash(bytes))].concat();
            table.add_chunk(key, *dtype, shape, Rect::whole(shape), file, data.len() as u64, item.len() as u64);
            data.extend(item);
        }
        fs::write(folder.join("__0_0.distcp"), data).unwrap();
        fs::write(folder.join(".metadata"), metadata::write(&table)).unwrap();
        fs::write(folder.join("metadata.json"), metadata_json()).unwrap();
    }
}

/// A common state without arguments, as Megatron-Bridge and NeMo write it.
fn write_common(folder: &Path) {
    let text = |text: &str| Plain::Str(text.into());
    let state = Plain::Dict(vec![(text("iteration"), Plain::Int(0)), (text("checkpoint_version"), Plain::Float(3.0))]);
    fs::write(folder.join("common.pt"), object_item(&dump(&state))).unwrap();
}

/// A `run_config.yaml` with what Megatron-Bridge's holds of the model, between sections that say nothing of it.
fn run_config(config: &ModelConfig) -> String {
    let kinds = |letter| config.layers.iter().find(|layer| layer.letter() == letter).copied();
    let (Some(LayerSpec::Mamba(m)), Some(LayerSpec::Attention(a))) = (kinds('M'), kinds('*')) else { panic!() };
    let (Some(LayerSpec::Moe(e)), mtp) = (kinds('E'), config.mtp.as_ref()) else { panic!() };
    let ffn = config.intermediate_size.unwrap();
    let mtp_letters: String = mtp.iter().flat_map(|m| &m.layers).map(LayerSpec::letter).collect();
    let pattern = config.pattern() + &format!("/{mtp_letters}").repeat(mtp.map_or(0, |m| m.depth as usize));
    let latent = e.latent.map_or("null".into(), |n| n.to_string());
    format!(
        "_target_: megatron.bridge.training.config.ConfigContainer\n\
         checkpoint:\n  save_optim: true\n  fully_parallel_save: true\n\
         model:\n\
         \x20 _target_: megatron.bridge.models.hybrid.hybrid_provider.HybridModelProvider\n\
         \x20 activation_func:\n    _call_: false\n    _target_: megatron.core.activations.squared_relu\n\
         \x20 add_bias_linear: false\n  apply_rope_fusion: true\n  bf16: true\n\
         \x20 ffn_hidden_size: {ffn}\n  gated_linear_unit: false\n\
         \x20 hf_model_id: example/model\n\
         \x20 hidden_size: {h}\n  hybrid_layer_pattern: {pattern}\n  hybrid_override_pattern: null\n\
         \x20 init_method:\n    _args_: []\n    _partial_: true\n    _target_: torch.nn.init.normal_\n\
         \x20 kv_channels: {hd}\n  layernorm_epsilon: 1.0e-05\n  layernorm_zero_centered_gamma: false\n\
         \x20 mamba_head_dim: {mhd}\n  mamba_num_groups: {mg}\n  mamba_num_heads: {mh}\n  mamba_state_dim: {ms}\n\
         \x20 moe_ffn_hidden_size: {ef}\n  moe_latent_size: {latent}\n\
         \x20 moe_router_enable_expert_bias: true\n  moe_router_group_topk: {tg}\n  moe_router_num_groups: {ng}\n\
         \x20 moe_router_score_function: sigmoid\n  moe_router_topk: {k}\n  moe_router_topk_scaling_factor: {f:?}\n\
         \x20 moe_shared_expert_intermediate_size: {sf}\n\
         \x20 mtp_num_layers: {mtp_depth}\n  mtp_use_repeated_layer: {repeated}\n\
         \x20 normalization: RMSNorm\n  num_attention_heads: {heads}\n  num_layers: {layers}\n\
         \x20 num_moe_experts: {experts}\n  num_query_groups: {kv}\n\
         \x20 params_dtype: &id001\n    _call_: false\n    _target_: torch.bfloat16\n  pipeline_dtype: *id001\n\
         \x20 position_embedding_type: none\n  seq_length: {positions}\n\
         \x20 share_embeddings_and_output_weights: {tied}\n  should_pad_vocab: false\n\
         \x20 softmax_type: vanilla\n  vocab_size: {vocab}\n  window_size: null\n\
         optimizer:\n  lr: 0.0003\n",
        h = config.hidden_size,
        hd = a.head_dim,
        mhd = m.head_dim,
        mg = m.groups,
        mh = m.heads,
        ms = m.state,
        ef = e.expert_ffn,
        tg = e.topk_group,
        ng = e.n_group,
        k = e.top_k,
        f = e.routed_scaling_factor,
        sf = e.shared_ffn,
        mtp_depth = mtp.map_or(0, |m| m.depth),
        repeated = mtp.and_then(|m| m.repeated).unwrap_or(false),
        heads = a.heads,
        layers = config.layers.len(),
        experts = e.experts,
        kv = a.kv_heads,
        positions = config.max_position_embeddings,
        tied = config.tie_word_embeddings,
        vocab = config.vocab_size,
    )
}

/// Writes what Megatron-Bridge does beside its data files.
fn write_bridge(case: &Case, root: &str) -> PathBuf {
    let inner = case.path(root).join("iter_0000000");
    case.stored().write(&inner);
    write_common(&inner);
    fs::write(inner.join("run_config.yaml"), run_config(&case.config)).unwrap();
    fs::write(inner.join("train_state.pt"), "not read").unwrap();
    fs::write(case.path(root).join("latest_train_state.pt"), "not read").unwrap();
    fs::write(case.path(root).join("latest_checkpointed_iteration.txt"), "0").unwrap();
    fs::create_dir(inner.join("tokenizer")).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"] {
        fs::write(inner.join("tokenizer").join(name), name).unwrap();
    }
    inner
}

#[test]
fn a_folder_of_megatron_bridge_is_read_by_its_run_config() {
    let case = Case::new(model(), &import_options());
    let inner = write_bridge(&case, "bridge");
    for source in ["bridge", "bridge/iter_0000000"] {
        let catalog = Catalog::open(&case.path(source)).unwrap();
        assert_eq!(catalog.folder, inner);
        let read = Model::from_torch_dist(&catalog, None).unwrap();
        let known = |config: &ModelConfig| ModelConfig { forward: case.config.forward.clone(), ..config.clone() };
        assert_eq!(known(&read.config), case.config);
    }
    let notes = case.export("bridge", None).join("\n");
    assert!(notes.contains("that of Megatron-Bridge's `run_config.yaml`, made from `example/model`"), "{notes}");
    // The tokenizer travels; the training state is not looked at.
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"] {
        assert_eq!(fs::read_to_string(case.path("out").join(name)).unwrap(), name);
    }
    fs::remove_file(case.path("bridge/latest_checkpointed_iteration.txt")).unwrap();
    assert_eq!(Catalog::open(&case.path("bridge")).unwrap().folder, inner);
}

#[test]
fn a_tokenizer_goes_on_in_the_next_megatron_checkpoint() {
    let case = Case::new(model(), &import_options());
    write_bridge(&case, "bridge");
    run(&plan_import(&case.path("bridge"), &case.path("again"), &import_options()).unwrap());
    let copied = fs::read_to_string(case.path("again/release/tokenizer/tokenizer.json")).unwrap();
    assert_eq!(copied, "tokenizer.json");
}

#[test]
fn a_link_among_the_tokenizers_files_is_refused() {
    let case = Case::new(model(), &import_options());
    let inner = write_bridge(&case, "bridge");
    fs::remove_file(inner.join("tokenizer/tokenizer.json")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", inner.join("tokenizer/tokenizer.json")).unwrap();
    let error =
        plan_export(&case.path("bridge"), &case.path("out"), &ExportOptions::default()).unwrap_err().to_string();
    assert!(error.contains("a symbolic link inside a checkpoint"), "{error}");
}

#[test]
fn a_run_config_that_contradicts_the_tensors_or_is_none_is_refused() {
    let case = Case::new(model(), &import_options());
    let inner = write_bridge(&case, "bridge");
    let good = run_config(&case.config);
    let said = |text: &[u8]| {
        fs::write(inner.join("run_config.yaml"), text).unwrap();
        match plan_export(&case.path("bridge"), &case.path("out"), &ExportOptions::default()) {
            Err(error) => error.to_string(),
            Ok(_) => "accepted".into(),
        }
    };
    let experts = good.replace("num_moe_experts: ", "num_moe_experts: 9");
    assert!(said(experts.as_bytes()).contains("`num_experts` in `run_config.yaml`"), "{}", said(experts.as_bytes()));
    let gated = good.replace("gated_linear_unit: false", "gated_linear_unit: true");
    assert!(said(gated.as_bytes()).contains("`swiglu` in `run_config.yaml`: expected False, found True"));
    let gelu = good.replace("activations.squared_relu", "activations.fast_gelu");
    assert!(said(gelu.as_bytes()).contains("`squared_relu` in `run_config.yaml`: expected True, found False"));
    assert!(said(b"model: [1").contains("in `run_config.yaml`: not valid YAML"));
    assert!(said(b"model: 3").contains("`model` in `run_config.yaml`: expected a mapping"));
    assert!(said(b"data: {}").contains("`model` in `run_config.yaml`: missing"));
    assert!(said(b"\xff").contains("expected UTF-8"));
    assert!(said(&vec![b' '; 2 << 20]).contains("expected at most 1048576 bytes"));
    let bomb = (0..24)
        .fold("a0: &a0 [x, x]\n".to_owned(), |text, n| text + &format!("a{}: &a{} [*a{n}, *a{n}]\n", n + 1, n + 1));
    assert!(said(bomb.as_bytes()).contains("too many values"));
    assert_eq!(said(good.as_bytes()), "accepted");
}

#[test]
fn the_prefix_and_the_folder_of_nemo_are_understood() {
    for (folder, prefix) in [("weights", "module."), ("model_weights", "model.")] {
        let case = Case::new(model(), &import_options());
        let inner = case.path("nemo").join(folder);
        let mut stored = case.stored().prefixed(prefix);
        stored.tensors.insert(format!("optimizer.state.exp_avg.{prefix}x"), (Dtype::Float32, vec![1], vec![0; 4]));
        stored.write(&inner);
        write_common(&inner);
        fs::create_dir_all(case.path("nemo/context")).unwrap();
        let catalog = Catalog::open(&case.path("nemo")).unwrap();
        assert_eq!((catalog.prefix, catalog.folder.clone()), (Some(prefix), inner.clone()));
        assert!(catalog.objects.contains_key("decoder.final_norm._extra_state/shard_0_1"));
        let notes = case.export("nemo", Some(&case.path("hf"))).join("\n");
        assert!(notes.contains(&format!("every key begins with `{prefix}`, which is left out")), "{notes}");
        assert_eq!(differences(&case.path("hf"), &inner), Vec::<String>::new());
        let report = verify(&case.path("nemo"), &VerifyOptions { quick: false, threads: 2 }, &Silent).unwrap();
        assert_eq!(report.problems, []);
    }
}

#[test]
fn a_prefix_that_some_keys_lack_stays() {
    let case = Case::new(model(), &import_options());
    let mut stored = case.stored().prefixed("module.");
    let tensor = stored.tensors.remove("module.decoder.final_norm.weight").unwrap();
    stored.tensors.insert("decoder.final_norm.weight".into(), tensor);
    stored.write(&case.path("weights"));
    let catalog = Catalog::open(&case.path("weights")).unwrap();
    assert_eq!(catalog.prefix, None);
    assert!(catalog.tensors.contains_key("module.embedding.word_embeddings.weight"));
    let options = ExportOptions { base: Some(case.path("hf")), ..ExportOptions::default() };
    let Err(Error::Refused(problems)) = plan_export(&case.path("weights"), &case.path("out"), &options) else {
        panic!("accepted")
    };
    let text = problems.iter().fold(String::new(), |text, problem| text + &problem.to_string());
    assert!(text.contains("unmapped   module.embedding.word_embeddings.weight"), "{text}");
}

#[test]
fn experts_each_on_their_own_are_read_under_the_names_of_either_spec() {
    for (options, fused) in [
        (import_options(), true),
        (ImportOptions { spec: SpecName::Local, norms: NormKeys::Separate, ..import_options() }, false),
    ] {
        let case = Case::new(model(), &options);
        let single = case.path("single/release");
        case.stored().single_experts().write(&single);
        fs::copy(case.path("mc/release/common.pt"), single.join("common.pt")).unwrap();
        fs::write(case.path("single/latest_checkpointed_iteration.txt"), "release").unwrap();
        let catalog = Catalog::open(&case.path("single")).unwrap();
        let keys = spec_keys(&catalog);
        assert!(keys.single_experts && (keys.norms == NormKeys::Fused) == fused);
        assert_eq!(spec(&catalog), options.spec);
        assert!(catalog.tensors.keys().any(|key| key.ends_with(".mlp.experts.experts.1.linear_fc1.weight")));
        assert_eq!(differences(&case.path("hf"), &case.path("single")), Vec::<String>::new());
        case.export("single", None);
        // In memory the experts lie in one tensor, as ever.
        let (a, b) = (open(&case.path("single")), open(&case.path("mc")));
        for (name, (_, shape, bytes)) in &case.stored().tensors {
            let (true, Some(rest)) = (name.contains(".experts.experts."), name.strip_suffix(".weight")) else {
                continue;
            };
            let mut read = [vec![0; bytes.len()], vec![0; bytes.len()]];
            for (source, out) in [&a, &b].into_iter().zip(&mut read) {
                source.read(name, &Rect::whole(shape), Dtype::Bfloat16, out).unwrap();
            }
            assert_eq!(read[0], read[1], "{rest}");
            assert_eq!(&read[0], bytes, "{rest}");
        }
    }
}

#[test]
fn experts_on_their_own_show_their_sizes_without_arguments() {
    let case = Case::new(model(), &import_options());
    let inner = write_bridge(&case, "bridge");
    case.stored().single_experts().write(&inner);
    let text = run_config(&case.config);
    let without: Vec<&str> = text.lines().filter(|line| !line.contains("moe_ffn_hidden_size")).collect();
    fs::write(inner.join("run_config.yaml"), without.join("\n")).unwrap();
    let read = Model::from_torch_dist(&Catalog::open(&inner).unwrap(), None).unwrap();
    assert_eq!(read.config.layers, case.config.layers);
}

fn open(path: &Path) -> Source {
    Source::open(path, None, false).unwrap()
}

/// The model with every second layer of it, half the experts and smaller layers.
fn smaller(original: &ModelConfig) -> ModelConfig {
    let prune = |layer: &LayerSpec| match *layer {
        LayerSpec::Moe(mut moe) => {
            moe.experts /= 2;
            moe.expert_ffn -= 1;
            moe.shared_ffn -= 1;
            LayerSpec::Moe(moe)
        }
        LayerSpec::Attention(mut attention) => {
            attention.heads /= 2;
            attention.kv_heads /= 2;
            LayerSpec::Attention(attention)
        }
        LayerSpec::Mlp(mut mlp) => {
            mlp.ffn -= 1;
            LayerSpec::Mlp(mlp)
        }
        mamba @ LayerSpec::Mamba(_) => mamba,
    };
    let mut config = original.clone();
    config.hidden_size -= 2;
    config.layers = config.layers.iter().skip(1).map(prune).collect();
    if let Some(mtp) = &mut config.mtp {
        mtp.layers = mtp.layers.iter().map(prune).collect();
    }
    if let Some(LayerSpec::Mlp(mlp)) = config.layers.iter().find(|layer| layer.letter() == '-') {
        config.intermediate_size = Some(mlp.ffn);
    }
    config
}

/// A pruned model's checkpoint without the files that travel, and the folder of the original.
fn pruned(original: &ModelConfig) -> (Case, PathBuf) {
    let case = Case::new(smaller(original), &import_options());
    fs::remove_dir_all(case.path("mc/release/hf")).unwrap();
    let base = case.path("base");
    fs::create_dir(&base).unwrap();
    let mut text = config_json(original);
    text.insert_str(2, "  \"a_field_of_the_original\": [1, Infinity],\n");
    fs::write(base.join("config.json"), text).unwrap();
    fs::write(base.join("tokenizer.json"), "the original's").unwrap();
    (case, base)
}

#[test]
fn a_pruned_checkpoint_has_its_own_sizes_and_the_rest_of_its_base() {
    let original = model();
    let (case, base) = pruned(&original);
    let notes = case.export("mc", Some(&base)).join("\n");
    let written = fs::read_to_string(case.path("out/config.json")).unwrap();
    assert!(written.contains("\"a_field_of_the_original\": [1, Infinity]"), "{written}");
    assert_eq!(fs::read_to_string(case.path("out/tokenizer.json")).unwrap(), "the original's");
    let read = Model::from_folder(&case.path("out")).unwrap().config;
    assert_eq!(
        (read.layers, read.hidden_size, read.mtp),
        (case.config.layers.clone(), case.config.hidden_size, case.config.mtp.clone())
    );
    for (field, from, to) in [
        ("hidden_size", original.hidden_size, case.config.hidden_size),
        ("num_hidden_layers", original.layers.len() as u64, case.config.layers.len() as u64),
    ] {
        assert!(notes.contains(&format!("pruned: {field} {from} -> {to}")), "{notes}");
    }
    assert!(
        notes.contains("pruned: n_routed_experts ") && notes.contains("pruned: hybrid_override_pattern "),
        "{notes}"
    );
    // Every reader takes the same sizes.
    let source = Source::open(&case.path("mc"), Some(&base), false).unwrap();
    assert_eq!(source.model.config.layers, case.config.layers);
    let again = ImportOptions { base: Some(base), ..import_options() };
    run(&plan_import(&case.path("mc"), &case.path("again"), &again).unwrap());
    let travelling = Model::from_folder(&case.path("again/release/hf")).unwrap();
    assert_eq!(travelling.config.layers, case.config.layers);
}

/// The problems of an export.
fn refused(result: Result<Plan>) -> String {
    match result {
        Err(Error::Refused(problems)) => problems.iter().fold(String::new(), |text, p| text + &p.to_string() + "\n"),
        other => panic!("expected a refusal, found {other:?}"),
    }
}

#[test]
fn a_base_that_the_checkpoint_was_not_pruned_from_is_refused() {
    let original = model();
    let export = |case: &Case, base: &Path| {
        let options = ExportOptions { base: Some(base.to_owned()), ..ExportOptions::default() };
        refused(plan_export(&case.path("mc"), &case.path("out"), &options))
    };
    // A base that is smaller.
    let case = Case::new(original.clone(), &import_options());
    fs::create_dir(case.path("small")).unwrap();
    fs::write(case.path("small/config.json"), config_json(&smaller(&original))).unwrap();
    let text = export(&case, &case.path("small"));
    assert!(
        text.contains("shape      embedding.word_embeddings.weight") && text.contains("`hidden_size` in `args`"),
        "{text}"
    );
    // Without arguments tensors alone do not prove it.
    let (case, base) = pruned(&original);
    fs::remove_file(case.path("mc/release/common.pt")).unwrap();
    let text = export(&case, &base);
    assert!(text.contains("shape      embedding.word_embeddings.weight"), "{text}");
}
