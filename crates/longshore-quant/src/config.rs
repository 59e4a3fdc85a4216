//! Which quantizer gets which attributes: ModelOpt's configs by name ([`QuantConfig::named`]) or as recipe
//! ([`recipe`]), their application to the quantizers of a model ([`QuantConfig::resolve`]), and what ModelOpt stores of
//! them in a checkpoint.

mod algorithm;
mod builtin;
mod choices;
mod classify;
mod dump;
mod glob;
mod parse;
mod parts;
mod plain;
pub mod recipe;
mod resolve;
pub mod yaml;

pub use algorithm::{Algorithm, Clip, Method, Sweep};
pub use builtin::{BuiltIn, built_ins};
pub use choices::{Choice, choices};
pub use dump::{Buffer, QuantizerState, modelopt_state};
pub use glob::Glob;
pub use plain::Plain;
pub use resolve::{QuantizerSite, Resolution};

use crate::Attributes;
use parts::Stated;

/// What can be wrong with a config.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A name that no config has.
    #[error("no quantization config is called `{0}`; known: {1}")]
    Unknown(String, String),
    /// A setting of an algorithm.
    #[error("algorithm: {0}")]
    Algorithm(String),
    /// An algorithm that is understood, but not computed, and those that are.
    #[error("algorithm `{0}` is not implemented; implemented: {1}")]
    NotImplemented(String, &'static str),
    /// A place in a recipe.
    #[error("{file}:{line}: {what}")]
    Recipe {
        /// As it was asked for.
        file: String,
        /// From 1.
        line: usize,
        /// The field and what is wrong with it.
        what: String,
    },
    /// A recipe that is neither a file nor built in.
    #[error("there is no recipe `{0}`: no such file, and none of this name is built in")]
    NoRecipe(String),
    /// A recipe of ModelOpt's that has no built-in equivalent, and why.
    #[error("recipe `{0}`: {1}")]
    NotBuiltIn(String, &'static str),
    /// A file that is missing or cannot be read.
    #[error("{0}")]
    File(String),
    /// Patterns ask for quantized weights, but there are none.
    #[error("no weight is quantized, though the config asks for it with {0}")]
    NoWeights(String),
    /// An entry makes a sequence of a quantizer that is part of a sequence.
    #[error("entry {0} makes a sequence of a stage of a sequence ({1})")]
    Nested(usize, String),
}

/// A quantization config.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantConfig {
    /// ModelOpt's name of it, or the recipe's file.
    pub name: String,
    /// Applied in this order.
    pub entries: Vec<Entry>,
    /// Calibrations, one after the other.
    pub algorithm: Vec<Algorithm>,
    /// The same as the config writes it: ModelOpt stores both.
    pub stated_algorithm: Plain,
    /// Bits a value is counted as by a search for mixed precision.
    pub effective_bits: Option<f64>,
}

/// One entry of `quant_cfg`.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Pattern for the full names of quantizers ([`Glob`]).
    pub quantizer_name: String,
    /// Only quantizers of modules of this class, e.g. `nn.Linear`.
    pub parent_class: Option<String>,
    /// What replaces all attributes; several are applied one after the other; without any, only `enable` changes.
    pub cfg: Vec<Attributes>,
    /// Whether the quantizers quantize from here on, whatever `cfg` says.
    pub enable: bool,
}

impl Entry {
    /// Quantizers that get `cfg`.
    pub fn on(quantizer_name: impl Into<String>, cfg: Vec<Attributes>) -> Self {
        Self { quantizer_name: quantizer_name.into(), parent_class: None, cfg, enable: true }
    }

    /// Quantizers that are switched off.
    pub fn off(quantizer_name: impl Into<String>) -> Self {
        Self { enable: false, ..Self::on(quantizer_name, vec![]) }
    }
}

