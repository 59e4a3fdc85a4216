//! Layouts and bytes. `interop/arguments.py` compares the bytes with those of Megatron's own ranks.

use crate::{bundled, changed, outline, shared_data};
use longshore_ckpt::Catalog;
use longshore_convert::Layout;
use longshore_convert::fit::{Fit, FitOptions, Gpus, RefusedSize, fit};
use longshore_convert::outline::Outline;
use serde_json::json;
use std::path::Path;

fn options(count: u64, size: u64) -> FitOptions {
    FitOptions {
        gpus: Gpus { count, size },
        reserve: 20,
        tp: None,
        pp: None,
        ep: None,
        etp: None,
        make_vocab_size_divisible_by: None,
    }
}

fn fitted(outline: &Outline, options: &FitOptions) -> Fit {
    fit(outline, options, Path::new("model")).unwrap_or_else(|e| panic!("{e}"))
}

const GB: u64 = 1 << 30;

#[test]
fn one_rank_holds_what_the_file_holds() {
    let catalog = Catalog::open(&bundled()).expect("the bundled model");
    let of = |name: &str| if name.ends_with("e_score_correction_bias") { 4 } else { 2 };
    let stored: u64 = catalog.tensors.iter().map(|(name, t)| t.shape.iter().product::<u64>() * of(name)).sum();
    let outline = Outline::open(&bundled(), None).expect("the bundled model");
    let found = fitted(&outline, &options(1, GB));
    assert_eq!(found.layouts.len(), 1);
    assert_eq!(found.layouts[0].bytes_per_rank, stored);
}

#[test]
fn stages_hold_the_model_and_the_copies_of_the_embedding() {
    let table = 4096 * 256 * 2;
    let mtp = json!({"num_nextn_predict_layers": 1, "mtp_layers_block_type": ["full_attention", "moe"]});
    let tied = json!({"tie_word_embeddings": true});
    for (changes, copies) in [(json!({}), 0), (tied, 1), (mtp, 1)] {
        let outline = outline(&changed("ME*-MEM-", &changes)).unwrap_or_else(|e| panic!("{e}"));
        let found = fitted(&outline, &options(4, GB));
        let total = |pp| {
            let one = found.layouts.iter().find(|l| l.layout == Layout { tp: 1, pp, ep: 1, etp: 1 });
            one.map_or(0, |l| l.bytes_per_stage.iter().sum::<u64>())
        };
        assert_eq!(total(2), total(1) + copies * table, "{changes}");
        assert_eq!(total(4), total(2), "{changes}");
    }
}

#[test]
fn a_size_that_divides_more_leaves_less() {
    let found = fitted(&Outline::open(&bundled(), None).expect("the bundled model"), &options(8, GB));
    for layout in &found.layouts {
        let Layout { tp, pp, ep, etp } = layout.layout;
        assert!(8 % (tp * pp) == 0 && 8 % (ep * etp * pp) == 0, "{layout:?}");
        assert_eq!((layout.dp, layout.bytes_per_stage.len() as u64), (8 / (tp * pp), pp));
        for finer in found.layouts.iter().filter(|l| l.layout == Layout { tp: tp * 2, pp, ep, etp }) {
            assert!(finer.bytes_per_rank < layout.bytes_per_rank, "{layout:?} {finer:?}");
        }
        for finer in found.layouts.iter().filter(|l| l.layout == Layout { tp, pp, ep: ep * 2, etp }) {
            assert!(finer.bytes_per_rank < layout.bytes_per_rank, "{layout:?} {finer:?}");
        }
    }
}

#[test]
fn the_least_divided_layout_that_fits_comes_first() {
    // 14 MB in 20 of them, 20 percent of which are kept.
    let outline = Outline::open(&bundled(), None).expect("the bundled model");
    let found = fitted(&outline, &options(4, 19_000_000));
    assert_eq!(found.layouts[0].layout, Layout { tp: 1, pp: 1, ep: 4, etp: 1 });
    assert!(found.layouts[0].fits);
    let fits: Vec<bool> = found.layouts.iter().map(|l| l.fits).collect();
    assert!(fits.is_sorted_by(|a, b| a >= b), "{fits:?}");
    let none = fitted(&outline, &options(4, 1_000_000));
    assert!(none.layouts.iter().all(|l| !l.fits));
    assert!(none.layouts.is_sorted_by_key(|l| l.bytes_per_rank));
}

fn reasons(found: &Fit, option: &str, size: u64) -> String {
    let refused = found.refused.iter().find(|r: &&RefusedSize| r.option == option && r.size == size);
    refused.map(|r| r.reasons.join("; ")).unwrap_or_default()
}

