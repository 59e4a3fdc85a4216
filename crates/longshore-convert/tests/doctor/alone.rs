//! Damage that shows in the checkpoint itself.

use crate::damaged::{Dir, Model, NOTE, Tensor, examine, found, only};
use longshore_ckpt::Dtype;
use longshore_convert::doctor::{Check, Severity};

const BROKEN: Severity = Severity::Broken;
const SUSPICIOUS: Severity = Severity::Suspicious;

/// Normal values (Box and Muller 1958, from `SplitMix64`).
pub(crate) fn normal(seed: u64, len: usize, std: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d);
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 40) as f32 + 0.5) / (1 << 24) as f32
    };
    let mut value = || (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos();
    (0..len).map(|_| value() * std).collect()
}

/// The order that rows come in where the parts of ranks are written one after the other.
pub(crate) fn joined(sections: &[usize], tp: usize) -> Vec<usize> {
    let mut order = Vec::new();
    for rank in 0..tp {
        let mut begin = 0;
        for size in sections {
            let part = size / tp;
            order.extend(begin + rank * part..begin + (rank + 1) * part);
            begin += size;
        }
    }
    order
}

/// The rows of the bundled model's `in_proj` and convolution.
pub(crate) const IN_PROJ: [usize; 5] = [512, 512, 128, 128, 8];
pub(crate) const CONV: [usize; 3] = [512, 128, 128];

pub(crate) fn mis_cut(model: &mut Model, order: impl Fn(&[usize]) -> Vec<usize>) {
    for name in model.names("backbone.", "mixer.in_proj.weight") {
        model.get(&name).reorder(&order(&IN_PROJ));
    }
    let conv = ["mixer.conv1d.weight", "mixer.conv1d.bias"].map(|suffix| model.names("backbone.", suffix));
    for name in conv.concat() {
        model.get(&name).reorder(&order(&CONV));
    }
}

#[test]
fn the_bundled_model_is_sound() {
    let [note, _] = only(&[], |_| {});
    assert_eq!(note.tensors.len(), 4);
}

#[test]
fn pre_norms_at_one_are_those_of_the_other_spec() {
    let layers = [0, 2, 3, 4, 6, 7, 9, 10];
    let [hf, mc] = only(&[(BROKEN, Check::NormsAtOne)], |model| {
        for layer in layers {
            model.get(&format!("backbone.layers.{layer}.norm.weight")).change(|values| values.fill(1.0));
        }
    });
    assert_eq!((hf.tensors.len(), mc.tensors.len()), (8, 8));
    assert!(mc.tensors.contains(&"decoder.layers.0.mixer.in_proj.layer_norm_weight".to_owned()), "{mc:?}");
    assert!(hf.cause.contains("TE spec"), "{}", hf.cause);
    assert!(hf.evidence.contains("all 4 `decoder.layers.{}.norm.weight`"), "{}", hf.evidence);
}

#[test]
fn one_norm_of_several_at_one_is_suspicious() {
    let name = "backbone.layers.4.mixer.norm.weight";
    let [hf, _] = only(&[(SUSPICIOUS, Check::NormsAtOne)], |model| model.get(name).change(|values| values.fill(1.0)));
    assert_eq!(hf.tensors, [name]);
}

#[test]
fn norms_at_zero_are_broken() {
    only(&[(BROKEN, Check::NormsAtZero)], |model| {
        model.get("backbone.norm_f.weight").change(|values| values.fill(0.0));
    });
}

#[test]
fn values_that_are_not_finite_are_placed() {
    let [hf, _] = only(&[(BROKEN, Check::NotFinite)], |model| {
        let up = model.get("backbone.layers.3.mixer.up_proj.weight");
        up.change(|values| (values[3 * 256 + 5], values[4 * 256]) = (f32::INFINITY, f32::NAN));
    });
    let evidence =
        "2 values are NaN or infinite; the first is inf in `backbone.layers.3.mixer.up_proj.weight` at row 3, column 5";
    assert_eq!(hf.evidence, evidence);
}

