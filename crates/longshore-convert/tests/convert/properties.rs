//! What holds for every model: rules tile both sides, and the way there and back is the identity.

use crate::hf_folder::{self, Tensor, declared};
use crate::random::Random;
use longshore_ckpt::{Catalog, Dtype, torch_dist};
use longshore_convert::arch::{self, SpecKeys};
use longshore_convert::config::{Activation, Attention, LayerSpec, Mamba, Mlp, ModelConfig, Moe, Mtp, release};
use longshore_convert::content::content_hash;
use longshore_convert::manifest;
use longshore_convert::options::{ExportOptions, ImportOptions, Layout, NormKeys, SpecName};
use longshore_convert::plan::{plan_export, plan_import};
use longshore_convert::progress::Silent;
use longshore_convert::run::{RunOptions, execute};
use longshore_convert::verify::{VerifyOptions, verify, verify_against};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// The letters of a model's layers, and of the layers of an MTP block.
fn patterns() -> impl Strategy<Value = (Vec<char>, Vec<char>)> {
    let letter = prop::sample::select(vec!['M', '*', '-', 'E']);
    (prop::collection::vec(letter.clone(), 1..5), prop::collection::vec(letter, 1..3))
}

/// A small model that can be cut for tensor parallelism of `tp`.
pub(crate) fn config(tp: u64) -> impl Strategy<Value = ModelConfig> {
    let mamba = (1u64..3, 1u64..3, 1u64..4, 1u64..4).prop_map(move |(groups, per_group, head_dim, state)| Mamba {
        heads: tp * groups * per_group,
        head_dim,
        groups: tp * groups,
        state,
        conv_kernel: 4,
    });
    let attention = (1u64..3, 1u64..4, 1u64..4).prop_map(move |(kv, per_group, head_dim)| Attention {
        heads: tp * kv * per_group,
        // Fewer groups than ranks are legal where the ranks are a multiple of the groups.
        kv_heads: if per_group == 2 { 1 } else { tp * kv },
        head_dim,
        rotary: None,
    });
    let moe =
        (1u64..4, 1u64..4, 1u64..4, prop::option::of(1u64..6)).prop_map(move |(experts, ffn, shared, latent)| Moe {
            experts,
            top_k: 1,
            expert_ffn: ffn,
            shared_ffn: tp * shared,
            latent,
            n_group: 1,
            topk_group: 1,
            norm_topk_prob: false,
            routed_scaling_factor: 1.0,
        });
    let mtp = prop::option::of((1u64..3, any::<bool>()));
    let sizes = (1u64..6, 1u64..9, 1u64..4, any::<bool>());
    (patterns(), mamba, attention, moe, mtp, sizes).prop_map(
        move |((trunk, block), mamba, attention, moe, mtp, (hidden, vocab, ffn, tied))| {
            let layer = |letter: &char| match letter {
                'M' => LayerSpec::Mamba(mamba),
                '*' => LayerSpec::Attention(attention),
                '-' => LayerSpec::Mlp(Mlp { ffn: tp * ffn, activation: Activation::ReluSquared }),
                _ => LayerSpec::Moe(moe),
            };
            // `eh_proj` is cut by rows.
            let hidden = if mtp.is_some() { tp * hidden } else { hidden };
            ModelConfig {
                layers: trunk.iter().map(layer).collect(),
                mtp: mtp.map(|(depth, repeated)| Mtp {
                    depth,
                    layers: block.iter().map(layer).collect(),
                    repeated: (depth > 1).then_some(repeated),
                }),
                tie_word_embeddings: tied,
                ..ModelConfig::minimal("NemotronHForCausalLM", hidden, vocab)
            }
        },
    )
}

fn spec_and_norms() -> impl Strategy<Value = (SpecName, NormKeys)> {
    prop::sample::select(vec![
        (SpecName::Te, NormKeys::Fused),
        (SpecName::Te, NormKeys::Separate),
        (SpecName::Local, NormKeys::Separate),
        (SpecName::Local, NormKeys::Fused),
    ])
}

pub(crate) fn import_options() -> impl Strategy<Value = ImportOptions> {
    let layout = (1u64..4, 1u64..3).prop_map(|(tp, etp)| Layout { tp, pp: 1, ep: 1, etp });
    let sizes = (prop::option::of(1u64..6), prop::option::of(Just(3)), prop::option::of(1u64..3000), any::<bool>());
    (spec_and_norms(), layout, sizes).prop_map(|((spec, norms), layout, (multiple, iteration, max_file_size, core))| {
        ImportOptions {
            norms,
            layout: Layout { etp: 1, ..layout },
            make_vocab_size_divisible_by: multiple,
            iteration,
            core_attention_states: core,
            max_file_size,
            ..ImportOptions::new(spec)
        }
    })
}

pub(crate) fn case() -> impl Strategy<Value = (ModelConfig, ImportOptions)> {
    import_options().prop_flat_map(|options| (config(options.layout.tp), Just(options)))
}

