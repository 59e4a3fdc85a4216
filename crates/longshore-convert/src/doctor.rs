//! `doctor`: what in the weights makes a model answer at chance, found without running it.
//!
//! Every tensor is read once, in bounded memory, and reduced to statistics and hashes (`census`); each check looks at
//! these alone. Names in findings are those of the checkpoint. What is measured and where its threshold lies is in
//! `docs/commands/doctor.md`. What a fresh initialization looks like is read from Megatron-LM `core/ssm/mamba_mixer.py`
//! and transformers `models/nemotron_h`.

mod against;
mod census;
mod copies;
mod cut;
mod fresh;
mod norms;
mod router;
mod values;

use crate::Result;
use crate::error::Problem;
use crate::progress::Progress;
use crate::source::Source;
use census::{Census, Stats};
use longshore_ckpt::{Catalog, Format};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

pub use against::Differing;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// No trained model has this.
    Broken,
    /// A trained model hardly has this.
    Suspicious,
    /// Worth knowing.
    Note,
}

impl Severity {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Broken => "broken",
            Self::Suspicious => "suspicious",
            Self::Note => "note",
        }
    }
}

/// What was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "`docs/commands/doctor.md` describes each")]
pub enum Check {
    Structure,
    NotFinite,
    AllZero,
    ZeroRows,
    NormsAtOne,
    NormsAtZero,
    FreshInit,
    MambaAtInit,
    MtpAtInit,
    EqualExperts,
    EqualLayers,
    EqualVocabulary,
    RouterBiasAtZero,
    RouterBiasRounded,
    MambaCut,
    MambaReplicated,
    QkvOrder,
    RowOrder,
    ExpertOrder,
    OtherTensor,
    Rounded,
    OtherValues,
}

impl Check {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Structure => "structure",
            Self::NotFinite => "not_finite",
            Self::AllZero => "all_zero",
            Self::ZeroRows => "zero_rows",
            Self::NormsAtOne => "norms_at_one",
            Self::NormsAtZero => "norms_at_zero",
            Self::FreshInit => "fresh_init",
            Self::MambaAtInit => "mamba_at_init",
            Self::MtpAtInit => "mtp_at_init",
            Self::EqualExperts => "equal_experts",
            Self::EqualLayers => "equal_layers",
            Self::EqualVocabulary => "equal_vocabulary",
            Self::RouterBiasAtZero => "router_bias_at_zero",
            Self::RouterBiasRounded => "router_bias_rounded",
            Self::MambaCut => "mamba_cut",
            Self::MambaReplicated => "mamba_replicated",
            Self::QkvOrder => "qkv_order",
            Self::RowOrder => "row_order",
            Self::ExpertOrder => "expert_order",
            Self::OtherTensor => "other_tensor",
            Self::Rounded => "rounded",
            Self::OtherValues => "other_values",
        }
    }
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What found it.
    pub check: Check,
    /// The tensors, by their names in the checkpoint; `name[3]` is expert 3 of a tensor of experts.
    pub tensors: Vec<String>,
    /// What was measured, in numbers.
    pub evidence: String,
    /// What most likely did it.
    pub cause: String,
    /// What to do.
    pub remedy: String,
}

/// The outcome.
#[derive(Clone, Debug, Serialize)]
pub struct DoctorReport {
    /// Tensors that were examined, an expert counting as one for each of its linears.
    pub tensors: u64,
    /// Bytes of theirs, in the types that they are stored in.
    pub bytes: u64,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
    /// How the checkpoint differs from the other, tensor by tensor; empty without one.
    pub differing: Vec<Differing>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

impl DoctorReport {
    /// Whether nothing is broken or suspicious.
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity == Severity::Note)
    }
}