#[test]
fn zeros_in_place_of_weights() {
    let up = "backbone.layers.3.mixer.up_proj.weight";
    only(&[(BROKEN, Check::AllZero)], |model| model.get(up).change(|values| values.fill(0.0)));
    only(&[(BROKEN, Check::AllZero)], |model| {
        model.get("backbone.layers.5.mixer.experts.6.up_proj.weight").change(|values| values.fill(0.0));
    });
    only(&[(SUSPICIOUS, Check::AllZero)], |model| {
        model.get("backbone.layers.0.mixer.conv1d.bias").change(|values| values.fill(0.0));
    });
    let [hf, _] = only(&[(BROKEN, Check::ZeroRows)], |model| {
        model.get(up).change(|values| values[384 * 256..].fill(0.0));
    });
    assert!(hf.evidence.starts_with("rows 384 to 767 of 768"), "{}", hf.evidence);
    let [hf, _] = only(&[(BROKEN, Check::ZeroRows)], |model| {
        let columns = |values: &mut Vec<f32>| values.chunks_mut(512).for_each(|row| row[..256].fill(0.0));
        model.get("backbone.layers.0.mixer.out_proj.weight").change(columns);
    });
    assert!(hf.evidence.starts_with("columns 0 to 255 of 512"), "{}", hf.evidence);
    only(&[(SUSPICIOUS, Check::ZeroRows)], |model| model.get(up).change(|values| values[..256].fill(0.0)));
}

#[test]
fn padding_of_the_vocabulary_is_a_note() {
    only(&[(Severity::Note, Check::ZeroRows)], |model| {
        model.get("lm_head.weight").change(|values| values[4000 * 256..].fill(0.0));
    });
}

#[test]
fn equal_experts_tell_the_expert_parallel_size() {
    let copy = |model: &mut Model, from: fn(u64) -> u64| {
        let original = model.clone();
        for expert in 0..8 {
            for part in ["up", "down"] {
                let name = |e| format!("backbone.layers.1.mixer.experts.{e}.{part}_proj.weight");
                *model.get(&name(expert)) = original.tensors[&name(from(expert))].clone();
            }
        }
    };
    let expected = [(BROKEN, Check::EqualExperts)];
    let [hf, mc] = only(&expected, |model| copy(model, |e| e % 4));
    assert!(hf.cause.contains("ranks has 4 experts"), "{}", hf.cause);
    assert_eq!(
        (hf.tensors.len(), mc.tensors[3].as_str()),
        (16, "decoder.layers.1.mlp.experts.experts.linear_fc1.weight[3]")
    );
    let [hf, _] = only(&expected, |model| copy(model, |_| 0));
    assert!(hf.evidence.contains("every expert equals the first"), "{}", hf.evidence);
    let [hf, _] = only(&expected, |model| copy(model, |e| if e == 7 { 2 } else { e }));
    assert!(hf.evidence.contains("experts 2, 7 are equal: without a pattern"), "{}", hf.evidence);
    assert_eq!(hf.tensors.len(), 4);
}

#[test]
fn equal_layers_are_broken() {
    let [hf, _] = only(&[(BROKEN, Check::EqualLayers)], |model| {
        for name in model.names("backbone.layers.2.", "") {
            let tensor = model.tensors[&name].clone();
            *model.get(&name.replace("layers.2.", "layers.7.")) = tensor;
        }
    });
    assert_eq!(hf.evidence, "all 2 matrices are equal, bit for bit, in decoder.layers.2, decoder.layers.7");
}

#[test]
fn an_output_layer_that_is_the_embedding_is_a_note() {
    only(&[(Severity::Note, Check::EqualVocabulary)], |model| {
        let embedding = model.tensors["backbone.embeddings.weight"].clone();
        *model.get("lm_head.weight") = embedding;
    });
}

