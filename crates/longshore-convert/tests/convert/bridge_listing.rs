//! What Megatron-Bridge saves of a Nemotron-H model, listed here by its own rules and compared with a conversion.
//!
//! The list has the Megatron parameters that Bridge's mapping names (`models/nemotronh/nemotron_h_bridge.py`, main of August
//! 2026: TE spec, grouped experts, vocabulary not padded), cut as megatron-core cuts them when it saves, and the extra states
//! of the modules that hold them. What differs is in `docs/correctness.md`.

use crate::hf_folder::{self, Tensor, declared};
use crate::random::Random;
use crate::refusals::import_options;
use crate::shared_data::shared;
use crate::snapshots::model;
use longshore_ckpt::{Catalog, Dtype};
use longshore_convert::config::{Attention, LayerSpec, Mamba, ModelConfig, Moe, release};
use longshore_convert::model::Model;
use longshore_convert::plan::plan_import;
use longshore_convert::progress::Silent;
use longshore_convert::run::{RunOptions, execute};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Objects that Bridge saves and a conversion does not: the common state of megatron-core 0.19 and later.
const ONLY_BRIDGE: [&str; 1] = ["common_state/shard_0_1"];

#[derive(Default)]
struct Listing {
    tensors: BTreeMap<String, Vec<u64>>,
    objects: BTreeSet<String>,
}

impl Listing {
    /// A parameter of a module that has no extra state.
    fn tensor(&mut self, name: &str, shape: &[u64]) {
        assert!(self.tensors.insert(name.to_owned(), shape.to_vec()).is_none(), "{name}");
    }

    /// The weight of a module of the Transformer Engine, which has one.
    fn te(&mut self, module: &str, shape: &[u64]) {
        self.tensor(&format!("{module}.weight"), shape);
        self.objects.insert(format!("{module}._extra_state/shard_0_1"));
    }

    /// The same with the norm before it inside (`TELayerNormColumnParallelLinear`).
    fn with_norm(&mut self, module: &str, shape: &[u64]) {
        self.tensor(&format!("{module}.layer_norm_weight"), &shape[1..]);
        self.te(module, shape);
    }

    fn model(config: &ModelConfig) -> Self {
        let (mut list, h, vocab) = (Self::default(), config.hidden_size, config.vocab_size);
        list.tensor("embedding.word_embeddings.weight", &[vocab, h]);
        for (i, layer) in config.layers.iter().enumerate() {
            list.layer(&format!("decoder.layers.{i}"), layer, h);
        }
        list.te("decoder.final_norm", &[h]);
        if config.tie_word_embeddings {
            list.objects.insert("output_layer._extra_state/shard_0_1".into());
        } else {
            list.te("output_layer", &[vocab, h]);
        }
        if let Some(mtp) = &config.mtp {
            for block in 0..mtp.blocks() {
                let block = format!("mtp.layers.{block}");
                for norm in ["enorm", "hnorm", "final_layernorm"] {
                    list.te(&format!("{block}.{norm}"), &[h]);
                }
                list.te(&format!("{block}.eh_proj"), &[h, 2 * h]);
                for (k, layer) in mtp.layers.iter().enumerate() {
                    list.layer(&format!("{block}.mtp_model_layer.layers.{k}"), layer, h);
                }
            }
        }
        list.objects.extend(ONLY_BRIDGE.map(str::to_owned));
        list
    }

    fn layer(&mut self, at: &str, layer: &LayerSpec, h: u64) {
        match layer {
            LayerSpec::Mamba(mamba) => self.mamba(at, mamba, h),
            LayerSpec::Attention(Attention { heads, kv_heads, head_dim, .. }) => {
                self.with_norm(&format!("{at}.self_attention.linear_qkv"), &[(heads + 2 * kv_heads) * head_dim, h]);
                self.te(&format!("{at}.self_attention.linear_proj"), &[h, heads * head_dim]);
            }
            LayerSpec::Mlp(mlp) => {
                self.with_norm(&format!("{at}.mlp.linear_fc1"), &[mlp.ffn, h]);
                self.te(&format!("{at}.mlp.linear_fc2"), &[h, mlp.ffn]);
            }
            LayerSpec::Moe(moe) => self.moe(at, moe, h),
        }
    }

