//! Damage that shows beside the checkpoint it was made from.

use crate::alone::{joined, mis_cut, normal, untrained};
use crate::damaged::{Dir, Model, NOTE, examine, found};
use longshore_ckpt::Dtype;
use longshore_convert::doctor::{Check, DoctorReport, Severity};

const BROKEN: Severity = Severity::Broken;

/// Examines the damaged model against the sound one, in both formats, and the other way to name the formats.
fn compared(expected: &[(Severity, Check)], damage: impl FnOnce(&mut Model)) -> DoctorReport {
    against(&Model::sound(), expected, damage)
}

fn against(sound: &Model, expected: &[(Severity, Check)], damage: impl FnOnce(&mut Model)) -> DoctorReport {
    let dir = Dir::new();
    let mut model = sound.clone();
    damage(&mut model);
    let right = dir.both("sound", sound);
    let mut expected = [expected, &[NOTE]].concat();
    expected.sort_unstable();
    let mut reports: Vec<DoctorReport> = Vec::new();
    for damaged in dir.both("damaged", &model) {
        for sound in &right {
            let report = examine(&damaged, Some(sound));
            assert_eq!(found(&report), expected, "{:#?}", report.findings);
            reports.push(report);
        }
    }
    reports.swap_remove(0)
}

/// Every differing tensor is explained by this.
fn all_explained_by(report: &DoctorReport, check: Check, count: usize) {
    assert!(report.differing.iter().all(|d| d.explained_by == check), "{:#?}", report.differing);
    assert_eq!(report.differing.len(), count);
}

#[test]
fn equal_checkpoints_differ_in_nothing() {
    all_explained_by(&compared(&[], |_| {}), Check::OtherValues, 0);
}

#[test]
fn a_cut_is_proven() {
    let report = compared(&[(BROKEN, Check::MambaCut)], |model| mis_cut(model, |sections| joined(sections, 2)));
    assert!(report.findings[0].evidence.contains("as cut for tp 2"), "{}", report.findings[0].evidence);
    assert_eq!(report.findings[0].tensors.len(), 12);
    assert!(report.differing.iter().all(|d| d.explained_by == Check::MambaCut), "{:#?}", report.differing);
}

#[test]
fn queries_keys_and_values_that_were_not_taken_apart() {
    let names = ["q", "k", "v"].map(|part| format!("backbone.layers.2.mixer.{part}_proj.weight"));
    let report = compared(&[(BROKEN, Check::QkvOrder)], |model| {
        // The rows of all three, cut as if two groups of two queries, a key and a value of 64 rows were interleaved.
        let all: Vec<f32> = names.iter().flat_map(|name| model.tensors[name].values()).collect();
        let group = |g: usize, rows: std::ops::Range<usize>| {
            all[(g * 256 + rows.start) * 256..(g * 256 + rows.end) * 256].to_vec()
        };
        for (name, rows) in names.iter().zip([0..128, 128..192, 192..256]) {
            model.get(name).set(&[group(0, rows.clone()), group(1, rows)].concat());
        }
    });
    all_explained_by(&report, Check::QkvOrder, 1);
}

fn swap(model: &mut Model, a: &str, b: &str) {
    let [first, second] = [a, b].map(|name| model.tensors[name].clone());
    (*model.get(a), *model.get(b)) = (second, first);
}

#[test]
fn experts_under_each_others_numbers() {
    let report = compared(&[(BROKEN, Check::ExpertOrder)], |model| {
        for part in ["up", "down"] {
            let name = |e| format!("backbone.layers.5.mixer.experts.{e}.{part}_proj.weight");
            swap(model, &name(1), &name(6));
        }
    });
    assert!(report.findings[0].evidence.contains("1 holds 6, 6 holds 1"), "{}", report.findings[0].evidence);
    all_explained_by(&report, Check::ExpertOrder, 4);
}

#[test]
fn tensors_under_each_others_names() {
    let name = |layer| format!("backbone.layers.{layer}.mixer.o_proj.weight");
    let report = compared(&[(BROKEN, Check::OtherTensor)], |model| swap(model, &name(2), &name(7)));
    all_explained_by(&report, Check::OtherTensor, 2);
}

#[test]
fn rows_in_any_order() {
    let report = compared(&[(BROKEN, Check::RowOrder)], |model| {
        let order: Vec<usize> = (0..768).map(|row| row ^ 1).collect();
        model.get("backbone.layers.9.mixer.up_proj.weight").reorder(&order);
    });
    all_explained_by(&report, Check::RowOrder, 1);
}

#[test]
fn norms_at_one_explain_that_they_differ() {
    let report = compared(&[(Severity::Suspicious, Check::NormsAtOne)], |model| {
        model.get("backbone.layers.4.norm.weight").change(|values| values.fill(1.0));
    });
    all_explained_by(&report, Check::NormsAtOne, 1);
}

#[test]
fn one_other_value_is_counted() {
    let report = compared(&[(Severity::Suspicious, Check::OtherValues)], |model| {
        model.get("lm_head.weight").change(|values| values[7] += 1.0);
    });
    let values = report.differing[0].values.expect("compared values");
    assert_eq!((report.differing.len(), values.count), (1, 1));
    assert!((0.9..=1.1).contains(&values.max_abs), "{values:?}");
}

#[test]
fn what_both_have_explains_no_difference() {
    let mut fresh = Model::sound();
    untrained(&mut fresh);
    let expected = [Check::FreshInit, Check::OtherValues].map(|check| (Severity::Suspicious, check));
    let report = against(&fresh, &expected, |model| {
        model.get("lm_head.weight").change(|values| values[7] += 0.01);
    });
    all_explained_by(&report, Check::OtherValues, 1);
}

#[test]
fn rounding_through_bfloat16_is_a_note() {
    let mut exact = Model::sound();
    let steps = "backbone.layers.0.mixer.dt_bias";
    exact.get(steps).dtype = Dtype::Float32;
    exact.get(steps).set(&normal(3, 8, 1.0));
    let report = against(&exact, &[(Severity::Note, Check::Rounded)], |model| {
        model.get(steps).change(|values| values.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32()));
    });
    all_explained_by(&report, Check::Rounded, 1);
}

#[test]
fn a_model_with_fewer_layers_lacks_tensors() {
    let dir = Dir::new();
    let (sound, mut model) = (Model::sound(), Model::sound());
    model.tensors.retain(|name, _| !name.starts_with("backbone.layers.11."));
    model.config["layers_block_type"].as_array_mut().expect("layers").pop();
    let [hf, _] = dir.both("sound", &sound);
    let folder = dir.path("less");
    model.write(&folder);
    let report = examine(&folder, Some(&hf));
    assert_eq!(found(&report), [(BROKEN, Check::Structure), NOTE]);
    assert_eq!(report.findings[0].tensors.len(), 21);
}