/// Examines the checkpoint at `path`; with `against`, also in what it differs from that one.
pub fn doctor(path: &Path, against: Option<&Path>, threads: usize, progress: &dyn Progress) -> Result<DoctorReport> {
    // A folder that is known to be right also says how many rows of a padded vocabulary count.
    let base = against.filter(|_| is_format(path, Format::TorchDist)).filter(|a| is_format(a, Format::Safetensors));
    let (source, problems) = Source::open_sound(path, base, false)?;
    let mut findings = structure(problems);
    let mut notes: Vec<String> = source.model.notes.iter().map(|note| note.text.clone()).collect();
    if source.recipes().is_empty() {
        notes.push("no value was read: the tensors do not fit the model".to_owned());
    }
    let census = Census::take(&source, "Examining", threads, progress)?;
    values::check(&census, &mut findings);
    norms::check(&census, &mut findings);
    fresh::check(&census, &mut findings);
    copies::check(&census, &mut findings);
    router::check(&census, &mut findings);
    cut::check_replicated(&census, &mut findings);
    let mut differing = Vec::new();
    match against {
        None => cut::check_statistics(&census, &mut findings),
        Some(path) => {
            let right = Source::open(path, None, true)?;
            differing = against::check(&census, &right, threads, progress, &mut findings)?;
        }
    }
    findings.sort_by_key(|finding| (finding.severity, finding.check));
    let (tensors, bytes) = (census.pieces.len() as u64, census.bytes());
    Ok(DoctorReport { tensors, bytes, findings, differing, notes })
}

fn is_format(path: &Path, format: Format) -> bool {
    Catalog::open(path).is_ok_and(|catalog| catalog.format == format)
}

/// What the tables say: tensors that are missing, too many or of another shape.
fn structure(problems: Vec<Problem>) -> Vec<Finding> {
    let mut groups: BTreeMap<&str, (Vec<String>, String)> = BTreeMap::new();
    for problem in problems {
        let said = problem.to_string();
        let (what, tensor) = match problem {
            Problem::Missing { tensor, .. } => ("are missing", tensor),
            Problem::Unmapped { tensor, .. } => ("are of no part of the model that the config describes", tensor),
            Problem::Shape { tensor, .. } => ("have another shape than the config says", tensor),
            Problem::Dtype { tensor, .. } => ("are no floats", tensor),
            Problem::Cover { tensor, .. } | Problem::Damaged { tensor, .. } => ("cannot be read", tensor),
            Problem::Config { field, .. } => ("are fields of the config that cannot be used", field),
            Problem::Loss { tensor, .. } | Problem::Quantize { tensor, .. } => {
                ("hold values that cannot be read", tensor)
            }
            Problem::Mtp { config, .. } => ("says MTP, of which there is no tensor", config),
            Problem::Option { option, .. } => ("do not fit the model", option),
        };
        let group = groups.entry(what).or_insert_with(|| (Vec::new(), said));
        group.0.push(tensor);
    }
    let finding = |(what, (tensors, first)): (&str, (Vec<String>, String))| {
        Finding {
        severity: if what.starts_with("are of no part") { Severity::Suspicious } else { Severity::Broken },
        check: Check::Structure,
        evidence: format!("{} {what}; the first: {}", tensors.len(), first.split_whitespace().collect::<Vec<_>>().join(" ")),
        tensors,
        cause: "the checkpoint is not complete, or not of this config; a loader that is not strict leaves such parameters at init".into(),
        remedy: "compare config and tensors with `longshore inspect`, and make or fetch the checkpoint again".into(),
    }
    };
    groups.into_iter().map(finding).collect()
}

/// `3 of 23`
fn of(some: usize, all: usize) -> String {
    if some == all { format!("all {all}") } else { format!("{some} of {all}") }
}

/// The smallest and the largest, rounded for people.
fn range(values: impl Iterator<Item = f64>) -> String {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    let (low, high) = (format!("{low:.3}"), format!("{high:.3}"));
    if low == high { low } else { format!("{low} to {high}") }
}

/// Rows of a tensor's values that are NaN or infinite are in no statistic.
fn finite(stats: &Stats) -> bool {
    stats.not_finite == 0
}
