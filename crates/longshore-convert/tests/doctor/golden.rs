//! Models of random weights: never trained, and nothing worse is wrong with them.

use crate::damaged::{examine, found};
use crate::shared_data::shared;
use longshore_convert::doctor::{Check, Severity};

#[test]
fn models_of_random_weights_are_told_as_such() {
    let [Some(hf), Some(mc)] = ["golden/hf", "golden/torch_dist"].map(shared) else { return };
    let folders = [
        hf.join("llama"),
        hf.join("llama_tied"),
        hf.join("nemotron_h_dense"),
        hf.join("nemotron_h_dtclamp"),
        hf.join("nemotron_h_fp32_ssm"),
        hf.join("nemotron_h_latent_mtp"),
        hf.join("nemotron_h_moe"),
        hf.join("nemotron_h_moe_groups"),
        hf.join("nemotron_h_moe_sharded"),
        mc.join("nemotron_h_dense_local_tp2_pp2"),
        mc.join("nemotron_h_fp32_ssm_te"),
        mc.join("nemotron_h_latent_mtp_te"),
        mc.join("nemotron_h_moe_local_ep2_iter"),
        mc.join("nemotron_h_moe_te_tp2_ep2_etp1"),
    ];
    for folder in folders {
        let report = examine(&folder, None);
        let (fresh, rounded) = (Check::FreshInit, Check::RouterBiasRounded);
        let found = found(&report);
        assert!(found.contains(&(Severity::Suspicious, fresh)), "{}: {found:?}", folder.display());
        // Their correction biases were drawn in bfloat16.
        assert!(found.iter().all(|(_, check)| [fresh, rounded].contains(check)), "{}: {found:?}", folder.display());
    }
}

#[test]
fn what_megatron_saved_is_what_it_was_made_from() {
    let [Some(hf), Some(mc)] = ["golden/hf", "golden/torch_dist"].map(shared) else { return };
    for (source, saved) in [
        ("nemotron_h_dense", "nemotron_h_dense_local_tp2_pp2"),
        ("nemotron_h_latent_mtp", "nemotron_h_latent_mtp_te"),
        ("nemotron_h_moe", "nemotron_h_moe_te_tp2_ep2_etp1"),
    ] {
        let report = examine(&mc.join(saved), Some(&hf.join(source)));
        assert!(report.differing.is_empty(), "{saved}: {:?}", report.differing);
    }
}