    fn mamba(&mut self, at: &str, mamba: &Mamba, h: u64) {
        let &Mamba { heads, head_dim, groups, state, conv_kernel } = mamba;
        let (inner, bc) = (heads * head_dim, groups * state);
        for (part, rows) in [("z", inner), ("x", inner), ("B", bc), ("C", bc), ("dt", heads)] {
            self.tensor(&format!("{at}.mixer.in_proj.weight.{part}"), &[rows, h]);
        }
        self.tensor(&format!("{at}.mixer.in_proj.layer_norm_weight"), &[h]);
        self.objects.insert(format!("{at}.mixer.in_proj._extra_state/shard_0_1"));
        for (part, rows) in [("x", inner), ("B", bc), ("C", bc)] {
            self.tensor(&format!("{at}.mixer.conv1d.weight.{part}"), &[rows, 1, conv_kernel]);
            self.tensor(&format!("{at}.mixer.conv1d.bias.{part}"), &[rows]);
        }
        for name in ["A_log", "D", "dt_bias"] {
            self.tensor(&format!("{at}.mixer.{name}"), &[heads]);
        }
        self.tensor(&format!("{at}.mixer.norm.weight"), &[inner]);
        self.te(&format!("{at}.mixer.out_proj"), &[h, inner]);
    }

    fn moe(&mut self, at: &str, moe: &Moe, h: u64) {
        let (experts, width) = (moe.experts, moe.latent.unwrap_or(h));
        self.te(&format!("{at}.pre_mlp_layernorm"), &[h]);
        self.tensor(&format!("{at}.mlp.router.weight"), &[experts, h]);
        self.tensor(&format!("{at}.mlp.router.expert_bias"), &[experts]);
        if let Some(latent) = moe.latent {
            self.te(&format!("{at}.mlp.fc1_latent_proj"), &[latent, h]);
            self.te(&format!("{at}.mlp.fc2_latent_proj"), &[h, latent]);
        }
        for (linear, out, input) in [("linear_fc1", moe.expert_ffn, width), ("linear_fc2", width, moe.expert_ffn)] {
            let module = format!("{at}.mlp.experts.experts.{linear}");
            self.tensor(&format!("{module}.weight"), &[experts, out, input]);
            self.objects.extend((0..experts).map(|e| format!("{module}._extra_state/shard_{e}_{experts}")));
        }
        self.te(&format!("{at}.mlp.shared_experts.linear_fc1"), &[moe.shared_ffn, h]);
        self.te(&format!("{at}.mlp.shared_experts.linear_fc2"), &[h, moe.shared_ffn]);
    }
}

/// Converts a folder for the TE spec and compares names, shapes and objects with the list.
fn compare(hf: &Path) {
    let out = tempfile::tempdir().unwrap();
    let plan = plan_import(hf, &out.path().join("mc"), &import_options()).unwrap();
    execute(&plan, &RunOptions { threads: 2, force: false }, &Silent).unwrap();
    let catalog = Catalog::open(&out.path().join("mc")).unwrap();
    let ours: BTreeMap<_, _> = catalog.tensors.iter().map(|(key, info)| (key.clone(), info.shape.clone())).collect();
    let bridges = Listing::model(plan.config());
    assert_eq!(ours, bridges.tensors, "{}", hf.display());
    let ours: BTreeSet<String> = catalog.objects.into_keys().collect();
    assert_eq!(ours.difference(&bridges.objects).collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(bridges.objects.difference(&ours).collect::<Vec<_>>(), ONLY_BRIDGE);
}

#[test]
fn a_conversion_has_the_tensors_and_objects_that_megatron_bridge_saves() {
    compare(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nemotron-h-10m"));
    let Some(golden) = shared("golden/hf") else { return };
    for name in ["nemotron_h_dense", "nemotron_h_moe", "nemotron_h_latent_mtp"] {
        compare(&golden.join(name));
    }
}

#[test]
fn so_has_one_of_a_model_with_every_kind_of_layer() {
    let dir = tempfile::tempdir().unwrap();
    let rng = &mut Random(3);
    let tied = ModelConfig { tie_word_embeddings: true, ..model() };
    for (name, config) in [("plain", model()), ("tied", tied)] {
        let folder: PathBuf = dir.path().join(name);
        let text = serde_json::to_string(&release::hf_json(&config).0).unwrap();
        let fill = &mut |tensor: &Tensor, bytes: &mut [u8]| rng.finite(tensor, bytes);
        hf_folder::write(&folder, &text, &declared(&config, Dtype::Bfloat16), u64::MAX, Some(fill));
        assert_eq!(Model::from_folder(&folder).unwrap().config.layers, config.layers);
        compare(&folder);
    }
}
