//! Mappings: the declaration of how one architecture's weights correspond on the two sides.
//!
//! A [`Mapping`] is a list of [`Tie`]s. A tie is an *equality*, not a function: import reads it one way, export the other,
//! so there is one table per architecture and no inverse to keep in step. Rules are data, written with [`Scope`]'s words;
//! nothing is a closure or a pattern. See `docs/mapping.md`.

use crate::arch::SpecKeys;
use crate::options::NormKeys;
use crate::region::{Region, check_tiling};
use std::collections::BTreeMap;
use std::panic::Location;

/// The dtype of a parameter where it does not simply follow the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Precision {
    /// The params dtype.
    #[default]
    Params,
    /// Float32 on the Megatron side whatever the params dtype (`A_log`, `D`).
    McFloat32,
    /// Float32 on both sides (`expert_bias`).
    Float32,
    /// Float32 on the Megatron side if the source has float32 (`dt_bias`).
    SourceFloat32,
}

/// Where in the model a Megatron tensor lives; decides which files it shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Before the first layer.
    First,
    /// In this layer of the trunk.
    Layer(u64),
    /// After the last layer: final norm, output layer, MTP.
    Last,
}

/// A tensor of one side, as the table declares it.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared {
    /// Shape, in elements.
    pub shape: Vec<u64>,
    /// Dtype rule.
    pub precision: Precision,
    /// The axis that tensor parallelism cuts (Megatron side).
    pub tp_axis: Option<usize>,
    /// Whether the leading axis counts experts, one chunk each (Megatron side).
    pub experts: bool,
    /// Where it lives (Megatron side).
    pub place: Place,
    /// The line of the table that declares it.
    pub rule: &'static Location<'static>,
}

/// `hf.0[hf.1] == mc.0[mc.1]`, element for element in row-major order of each region.
#[derive(Clone, Debug)]
pub struct Tie {
    /// Tensor and region of the Hugging Face side.
    pub hf: (String, Region),
    /// Tensor and region of the Megatron side.
    pub mc: (String, Region),
    /// The word of the vocabulary that made it.
    pub word: &'static str,
    /// The line of the architecture's table; errors quote it.
    pub rule: &'static Location<'static>,
}

/// A region of a Megatron tensor that holds zeros and has no counterpart: padded vocabulary rows.
#[derive(Clone, Debug)]
pub struct Fill {
    /// Tensor and region.
    pub mc: (String, Region),
    /// The line of the architecture's table.
    pub rule: &'static Location<'static>,
}

/// All ties, fills and objects of one model.
#[derive(Clone, Debug, Default)]
pub struct Mapping {
    /// The equalities.
    pub ties: Vec<Tie>,
    /// The constants.
    pub fills: Vec<Fill>,
    /// Declared tensors of the Hugging Face side.
    pub hf: BTreeMap<String, Declared>,
    /// Declared tensors of the Megatron side.
    pub mc: BTreeMap<String, Declared>,
    /// Opaque objects a Megatron model asks for (`KEY._extra_state/shard_o_n`), with the place of their module.
    pub objects: BTreeMap<String, Place>,
    /// Hugging Face names in the order of the table, the order in which releases store them.
    pub hf_order: Vec<String>,
}

impl Mapping {
    /// Whether the regions of every tensor tile it exactly once, on both sides; otherwise every tensor they do not.
    pub fn check(&self) -> Result<(), Vec<(String, String)>> {
        let mut hf: BTreeMap<&str, Vec<&Region>> = self.hf.keys().map(|k| (k.as_str(), vec![])).collect();
        let mut mc: BTreeMap<&str, Vec<&Region>> = self.mc.keys().map(|k| (k.as_str(), vec![])).collect();
        for tie in &self.ties {
            hf.entry(&tie.hf.0).or_default().push(&tie.hf.1);
            mc.entry(&tie.mc.0).or_default().push(&tie.mc.1);
        }
        for fill in &self.fills {
            mc.entry(&fill.mc.0).or_default().push(&fill.mc.1);
        }
        let sides = [(&self.hf, hf), (&self.mc, mc)];
        let bad: Vec<_> = sides
            .into_iter()
            .flat_map(|(declared, regions)| {
                regions.into_iter().filter_map(move |(name, regions)| {
                    let len = declared.get(name)?.shape.iter().product();
                    check_tiling(len, regions).err().map(|what| (name.to_string(), what))
                })
            })
            .collect();
        if bad.is_empty() { Ok(()) } else { Err(bad) }
    }
}

/// Writes the rules of one module: `hf` and `mc` are its prefixes on the two sides.
pub struct Scope<'a> {
    /// The mapping that grows.
    pub out: &'a mut Mapping,
    /// Prefix of the Hugging Face names.
    pub hf: String,
    /// Prefix of the Megatron names.
    pub mc: String,
    /// Where the module lives.
    pub place: Place,
    /// The layout of keys.
    pub keys: SpecKeys,
}