#[test]
fn sizes_are_refused_with_every_reason() {
    let outline = Outline::open(&bundled(), None).expect("the bundled model");
    let found = fitted(&outline, &options(16, GB));
    assert_eq!(reasons(&found, "--tp", 2), "");
    assert_eq!(reasons(&found, "--tp", 4), "4 does not divide n_groups (2)");
    assert_eq!(
        reasons(&found, "--tp", 16),
        "16 does not divide mamba_num_heads (8); 16 does not divide n_groups (2); 16 does not divide num_attention_heads (4)"
    );
    assert_eq!(reasons(&found, "--ep", 16), "16 does not divide n_routed_experts (8)");
    assert_eq!(reasons(&found, "--pp", 8), "12 layers do not make 8 equal stages; `|` in the pattern could cut others");
    assert_eq!(reasons(&found, "--pp", 16), "16 stages for 12 layers");
    let given = fitted(&outline, &FitOptions { tp: Some(3), ..options(16, GB) });
    assert!(given.layouts.is_empty());
    assert!(reasons(&given, "--tp", 3).starts_with("3 does not divide 16 GPUs; 3 does not divide the 4096 rows"));
}

#[test]
fn a_model_without_experts_has_none_to_divide() {
    let outline = outline(&changed("M*-M*-", &json!({}))).unwrap_or_else(|e| panic!("{e}"));
    let found = fitted(&outline, &options(4, GB));
    assert!(found.layouts.iter().all(|l| (l.layout.ep, l.layout.etp) == (1, 1)), "{found:?}");
    let found = fitted(&outline, &FitOptions { ep: Some(2), ..options(4, GB) });
    assert_eq!(reasons(&found, "--ep", 2), "the model has no experts");
}

#[test]
fn a_vocabulary_that_does_not_divide_can_be_padded() {
    let outline = outline(&changed("M*-M", &json!({"vocab_size": 255}))).unwrap_or_else(|e| panic!("{e}"));
    let found = fitted(&outline, &options(2, GB));
    assert_eq!(
        reasons(&found, "--tp", 2),
        "2 does not divide the 255 rows of the vocabulary; --make-vocab-size-divisible-by pads it"
    );
    let padded = fitted(&outline, &FitOptions { make_vocab_size_divisible_by: Some(64), ..options(2, GB) });
    let bytes = |found: &Fit| found.layouts.iter().find(|l| l.layout.tp == 1).map_or(0, |l| l.bytes_per_stage[0]);
    assert!(padded.layouts.iter().any(|l| l.layout.tp == 2));
    assert_eq!(bytes(&padded) - bytes(&found), 2 * 256 * 2, "one row more, of two tables");
}

#[test]
fn more_ranks_than_key_heads_are_allowed() {
    let changes = json!({"n_groups": 4, "num_key_value_heads": 2});
    let outline = outline(&changed("M*-M", &changes)).unwrap_or_else(|e| panic!("{e}"));
    assert!(fitted(&outline, &options(4, GB)).layouts.iter().any(|l| l.layout.tp == 4));
    let three = json!({"n_groups": 4, "num_attention_heads": 12, "num_key_value_heads": 3});
    let outline = crate::outline(&changed("M*-M", &three)).unwrap_or_else(|e| panic!("{e}"));
    let found = fitted(&outline, &options(4, GB));
    assert_eq!(reasons(&found, "--tp", 4), "4 neither divides num_key_value_heads (3) nor is a multiple of it");
}

#[test]
fn released_models_on_eight_gpus() {
    let models = [("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", (1, 1)), ("NVIDIA-Nemotron-3-Super-120B-A12B-FP8", (1, 8))];
    for (name, (tp, ep)) in models {
        let Some(folder) = shared_data::shared(&format!("data/configs/nvidia/{name}")) else { return };
        let outline = Outline::open(&folder, None).unwrap_or_else(|e| panic!("{e}"));
        let found = fitted(&outline, &options(8, 80 * GB));
        assert_eq!(found.layouts[0].layout, Layout { tp, pp: 1, ep, etp: 1 }, "{name}");
        assert!(found.layouts[0].fits);
    }
}

#[test]
fn llama_has_no_megatron_form_yet() {
    let config = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "vocab_size": 256,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6, "hidden_act": "silu"});
    let outline = outline(&config).unwrap_or_else(|e| panic!("{e}"));
    let error = fit(&outline, &options(1, GB), Path::new("model")).expect_err("not converted");
    assert!(error.to_string().contains("not converted"), "{error}");
}
