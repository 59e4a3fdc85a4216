//! The attributes of every quantizer of a model, after all entries of a config.

use super::glob::Glob;
use super::parts::is_routine;
use super::{ConfigError, Entry, QuantConfig};
use crate::Attributes;

/// A quantizer of a model, before a config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizerSite {
    /// Its full name, e.g. `decoder.layers.0.mixer.in_proj.weight_quantizer`.
    pub name: String,
    /// The registered class of its module, e.g. `nn.Linear`; empty if none is.
    pub parent_class: &'static str,
}

/// What a config makes of the quantizers of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolution {
    /// Per site: its attributes, more than one where it quantizes several times in sequence.
    pub stages: Vec<Vec<Attributes>>,
    /// Per site: the last entry that matched.
    pub decided_by: Vec<Option<usize>>,
    /// The entries that matched nothing.
    pub unmatched: Vec<usize>,
    /// Those of them that are not of the lists which end most configs, so that the user should hear of them.
    pub unexpected: Vec<usize>,
}

/// An entry with its pattern.
struct Rule<'a> {
    index: usize,
    entry: &'a Entry,
    glob: Glob,
}

/// A quantizer while entries are applied.
struct Quantizer {
    stages: Vec<Attributes>,
    sequence: bool,
}

impl QuantConfig {
    /// Applies all entries in order: one with `cfg` replaces all attributes, one without only switches.
    pub fn resolve(&self, sites: &[QuantizerSite]) -> Result<Resolution, ConfigError> {
        let rules: Vec<_> = self
            .entries
            .iter()
            .enumerate()
            .map(|(index, entry)| Rule { index, entry, glob: Glob::new(&entry.quantizer_name) })
            .collect();
        let mut matched = vec![false; rules.len()];
        let mut stages = Vec::with_capacity(sites.len());
        let mut decided_by = Vec::with_capacity(sites.len());
        for site in sites {
            let mut quantizer = Quantizer { stages: vec![fresh(site)], sequence: false };
            let mut decided = None;
            for rule in &rules {
                if rule.apply(site, &mut quantizer)? {
                    matched[rule.index] = true;
                    decided = Some(rule.index);
                }
            }
            stages.push(quantizer.stages);
            decided_by.push(decided);
        }
        self.check_weights(sites, &stages)?;
        let unmatched: Vec<_> = (0..rules.len()).filter(|&index| !matched[index]).collect();
        let unexpected = unmatched.iter().copied().filter(|&index| !is_routine(&self.entries[index])).collect();
        Ok(Resolution { stages, decided_by, unmatched, unexpected })
    }

    /// ModelOpt 0.47 refuses a config that asks for quantized weights where none is. What a pattern asks for is what its last
    /// entry says.
    fn check_weights(&self, sites: &[QuantizerSite], stages: &[Vec<Attributes>]) -> Result<(), ConfigError> {
        let is_last = |index: usize, name: &str| !self.entries[index + 1..].iter().any(|e| e.quantizer_name == name);
        let asks = |entry: &Entry| {
            let name = entry.quantizer_name.as_str();
            entry.enable && (name.contains("weight_quantizer") || Glob::new(name).matches("weight_quantizer"))
        };
        let mut asking: Vec<_> = self
            .entries
            .iter()
            .enumerate()
            .filter(|(index, entry)| asks(entry) && is_last(*index, &entry.quantizer_name))
            .map(|(_, entry)| format!("`{}`", entry.quantizer_name))
            .collect();
        let on = |(site, stages): (&QuantizerSite, &Vec<Attributes>)| {
            site.name.contains("weight_quantizer") && stages.iter().any(|stage| stage.enable)
        };
        if asking.is_empty() || sites.iter().zip(stages).any(on) {
            return Ok(());
        }
        asking.sort();
        Err(ConfigError::NoWeights(asking.join(", ")))
    }
}

