//! The folder `modelopt_state/`: what was done to the model, without anything that belongs to one module.

use super::write::plain;
use crate::error::Problem;
use crate::{Error, Result};
use longshore_ckpt::torch_dist::item::object_item;
use longshore_ckpt::torch_dist::metadata::{self, Metadata};
use longshore_ckpt::torch_dist::pickle::{Plain, View, dump};
use longshore_ckpt::torch_dist::{self, metadata_json};
use longshore_ckpt::{Catalog, fs};
use longshore_quant::config::{Glob, Plain as Value};
use std::path::Path;

/// The folder's name inside the checkpoint.
pub const FOLDER: &str = "modelopt_state";

/// Deepest nesting of a mode's config; ModelOpt's have 8.
const MAX_DEPTH: usize = 16;
/// Values of a config; a recipe of a large model has some thousands.
const MAX_VALUES: usize = 200_000;

/// The files of the folder for `state`, the dict of modes and version (`longshore_quant::config::modelopt_state`): a
/// torch_dist checkpoint without tensors, in the form that megatron-core up to 0.18 writes and all read.
pub fn files(state: Value) -> Vec<(String, Vec<u8>)> {
    vec![
        ("common.pt".into(), object_item(&dump(&plain(state)))),
        ("metadata.json".into(), metadata_json().to_vec()),
        (".metadata".into(), metadata::write(&Metadata::default())),
    ]
}

/// What a checkpoint says was done to its model.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Version of ModelOpt.
    pub version: String,
    /// The modes in the order in which they were applied, with their configs: `quantize`, `max_calibrate`.
    pub modes: Vec<(String, Plain)>,
}

/// An entry of the config that was applied.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedEntry<'a> {
    /// Pattern of quantizer names.
    pub quantizer_name: &'a str,
    /// Class of the module that it is limited to.
    pub parent_class: Option<&'a str>,
    /// Attributes, a list of them for a sequence; `None` where it only switches on or off.
    pub cfg: &'a Plain,
    /// Whether it switches on.
    pub enable: bool,
}

impl RecordedEntry<'_> {
    /// Whether it gives quantizers attributes, and not only switches them.
    pub(crate) fn sets_attributes(&self) -> bool {
        *self.cfg != Plain::None
    }

    /// Whether it makes several stages of a quantizer.
    pub(crate) fn is_sequence(&self) -> bool {
        matches!(self.cfg, Plain::List(_) | Plain::Tuple(_))
    }

    /// Whether it is about the quantizer `name` of a module of this class.
    pub(crate) fn matches(&self, name: &str, class: &str) -> bool {
        Glob::new(self.quantizer_name).matches_quantizer(name) && self.parent_class.is_none_or(|parent| parent == class)
    }
}

impl Record {
    /// Reads the folder of the checkpoint `folder`, if there is one: of megatron-core up to 0.18 or from 0.19.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FOLDER);
        if !fs::is_dir(&path) {
            return Ok(None);
        }
        let catalog: Catalog = torch_dist::open(&path)?;
        let root = catalog.common.as_ref().map(longshore_ckpt::torch_dist::pickle::Pickle::root);
        let read = root.ok_or_else(|| "there is no common state".to_owned()).and_then(Self::of);
        read.map(Some).map_err(|what| {
            let file = path.display().to_string();
            Error::Refused(vec![Problem::Config { file, field: "modelopt_state_dict".into(), what }])
        })
    }

    fn of(root: View<'_>) -> std::result::Result<Self, String> {
        let version = root.get("modelopt_version").and_then(View::as_str).ok_or("there is no modelopt_version")?;
        let listed = root.get("modelopt_state_dict").and_then(View::items).ok_or("there is no list of modes")?;
        let mut left = MAX_VALUES;
        let mut modes = Vec::new();
        for mode in listed {
            let mut pair = mode.items().filter(|pair| pair.len() == 2).ok_or("a mode is no pair")?;
            let (name, state) = (pair.next().and_then(View::as_str), pair.next().and_then(|s| s.get("config")));
            let (Some(name), Some(config)) = (name, state) else {
                return Err("a mode has no name or no config".into());
            };
            modes.push((name.to_owned(), value(config, 0, &mut left)?));
        }
        Ok(Self { version: version.to_owned(), modes })
    }

    /// The config of the first mode with this name.
    fn mode(&self, name: &str) -> Option<&Plain> {
        self.modes.iter().find(|(mode, _)| mode == name).map(|(_, config)| config)
    }

    /// The entries of the quantization config in their order; none where the model is not quantized.
    pub fn entries(&self) -> Vec<RecordedEntry<'_>> {
        let Some(Plain::List(entries)) = self.mode("quantize").and_then(|c| field(c, "quant_cfg")) else {
            return Vec::new();
        };
        let entry = |entry| {
            let Some(Plain::Str(quantizer_name)) = field(entry, "quantizer_name") else { return None };
            let parent_class = match field(entry, "parent_class") {
                Some(Plain::Str(class)) => Some(class.as_str()),
                _ => None,
            };
            let enable = field(entry, "enable") != Some(&Plain::Bool(false));
            Some(RecordedEntry {
                quantizer_name,
                parent_class,
                cfg: field(entry, "cfg").unwrap_or(&Plain::None),
                enable,
            })
        };
        entries.iter().filter_map(entry).collect()
    }

    /// The algorithm as the config states it: a name, a dict, a list of either, or `None`.
    pub fn algorithm(&self) -> Option<&Plain> {
        field(self.mode("quantize")?, "algorithm")
    }
}

fn field<'a>(value: &'a Plain, name: &str) -> Option<&'a Plain> {
    let Plain::Dict(entries) = value else { return None };
    entries.iter().rev().find(|(key, _)| matches!(key, Plain::Str(key) if key == name)).map(|(_, value)| value)
}

/// A pickled value of plain types; anything else is told by its class. Values may be shared, so their number is bounded.
fn value(view: View<'_>, depth: usize, left: &mut usize) -> std::result::Result<Plain, String> {
    if depth > MAX_DEPTH || *left == 0 {
        return Err("a config is too large or too deep".into());
    }
    *left -= 1;
    if view.is_none() {
        return Ok(Plain::None);
    }
    let scalar = view.as_bool().map(Plain::Bool);
    let scalar = scalar.or_else(|| view.as_i64().map(Plain::Int)).or_else(|| view.as_f64().map(Plain::Float));
    let scalar = scalar.or_else(|| view.as_str().map(|text| Plain::Str(text.to_owned())));
    if let Some(scalar) = scalar {
        return Ok(scalar);
    }
    if let Some(entries) = view.entries() {
        let each = entries.map(|(k, v)| Ok((value(k, depth + 1, left)?, value(v, depth + 1, left)?)));
        return each.collect::<std::result::Result<_, String>>().map(Plain::Dict);
    }
    if let Some(items) = view.items() {
        let items = items.map(|item| value(item, depth + 1, left)).collect::<std::result::Result<_, String>>()?;
        return Ok(if view.kind() == "a tuple" { Plain::Tuple(items) } else { Plain::List(items) });
    }
    let (module, name) = view.class_parts().ok_or_else(|| format!("a config holds {}", view.kind()))?;
    Ok(Plain::Global(module.to_owned(), name.to_owned()))
}
