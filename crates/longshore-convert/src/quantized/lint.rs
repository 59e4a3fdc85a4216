//! What inference engines would refuse, or silently compute wrongly, in a quantized Hugging Face folder.
//!
//! The rules ([`rule`]) are read from the loaders of vLLM, `SGLang` and TensorRT-LLM; every rule names its source. The last
//! two have only the rules whose source was read: no finding for these is no promise. Names are those of the files:
//! engines rename modules, exclusions and `quantized_layers` alike. Only tensors of one element are read.

mod described;
mod folder;
mod modules;
pub mod rule;
mod scales;
mod structure;

pub use folder::lint_folder;

use crate::Result;
use described::Described;
use longshore_ckpt::Dtype;
use modules::Module;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Dtype and shape of every tensor by name.
pub type Tensors = BTreeMap<String, (Dtype, Vec<u64>)>;

/// Reads the only element of a tensor.
pub type ReadScalar<'a> = dyn FnMut(&str) -> Result<f32> + 'a;

/// What becomes of a folder with this finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The engine refuses it, or computes with wrong weights.
    Reject,
    /// It loads, less exact than it could be, or not everywhere.
    Warn,
}

/// Whose loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// vLLM.
    Vllm,
    /// `SGLang`.
    Sglang,
    /// TensorRT-LLM.
    TensorRtLlm,
}

impl Engine {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Vllm, Self::Sglang, Self::TensorRtLlm];

    /// As its makers write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vLLM",
            Self::Sglang => "SGLang",
            Self::TensorRtLlm => "TensorRT-LLM",
        }
    }
}

/// Something that an engine would not like.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// For whom.
    pub engine: Engine,
    /// One of [`rule`].
    pub rule: &'static str,
    /// The first module, name or field that it is about.
    pub subject: String,
    /// How many more there are of which the same can be said.
    pub more: usize,
    /// What is wrong, and what would be right.
    pub text: String,
}

/// All findings about the tensors of a folder and its config: the value of config.json's `quantization_config`, the content
/// of `hf_quant_config.json`, or null where there is neither. The worst come first.
pub fn lint(tensors: &Tensors, read: &mut ReadScalar<'_>, config: &Value) -> Result<Vec<Finding>> {
    let modules = modules::of(tensors);
    let mut found = Findings::default();
    let Some(described) = Described::of(config) else {
        structure::no_config(&modules, &mut found);
        return Ok(found.sorted());
    };
    described.check(&mut found);
    structure::check(&modules, &described, &mut found);
    scales::check(&modules, tensors, read, &described, &mut found)?;
    Ok(found.sorted())
}

/// The findings as a table with a head, a line each; empty where there are none.
pub fn table(findings: &[Finding]) -> String {
    let subject = |finding: &Finding| match finding.more {
        0 => finding.subject.escape_debug().to_string(),
        more => format!("{} and {more} more", finding.subject.escape_debug()),
    };
    let width = |longest: Option<usize>, head: &str| longest.unwrap_or(0).max(head.len());
    let rules = width(findings.iter().map(|f| f.rule.len()).max(), "rule");
    let subjects = width(findings.iter().map(|f| subject(f).chars().count()).max(), "subject");
    let mut text = String::new();
    if !findings.is_empty() {
        let _ = writeln!(text, "severity  engine        {:rules$}  {:subjects$}  finding", "rule", "subject");
    }
    for finding in findings {
        let severity = if finding.severity == Severity::Reject { "reject" } else { "warn" };
        let (engine, rule, subject) = (finding.engine.name(), finding.rule, subject(finding));
        let _ = writeln!(text, "{severity:8}  {engine:12}  {rule:rules$}  {subject:subjects$}  {}", finding.text);
    }
    text
}

/// Findings by what they say.
#[derive(Default)]
struct Findings(BTreeMap<(Severity, Engine, &'static str, String), Vec<String>>);

impl Findings {
    fn reject(&mut self, engine: Engine, rule: &'static str, subject: &str, text: impl Into<String>) {
        self.0.entry((Severity::Reject, engine, rule, text.into())).or_default().push(subject.to_owned());
    }

    fn warn(&mut self, engine: Engine, rule: &'static str, subject: &str, text: impl Into<String>) {
        self.0.entry((Severity::Warn, engine, rule, text.into())).or_default().push(subject.to_owned());
    }

    fn sorted(self) -> Vec<Finding> {
        let one = |((severity, engine, rule, text), subjects): (_, Vec<String>)| Finding {
            severity,
            engine,
            rule,
            more: subjects.len() - 1,
            subject: subjects.into_iter().next().unwrap_or_default(),
            text,
        };
        self.0.into_iter().map(one).collect()
    }
}

/// The linears that engines compute as one, by the last part of their names.
const FUSED: [&[&str]; 3] = [&["q_proj", "k_proj", "v_proj"], &["gate_proj", "up_proj"], &["w1", "w3"]];

/// The modules that an engine makes one linear of, and their common name: `….q_proj+k_proj+v_proj`.
fn fused<'a, 'm>(modules: &'a [Module<'m>]) -> Vec<(String, Vec<&'a Module<'m>>)> {
    let mut groups: BTreeMap<(&str, usize), Vec<&Module<'_>>> = BTreeMap::new();
    for module in modules {
        let Some((parent, last)) = module.name.rsplit_once('.') else { continue };
        if let Some(group) = FUSED.iter().position(|names| names.contains(&last)) {
            groups.entry((parent, group)).or_default().push(module);
        }
    }
    groups.retain(|_, members| members.len() > 1);
    groups
        .into_iter()
        .map(|((parent, group), members)| (format!("{parent}.{}", FUSED[group].join("+")), members))
        .collect()
}