/// The rule just written, for what else is true of its Megatron tensors.
pub struct Rule<'a> {
    out: &'a mut Mapping,
    mc: Vec<String>,
    hf: Vec<String>,
}

impl Rule<'_> {
    /// Tensor parallelism cuts `axis` of the Megatron tensors.
    pub fn cut(self, axis: usize) -> Self {
        for name in &self.mc {
            if let Some(declared) = self.out.mc.get_mut(name) {
                declared.tp_axis = Some(axis);
            }
        }
        self
    }

    /// Sets the dtype rule of both sides.
    pub fn precision(self, precision: Precision) -> Self {
        for name in &self.mc {
            if let Some(declared) = self.out.mc.get_mut(name) {
                declared.precision = precision;
            }
        }
        for name in &self.hf {
            if let Some(declared) = self.out.hf.get_mut(name) {
                declared.precision = precision;
            }
        }
        self
    }
}

impl Scope<'_> {
    fn declare(&mut self, hf: bool, name: String, shape: Vec<u64>, experts: bool, rule: &'static Location<'static>) {
        let declared =
            Declared { shape, precision: Precision::default(), tp_axis: None, experts, place: self.place, rule };
        let side = if hf { &mut self.out.hf } else { &mut self.out.mc };
        if side.insert(name.clone(), declared).is_none() && hf {
            self.out.hf_order.push(name);
        }
    }

    fn tie(
        &mut self,
        word: &'static str,
        hf: (String, Region),
        mc: (String, Region),
        rule: &'static Location<'static>,
    ) {
        debug_assert_eq!(hf.1.len(), mc.1.len(), "{} vs {}", hf.0, mc.0);
        self.out.ties.push(Tie { hf, mc, word, rule });
    }

    fn rule(&mut self, hf: Vec<String>, mc: Vec<String>) -> Rule<'_> {
        Rule { out: self.out, mc, hf }
    }

    /// The same elements under another name.
    #[track_caller]
    pub fn rename(&mut self, hf: &str, mc: &str, shape: &[u64]) -> Rule<'_> {
        let rule = Location::caller();
        let (hf, mc) = (format!("{}{hf}", self.hf), format!("{}{mc}", self.mc));
        let len = shape.iter().product();
        self.declare(true, hf.clone(), shape.to_vec(), false, rule);
        self.declare(false, mc.clone(), shape.to_vec(), false, rule);
        self.tie("rename", (hf.clone(), Region::all(len)), (mc.clone(), Region::all(len)), rule);
        self.rule(vec![hf], vec![mc])
    }

    /// One Hugging Face tensor, several Megatron tensors `mc.<part>`: its rows in this order. `row` is the shape of a row.
    #[track_caller]
    pub fn split(&mut self, hf: &str, mc: &str, parts: &[(&str, u64)], row: &[u64]) -> Rule<'_> {
        let rule = Location::caller();
        let hf = format!("{}{hf}", self.hf);
        let rows: u64 = parts.iter().map(|p| p.1).sum();
        let row_len: u64 = row.iter().product();
        let with_rows = |n: u64| std::iter::once(n).chain(row.iter().copied()).collect::<Vec<_>>();
        self.declare(true, hf.clone(), with_rows(rows), false, rule);
        let (mut start, mut names) = (0, Vec::new());
        for &(part, n) in parts {
            let mc = format!("{}{mc}.{part}", self.mc);
            self.declare(false, mc.clone(), with_rows(n), false, rule);
            let region = Region::rows(rows, start..start + n, row_len);
            self.tie("split", (hf.clone(), region), (mc.clone(), Region::all(n * row_len)), rule);
            start += n;
            names.push(mc);
        }
        self.rule(vec![hf], names)
    }

    /// Several Hugging Face tensors, one Megatron tensor: its rows are theirs, in this order. `row` is the shape of a row.
    #[track_caller]
    pub fn join(&mut self, parts: &[(&str, u64)], mc: &str, row: &[u64]) -> Rule<'_> {
        let rule = Location::caller();
        let mc = format!("{}{mc}", self.mc);
        let rows: u64 = parts.iter().map(|p| p.1).sum();
        let row_len: u64 = row.iter().product();
        let with_rows = |n: u64| std::iter::once(n).chain(row.iter().copied()).collect::<Vec<_>>();
        self.declare(false, mc.clone(), with_rows(rows), false, rule);
        let (mut start, mut names) = (0, Vec::new());
        for &(part, n) in parts {
            let hf = format!("{}{part}", self.hf);
            self.declare(true, hf.clone(), with_rows(n), false, rule);
            let region = Region::rows(rows, start..start + n, row_len);
            self.tie("join", (hf.clone(), Region::all(n * row_len)), (mc.clone(), region), rule);
            start += n;
            names.push(hf);
        }
        self.rule(names, vec![mc])
    }

    /// q, k and v interleaved per query group: `[kv_heads, heads/kv_heads q | 1 k | 1 v, head_dim, hidden]`.
    #[track_caller]
    pub fn qkv(&mut self, hf: [&str; 3], mc: &str, heads: u64, kv_heads: u64, head_dim: u64, hidden: u64) -> Rule<'_> {
        let rule = Location::caller();
        let (per_group, row_len) = (heads / kv_heads, head_dim * hidden);
        let mc = format!("{}{mc}", self.mc);
        self.declare(false, mc.clone(), vec![(heads + 2 * kv_heads) * head_dim, hidden], false, rule);
        let ranges = [0..per_group, per_group..per_group + 1, per_group + 1..per_group + 2];
        let mut names = Vec::new();
        for (name, range) in hf.into_iter().zip(ranges) {
            let name = format!("{}{name}", self.hf);
            let region = Region::grouped(kv_heads, per_group + 2, range, row_len);
            self.declare(true, name.clone(), vec![region.len() / hidden, hidden], false, rule);
            self.tie("qkv", (name.clone(), Region::all(region.len())), (mc.clone(), region), rule);
            names.push(name);
        }
        self.rule(names, vec![mc])
    }

    /// The linear `linear` of every expert, `hf(e)` on the Hugging Face side. On the Megatron side one tensor
    /// `{mc}.{linear}.weight` of `[experts, …]`, or `{mc}.{e}.{linear}.weight` for each, of which expert tensor parallelism
    /// cuts `axis`. With the extra states of each expert.
    #[track_caller]
    pub fn experts(
        &mut self,
        hf: impl Fn(u64) -> String,
        mc: &str,
        linear: &str,
        experts: u64,
        shape: &[u64],
        axis: usize,
    ) -> Rule<'_> {
        let rule = Location::caller();
        let len: u64 = shape.iter().product();
        let names: Vec<String> = (0..experts).map(|e| format!("{}{}", self.hf, hf(e))).collect();
        let mut stored = Vec::new();
        for (e, name) in (0..experts).zip(&names) {
            let (tensor, region, whole) = if self.keys.single_experts {
                self.state(&format!("{mc}.{e}.{linear}"));
                (format!("{}{mc}.{e}.{linear}.weight", self.mc), Region::all(len), shape.to_vec())
            } else {
                self.out
                    .objects
                    .insert(format!("{}{mc}.{linear}._extra_state/shard_{e}_{experts}", self.mc), self.place);
                let stacked = std::iter::once(experts).chain(shape.iter().copied()).collect();
                (format!("{}{mc}.{linear}.weight", self.mc), Region::all(len).in_slot(e, experts), stacked)
            };
            if self.keys.single_experts || e == 0 {
                self.declare(false, tensor.clone(), whole, !self.keys.single_experts, rule);
                stored.push(tensor.clone());
            }
            self.declare(true, name.clone(), shape.to_vec(), false, rule);
            self.tie("experts", (name.clone(), Region::all(len)), (tensor, region), rule);
        }
        let single = self.keys.single_experts;
        let rule = self.rule(names, stored);
        if single { rule.cut(axis) } else { rule }
    }

    /// A pre-norm: module `separate` of its own, or fused into the linear `fused_into` (never for `None`).
    #[track_caller]
    pub fn norm(&mut self, hf: &str, separate: &str, fused_into: Option<&str>, hidden: u64) {
        let rule = Location::caller();
        let (hf, mc) = match (self.keys.norms, fused_into) {
            (NormKeys::Fused, Some(linear)) => (hf, format!("{linear}.layer_norm_weight")),
            _ => {
                if self.keys.norm_states {
                    self.state(separate);
                }
                (hf, format!("{separate}.weight"))
            }
        };
        let (hf, mc) = (format!("{}{hf}", self.hf), format!("{}{mc}", self.mc));
        self.declare(true, hf.clone(), vec![hidden], false, rule);
        self.declare(false, mc.clone(), vec![hidden], false, rule);
        self.tie("norm", (hf, Region::all(hidden)), (mc, Region::all(hidden)), rule);
    }

    /// A tensor with a token a row; on the Megatron side zero rows may follow up to `padded`.
    #[track_caller]
    pub fn vocabulary(&mut self, hf: &str, mc: &str, rows: u64, padded: u64, hidden: u64) -> Rule<'_> {
        let rule = Location::caller();
        let (hf, mc) = (format!("{}{hf}", self.hf), format!("{}{mc}", self.mc));
        self.declare(true, hf.clone(), vec![rows, hidden], false, rule);
        self.declare(false, mc.clone(), vec![padded, hidden], false, rule);
        let region = Region::rows(padded, 0..rows, hidden);
        self.tie("vocabulary", (hf.clone(), Region::all(rows * hidden)), (mc.clone(), region), rule);
        if padded > rows {
            self.out.fills.push(Fill { mc: (mc.clone(), Region::rows(padded, rows..padded, hidden)), rule });
        }
        self.rule(vec![hf], vec![mc])
    }

    /// The extra state of a module.
    pub fn state(&mut self, module: &str) {
        self.out.objects.insert(format!("{}{module}._extra_state/shard_0_1", self.mc), self.place);
    }
}