impl QuantConfig {
    /// The config called `name`: ModelOpt's name, the short one ([`Choice::short`]) or an older script's, in any case.
    pub fn named(name: &str) -> Result<Self, ConfigError> {
        let wanted = folded(name);
        let known = |choice: &&Choice| {
            folded(choice.name) == wanted
                || choice.short() == wanted
                || choice.aliases.iter().any(|alias| *alias == wanted)
        };
        match choices().iter().find(known) {
            Some(choice) => choice.config(),
            None => {
                let all: Vec<_> = choices().iter().map(Choice::short).collect();
                Err(ConfigError::Unknown(name.to_owned(), all.join(", ")))
            }
        }
    }

    /// A config of these entries, with the algorithm as it is written.
    fn stated(name: &str, entries: Vec<Entry>, algorithm: Stated) -> Result<Self, ConfigError> {
        let stated_algorithm = algorithm.plain();
        let algorithm = Algorithm::list(&stated_algorithm)?;
        Ok(Self { name: name.to_owned(), entries, algorithm, stated_algorithm, effective_bits: None })
    }

    /// With a quantized KV cache: `none`, `fp8`, `fp8_affine`, `fp8_cast`, `nvfp4`, `nvfp4_affine`, `nvfp4_cast`,
    /// `nvfp4_rotate`, or the name of a config. Its entries come last; a config without calibration gets `max`.
    pub fn with_kv_cache(mut self, name: &str) -> Result<Self, ConfigError> {
        let wanted = folded(name);
        if wanted == "none" {
            return Ok(self);
        }
        let kv = || choices().iter().filter(|choice| choice.kv_cache);
        let known = |choice: &&Choice| {
            choice.kv_short().as_ref() == Some(&wanted) || folded(choice.name) == wanted || choice.short() == wanted
        };
        let Some(choice) = kv().find(known) else {
            let all: Vec<_> = ["none".to_owned()].into_iter().chain(kv().filter_map(Choice::kv_short)).collect();
            return Err(ConfigError::Unknown(name.to_owned(), all.join(", ")));
        };
        if self.entries.is_empty() {
            self.entries.push(Entry::off("*"));
        }
        self.entries.extend(choice.entries());
        if self.stated_algorithm == Plain::None {
            self.stated_algorithm = Plain::str("max");
            self.algorithm = Algorithm::list(&self.stated_algorithm)?;
        }
        Ok(self)
    }

    /// Inputs stay as they are.
    pub fn weight_only(self) -> Self {
        self.exclude("*input_quantizer")
    }

    /// Attention stays as it is, where its modules are called `self_attention` (Megatron). Comes before
    /// [`Self::with_kv_cache`], whose quantizers lie there too.
    pub fn disable_qkv_quant(self) -> Self {
        self.exclude("*self_attention*")
    }

    /// Quantizers whose full names fit `glob` are off.
    pub fn exclude(mut self, glob: &str) -> Self {
        self.entries.push(Entry::off(glob));
        self
    }

    /// Whether text must be run through the model: for every calibration but `max`, and for `max` where an entry that is
    /// not for weights is on with an amax that is not found on the fly. As ModelOpt, entries are not weighed against each
    /// other.
    pub fn need_calibration(&self) -> bool {
        if !matches!(&self.stated_algorithm, Plain::None) && self.stated_algorithm != Plain::str("max") {
            return true;
        }
        self.entries.iter().filter(|entry| !entry.quantizer_name.contains("weight_quantizer")).any(|entry| match entry
            .cfg
            .as_slice()
        {
            [] => entry.enable,
            [one] => entry.enable && !one.dynamic,
            all => all.iter().any(|stage| stage.enable && !stage.dynamic),
        })
    }

    /// An error that names the first calibration which the tool does not run.
    pub fn implemented(&self) -> Result<(), ConfigError> {
        self.algorithm.iter().try_for_each(Algorithm::implemented)
    }
}

/// A name as it is compared.
fn folded(name: &str) -> String {
    name.trim().to_ascii_lowercase().replace('-', "_")
}