/// Tensors in several dtypes, as no release but many a fine-tuned model has them.
pub(crate) fn tensors(config: &ModelConfig, rng: &mut Random) -> Vec<Tensor> {
    let dtypes = [Dtype::Bfloat16, Dtype::Float16, Dtype::Float32];
    let params = dtypes[(rng.next() % 3) as usize];
    let mut tensors = declared(config, params);
    for tensor in &mut tensors {
        if rng.next().is_multiple_of(6) {
            tensor.dtype = dtypes[(rng.next() % 3) as usize];
        }
    }
    tensors
}

/// Any bits at all, NaN with payloads included; of float16 only numbers, since the processor's casts quieten its NaNs.
pub(crate) fn any_bits(rng: &mut Random, tensor: &Tensor, bytes: &mut [u8]) {
    if tensor.dtype == Dtype::Float16 {
        return rng.finite(tensor, bytes);
    }
    bytes.fill_with(|| rng.next() as u8);
}

pub(crate) type Contents = BTreeMap<String, (Dtype, Vec<u64>, Vec<u8>)>;

/// Every tensor of a Hugging Face folder, bytes and all.
pub(crate) fn contents(folder: &Path) -> Contents {
    let catalog = Catalog::open(folder).unwrap();
    let files: Vec<Vec<u8>> = catalog.files.iter().map(|f| std::fs::read(folder.join(&f.name)).unwrap()).collect();
    let bytes = |info: &longshore_ckpt::TensorInfo| {
        let extent = info.chunks[0].extent;
        files[extent.file as usize][extent.offset as usize..(extent.offset + extent.len) as usize].to_vec()
    };
    catalog.tensors.iter().map(|(name, info)| (name.clone(), (info.dtype, info.shape.clone(), bytes(info)))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_rules_of_any_model_tile_both_sides((config, options) in case()) {
        let architecture = arch::find(&config.architecture).unwrap();
        let padded = config.vocab_size.next_multiple_of(options.make_vocab_size_divisible_by.unwrap_or(1));
        let mapping = (architecture.mapping)(&config, &SpecKeys::of(&options), padded);
        prop_assert_eq!(mapping.check(), Ok(()));
        prop_assert_eq!(mapping.hf_order.len(), mapping.hf.len());
        prop_assert_eq!(architecture.check_layout.unwrap()(&config, options.layout), vec![]);
    }
}

/// Flips a bit of the last byte of the last tensor in `folder`.
fn damage(folder: &Path) {
    let catalog = Catalog::open(folder).unwrap();
    let end = |file: u32| {
        let extents = catalog.tensors.values().flat_map(|info| &info.chunks).map(|chunk| chunk.extent);
        extents.filter(|e| e.file == file && e.len > 0).map(|e| e.offset + e.len).max()
    };
    let (file, end) = (0..catalog.files.len() as u32).rev().find_map(|file| Some((file, end(file)?))).unwrap();
    let mut bytes = std::fs::read(catalog.path(file)).unwrap();
    bytes[end as usize - 1] ^= 1;
    std::fs::write(catalog.path(file), bytes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn converting_and_exporting_is_the_identity((config, options) in case(), seed in any::<u64>()) {
        let rng = &mut Random(seed);
        let dir = tempfile::tempdir().unwrap();
        let [source, mc, back] = ["source", "mc", "back"].map(|name| dir.path().join(name));
        let tensors = tensors(&config, rng);
        let text = serde_json::to_string(&release::hf_json(&config).0).unwrap();
        let shard_size = 1 + rng.next() % 3000;
        hf_folder::write(&source, &text, &tensors, shard_size, Some(&mut |tensor, bytes| any_bits(rng, tensor, bytes)));

        let run = RunOptions { threads: 2, force: false };
        execute(&plan_import(&source, &mc, &options).unwrap(), &run, &Silent).unwrap();
        let checks = VerifyOptions { quick: false, threads: 1 };
        prop_assert_eq!(verify(&mc, &checks, &Silent).unwrap().problems, vec![]);
        prop_assert_eq!(verify_against(&mc, &source, &checks, &Silent).unwrap().problems, vec![]);

        let export = ExportOptions { max_file_size: 1 + seed % 3000, ..ExportOptions::default() };
        execute(&plan_export(&mc, &back, &export).unwrap(), &run, &Silent).unwrap();
        prop_assert!(contents(&source) == contents(&back));
        prop_assert_eq!(std::fs::read(source.join("config.json")).unwrap(), std::fs::read(back.join("config.json")).unwrap());

        // The hash of the tensors is that of the bytes, whoever took their checksums and however many files they are in.
        let hash = |path: &Path, threads| content_hash(path, threads, &Silent).unwrap();
        let of_source = hash(&source, 1);
        prop_assert_eq!(of_source.bytes, tensors.iter().map(Tensor::size).sum::<u64>());
        for folder in [torch_dist::inner_folder(&mc).unwrap(), back] {
            let promised = hash(&folder, 1);
            std::fs::remove_file(folder.join(manifest::NAME)).unwrap();
            let found = hash(&folder, 3);
            prop_assert_eq!((promised.from_manifest, found.from_manifest), (true, false));
            prop_assert_eq!(&promised.sha256, &found.sha256);
            prop_assert_eq!(found.sha256 == of_source.sha256, !folder.starts_with(&mc));
        }
        damage(&source);
        prop_assert!(hash(&source, 2).sha256 != of_source.sha256);
    }
}