#[test]
fn a_fresh_matrix_stands_out() {
    let name = "backbone.layers.4.mixer.out_proj.weight";
    let [hf, _] = only(&[(SUSPICIOUS, Check::FreshInit)], |model| model.get(name).set(&normal(1, 256 * 512, 0.004)));
    assert_eq!(hf.tensors, [name]);
    assert!(hf.evidence.starts_with("1 of 4 `decoder.layers.{}.mixer.out_proj.weight`"), "{}", hf.evidence);
}

/// Draws every matrix anew.
pub(crate) fn untrained(model: &mut Model) {
    for (seed, name) in (0..).zip(model.names("", "weight")) {
        let tensor = model.get(&name);
        if tensor.shape.len() == 2 {
            tensor.set(&normal(seed, tensor.values().len(), 0.02));
        }
    }
}

#[test]
fn an_untrained_model_is_said_to_be_one_once() {
    let [hf, _] = only(&[(SUSPICIOUS, Check::FreshInit)], untrained);
    assert!(hf.evidence.contains("matrices look freshly initialized: std 0.020"), "{}", hf.evidence);
}

#[test]
fn parameters_of_mamba_heads_at_init() {
    let ones = |model: &mut Model, names: &[String]| {
        for name in names {
            model.get(name).change(|values| values.fill(1.0));
        }
    };
    let [hf, _] = only(&[(BROKEN, Check::MambaAtInit)], |model| ones(model, &model.names("backbone.", "mixer.D")));
    assert_eq!(hf.tensors.len(), 4);
    only(&[(SUSPICIOUS, Check::MambaAtInit)], |model| ones(model, &["backbone.layers.6.mixer.D".to_owned()]));
    let [hf, _] = only(&[(BROKEN, Check::MambaAtInit)], |model| {
        for name in model.names("backbone.", "mixer.A_log") {
            model.get(&name).set(&[1, 2, 3, 4, 5, 6, 7, 8].map(|head| f32::ln(head as f32)));
        }
    });
    assert!(hf.evidence.contains("`A_log` log(1, 2, 3, …) in all 4"), "{}", hf.evidence);
}

/// Gives the routers biases; the sound model has none.
fn biases(model: &mut Model, round: bool, layers: &[u64]) {
    for layer in layers {
        let bias = model.get(&format!("backbone.layers.{layer}.mixer.gate.e_score_correction_bias"));
        let values = normal(*layer, 8, 0.1);
        let rounded: Vec<f32> = values.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
        bias.set(if round { &rounded } else { &values });
    }
}

#[test]
fn correction_biases_that_passed_through_bfloat16() {
    for (round, layers, expected) in [
        (false, &[1, 5, 8, 11][..], vec![]),
        (true, &[1, 5, 8, 11], vec![(SUSPICIOUS, Check::RouterBiasRounded)]),
        (false, &[1, 5, 8], vec![(SUSPICIOUS, Check::RouterBiasAtZero)]),
    ] {
        let (dir, mut model) = (Dir::new(), Model::sound());
        biases(&mut model, round, layers);
        for folder in dir.both("damaged", &model) {
            assert_eq!(found(&examine(&folder, None)), expected);
        }
    }
}

#[test]
fn a_cut_of_another_size_shows_in_the_lengths_of_rows() {
    let expected = [(SUSPICIOUS, Check::MambaCut), (SUSPICIOUS, Check::MambaCut)];
    let [hf, _] = only(&expected, |model| mis_cut(model, |sections| joined(sections, 2)));
    assert!(hf.evidence.starts_with("read as cut for tp 2, the lengths of the rows of `mixer.in_proj.weight`"));
    assert!(hf.cause.contains("one after the other"), "{}", hf.cause);
    let [hf, _] = only(&expected, |model| {
        mis_cut(model, |sections| {
            let order = joined(sections, 2);
            (0..order.len()).map(|row| order.iter().position(|at| *at == row).expect("a permutation")).collect()
        });
    });
    assert!(hf.cause.contains("one slice of the whole"), "{}", hf.cause);
}