impl Rule<'_> {
    /// Whether it matched.
    fn apply(&self, site: &QuantizerSite, quantizer: &mut Quantizer) -> Result<bool, ConfigError> {
        let class = self.entry.parent_class.as_deref();
        let stages = if quantizer.sequence { quantizer.stages.len() } else { 0 };
        let mut matched = false;
        if self.matches(&site.name) && class.is_none_or(|class| class == site.parent_class) {
            matched = true;
            self.apply_whole(site, quantizer);
        }
        // The stages of a sequence have names of their own, and a parent that is of no class that has a name. Those of a
        // sequence that this entry has just made or ended are not looked at.
        if class.is_some() || !quantizer.sequence {
            return Ok(matched);
        }
        for stage in 0..stages.min(quantizer.stages.len()) {
            if !self.matches(&format!("{}.{stage}", site.name)) {
                continue;
            }
            matched = true;
            match self.entry.cfg.as_slice() {
                [] => switch(&mut quantizer.stages[stage], self.entry.enable),
                [one] => quantizer.stages[stage] = Attributes { enable: self.entry.enable, ..one.clone() },
                _ => return Err(ConfigError::Nested(self.index, site.name.clone())),
            }
        }
        Ok(matched)
    }

    fn apply_whole(&self, site: &QuantizerSite, quantizer: &mut Quantizer) {
        let enable = self.entry.enable && !is_hard_disabled(site);
        let set = |attributes: &Attributes| Attributes { enable, ..attributes.clone() };
        match self.entry.cfg.as_slice() {
            [] => quantizer.stages.iter_mut().for_each(|stage| switch(stage, enable)),
            [one] => *quantizer = Quantizer { stages: vec![set(one)], sequence: false },
            all if quantizer.sequence => {
                quantizer.stages.iter_mut().zip(all).for_each(|(stage, one)| *stage = set(one));
            }
            all => *quantizer = Quantizer { stages: all.iter().map(set).collect(), sequence: true },
        }
    }

    fn matches(&self, name: &str) -> bool {
        self.glob.matches_quantizer(name)
    }
}

impl Glob {
    /// Whether it is about the quantizer `name`, whose experts it need not number.
    pub fn matches_quantizer(&self, name: &str) -> bool {
        self.matches(name) || without_indices(name).is_some_and(|name| self.matches(&name))
    }
}

/// A quantizer that is only switched off forgets its rotation.
fn switch(attributes: &mut Attributes, enable: bool) {
    attributes.enable = enable;
    attributes.rotate &= enable;
}

/// Inputs of embeddings are ids.
fn is_hard_disabled(site: &QuantizerSite) -> bool {
    site.parent_class == "nn.Embedding" && site.name.ends_with("input_quantizer")
}

/// A quantizer before any entry: eight-bit integers, on unless it is for outputs; weights of linear layers and convolutions
/// with a scale per row.
fn fresh(site: &QuantizerSite) -> Attributes {
    let rows = site.name.ends_with(".weight_quantizer") && is_linear(site.parent_class);
    let enable = !is_hard_disabled(site) && !site.name.ends_with(".output_quantizer");
    Attributes { axis: rows.then_some(0), enable, ..Attributes::default() }
}

fn is_linear(class: &str) -> bool {
    class == "nn.Linear"
        || class == "te_mcore_Linear"
        || class.starts_with("nn.Conv")
        || class.ends_with("ParallelLinear")
}

/// The name without the index of an expert: `weight_quantizers.3` and `weight_quantizer.3` become `weight_quantizer`. `None`
/// where there is none.
fn without_indices(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    let mut rest = name.split('.').peekable();
    let mut changed = false;
    while let Some(part) = rest.next() {
        let single = part.strip_suffix('s').unwrap_or(part);
        let is_list = single.ends_with("weight_quantizer") || single.ends_with("input_quantizer");
        let indexed = |next: &&str| !next.is_empty() && next.bytes().all(|b| b.is_ascii_digit());
        if is_list && rest.peek().is_some_and(indexed) {
            rest.next();
            parts.push(single);
            changed = true;
        } else {
            parts.push(part);
        }
    }
    changed.then(|| parts.join("."))
}