#[test]
fn parameters_of_heads_that_every_rank_wrote() {
    let [hf, _] = only(&[(BROKEN, Check::MambaReplicated)], |model| {
        let suffixes = ["mixer.A_log", "mixer.D", "mixer.dt_bias", "mixer.norm.weight"];
        for name in suffixes.map(|suffix| model.names("backbone.", suffix)).concat() {
            model.get(&name).change(|values| {
                let half = values.len() / 2;
                values.copy_within(..half, half);
            });
        }
    });
    assert_eq!(hf.tensors.len(), 16);
    assert!(hf.cause.starts_with("saved at tensor parallel size 2"), "{}", hf.cause);
}

/// Adds layers that guess: copies of the trunk's, or as an init leaves them.
fn with_mtp(model: &mut Model, trained: bool) {
    for (from, to) in [("backbone.layers.7.", "mtp.layers.0."), ("backbone.layers.8.", "mtp.layers.1.")] {
        for (seed, name) in (0..).zip(model.names(from, "")) {
            let mut tensor = model.tensors[&name].clone();
            match tensor.shape.as_slice() {
                [_, _] if !trained => tensor.set(&normal(seed, tensor.values().len(), 0.02)),
                [256] if !trained => tensor.change(|values| values.fill(1.0)),
                _ => {}
            }
            model.tensors.insert(name.replace(from, to), tensor);
        }
    }
    let norm = if trained { model.tensors["backbone.norm_f.weight"].values() } else { vec![1.0; 256] };
    for name in ["mtp.layers.0.enorm.weight", "mtp.layers.0.hnorm.weight", "mtp.layers.1.final_layernorm.weight"] {
        model.tensors.insert(name.to_owned(), Tensor::new(Dtype::Bfloat16, &[256], &norm));
    }
    let up = model.tensors["backbone.layers.3.mixer.up_proj.weight"].values();
    let values = if trained { up[..256 * 512].to_vec() } else { normal(9, 256 * 512, 0.02) };
    let eh_proj = Tensor::new(Dtype::Bfloat16, &[256, 512], &values);
    model.tensors.insert("mtp.layers.0.eh_proj.weight".to_owned(), eh_proj);
    model.config["num_nextn_predict_layers"] = 1.into();
}

#[test]
fn layers_that_guess_and_were_never_trained() {
    let [hf, _] = only(&[(BROKEN, Check::MtpAtInit)], |model| with_mtp(model, false));
    assert!(hf.evidence.starts_with("all 5 norms of MTP are exactly 1 everywhere; all"), "{}", hf.evidence);
    let expected = [(SUSPICIOUS, Check::EqualLayers), (SUSPICIOUS, Check::EqualLayers)];
    let [hf, _] = only(&expected, |model| with_mtp(model, true));
    assert!(hf.cause.starts_with("MTP was initialized"), "{}", hf.cause);
}

#[test]
fn what_is_missing_keeps_nothing_else_from_being_found() {
    let (dir, mut model) = (Dir::new(), Model::sound());
    model.tensors.remove("backbone.layers.0.mixer.conv1d.weight");
    model.get("backbone.norm_f.weight").change(|values| values[0] = f32::NAN);
    let folder = dir.path("hf");
    model.write(&folder);
    let report = examine(&folder, None);
    assert_eq!(found(&report), [(BROKEN, Check::Structure), (BROKEN, Check::NotFinite), NOTE]);
    assert_eq!(report.findings[0].tensors, ["backbone.layers.0.mixer.conv1d.weight"]);
    // A config that travels and asks for layers that are not there.
    let [_, mc] = dir.both("other", &Model::sound());
    model.config["num_nextn_predict_layers"] = 1.into();
    std::fs::write(mc.join("release/hf/config.json"), model.config.to_string()).expect("a writable folder");
    let report = examine(&mc, None);
    assert_eq!(found(&report), [(BROKEN, Check::Structure), NOTE]);
    assert!(report.findings[0].tensors.contains(&"mtp.layers.0.eh_proj.weight".to_owned()));
    assert_eq!(report.tensors, 167);
}
