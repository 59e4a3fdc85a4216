//! How scales are found: the methods of ModelOpt's `algorithm`, with all of their settings.

use super::ConfigError;
use super::plain::Plain;

/// A method and the settings that change numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Method {
    /// Nothing is calibrated.
    None,
    /// Largest magnitudes.
    Max,
    /// `smoothquant`: scales of input channels move into the weights.
    SmoothQuant {
        /// Share of the activations' magnitude.
        alpha: f64,
    },
    /// AWQ's search for scales of input channels.
    AwqLite {
        /// Step between the exponents that are tried.
        alpha_step: f64,
    },
    /// AWQ's search for smaller amax.
    AwqClip(Clip),
    /// [`Method::AwqLite`], then [`Method::AwqClip`].
    AwqFull {
        /// Step between the exponents that are tried.
        alpha_step: f64,
        /// Search for smaller amax.
        clip: Clip,
    },
    /// The multiple of the amax with the smallest squared error of the weight.
    Mse(Sweep),
    /// The same, errors weighed by what the inputs show.
    LocalHessian {
        /// What is tried.
        sweep: Sweep,
        /// Columns that are weighed together.
        block_size: i64,
    },
    /// A part of low rank stays unquantized.
    SvdQuant {
        /// Its rank.
        lowrank: i64,
    },
    /// Columns make up for the errors of earlier ones.
    Gptq {
        /// Share of the mean diagonal that is added to the diagonal.
        perc_damp: f64,
        /// Columns that are updated together.
        block_size: i64,
    },
    /// NVFP4 inputs with room above the calibrated range.
    Nvfp4ActHeadroom,
    /// Scales that are trained.
    Lsq,
}

/// Settings of AWQ's search for smaller amax.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    /// Rows that are searched together.
    pub max_co_batch_size: i64,
    /// Tokens of a batch that are used.
    pub max_tokens_per_batch: i64,
    /// Smallest share of the amax.
    pub min_clip_ratio: f64,
    /// Step between shares.
    pub shrink_step: f64,
}

/// Multiples of the amax that are tried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sweep {
    /// First.
    pub start: f64,
    /// Last.
    pub stop: f64,
    /// Step.
    pub step: f64,
    /// In their place every positive E4M3 scale, where blocks have such scales.
    pub fp8_scale_sweep: bool,
}

/// A calibration: its method and every setting with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Algorithm {
    /// The method.
    pub method: Method,
    name: Option<&'static str>,
    settings: Vec<(&'static str, Plain)>,
}

/// What a setting holds.
#[derive(Clone, Copy)]
enum Kind {
    /// A number between these, the second always included, the first if the flag says so.
    Float {
        least: f64,
        included: bool,
        most: f64,
    },
    /// As `Float`, without the upper limit itself.
    FloatBelow {
        most: f64,
    },
    Int,
    Bool,
    /// `None`, a text, or a structure that only methods and settings use that are not implemented: kept as it is given.
    Other,
}

/// A setting's name, kind and default.
type Setting = (&'static str, Kind, Default);

#[derive(Clone, Copy)]
enum Default {
    Float(f64),
    Int(i64),
    Bool(bool),
    None,
    /// `["post"]`
    Post,
    /// `{"method": "max"}`
    MethodMax,
}

const POSITIVE: Kind = Kind::Float { least: 0.0, included: false, most: f64::INFINITY };
const SHARE: Kind = Kind::Float { least: 0.0, included: false, most: 1.0 };
const PERCENT: Kind = Kind::Float { least: 0.0, included: false, most: 100.0 };

const SHARED_STATES: Setting = ("shared_states", Kind::Other, Default::None);
const DISTRIBUTED_SYNC: Setting = ("distributed_sync", Kind::Bool, Default::Bool(true));
const DEBUG: Setting = ("debug", Kind::Bool, Default::Bool(false));
const STEP: Setting = ("step_size", POSITIVE, Default::Float(0.1));
const START: Setting = ("start_multiplier", POSITIVE, Default::Float(0.25));
const STOP: Setting = ("stop_multiplier", POSITIVE, Default::Float(4.0));
const ROWS: Setting = ("max_co_batch_size", Kind::Int, Default::Int(1024));
const TOKENS: Setting = ("max_tokens_per_batch", Kind::Int, Default::Int(64));
const MIN_CLIP: Setting = ("min_clip_ratio", Kind::FloatBelow { most: 1.0 }, Default::Float(0.5));
const SHRINK: Setting = ("shrink_step", SHARE, Default::Float(0.05));
const ALPHA_STEP: Setting = ("alpha_step", SHARE, Default::Float(0.1));

const fn sweep(value: bool) -> Setting {
    ("fp8_scale_sweep", Kind::Bool, Default::Bool(value))
}

/// Every method, and its settings after those that all have, in ModelOpt's order.
const METHODS: &[(&str, &[Setting])] = &[
    (
        "max",
        &[
            SHARED_STATES,
            DISTRIBUTED_SYNC,
            ("sync_expert_weight_amax", Kind::Bool, Default::Bool(false)),
            ("skip_forward_without_activation_calib", Kind::Bool, Default::Bool(false)),
        ],
    ),
    ("mse", &[SHARED_STATES, STEP, START, STOP, sweep(false), DISTRIBUTED_SYNC]),
    (
        "local_hessian",
        &[
            SHARED_STATES,
            STEP,
            START,
            STOP,
            sweep(true),
            ("block_size", Kind::Int, Default::Int(16)),
            DISTRIBUTED_SYNC,
            DEBUG,
        ],
    ),
    ("smoothquant", &[("alpha", Kind::Float { least: 0.0, included: true, most: 1.0 }, Default::Float(1.0))]),
    ("awq_lite", &[ALPHA_STEP, DEBUG]),
    ("awq_clip", &[ROWS, TOKENS, MIN_CLIP, SHRINK, DEBUG]),
    ("awq_full", &[ROWS, TOKENS, MIN_CLIP, SHRINK, DEBUG, ALPHA_STEP]),
    ("svdquant", &[("lowrank", Kind::Int, Default::Int(32)), ("skip_layers", Kind::Other, Default::None)]),
    (
        "gptq",
        &[
            ("perc_damp", SHARE, Default::Float(0.01)),
            ("block_size", Kind::Int, Default::Int(128)),
            ("fused", Kind::Bool, Default::Bool(false)),
        ],
    ),
    (
        "nvfp4_act_headroom",
        &[
            ("anchor_percentile", PERCENT, Default::Float(1.0)),
            ("upper_percentile", PERCENT, Default::Float(99.99)),
            ("rho", Kind::FloatBelow { most: 28672.0 }, Default::Float(16384.0)),
            ("weight_scale_algorithm", Kind::Other, Default::MethodMax),
        ],
    ),
    (
        "lsq",
        &[
            ("learnable_amax", Kind::Other, Default::Post),
            ("tied_amax", Kind::Bool, Default::Bool(false)),
            ("quantize_pre_scale", Kind::Bool, Default::Bool(true)),
            ("scale_algorithm", Kind::Other, Default::None),
        ],
    ),
];

/// The methods that the tool runs.
const IMPLEMENTED: &str = "max, mse, smoothquant, awq_lite, awq_clip, awq_full, or none";

impl Algorithm {
    /// The calibration that `stated` asks for: `None`, a method's name, or a dict of settings with its `method`.
    pub fn new(stated: &Plain) -> Result<Self, ConfigError> {
        let (name, given): (_, &[(Plain, Plain)]) = match stated {
            Plain::None => (None, &[]),
            Plain::Str(name) => (Some(name.as_str()), &[]),
            Plain::Dict(given) => match stated.get("method") {
                Some(Plain::Str(name)) => (Some(name.as_str()), given),
                Some(Plain::None) => (None, given),
                _ => return Err(ConfigError::Algorithm("it has no `method`".into())),
            },
            _ => return Err(ConfigError::Algorithm("it is neither a name nor a mapping".into())),
        };
        let (name, own): (_, &[Setting]) = match name {
            None => (None, &[]),
            Some(name) => {
                let Some((name, own)) = METHODS.iter().find(|(known, _)| *known == name) else {
                    let known: Vec<_> = METHODS.iter().map(|(name, _)| *name).collect();
                    return Err(ConfigError::Algorithm(format!("no method `{name}`: {}", known.join(", "))));
                };
                (Some(*name), own)
            }
        };
        let mut settings =
            vec![("moe_calib_experts_ratio", Plain::None), ("layerwise", layerwise(&Plain::Dict(vec![]), name)?)];
        settings.extend(own.iter().map(|(name, _, default)| (*name, default.plain())));
        for (key, value) in given {
            let Plain::Str(key) = key else {
                return Err(ConfigError::Algorithm("a setting's name is not a text".into()));
            };
            let value = match key.as_str() {
                "method" => continue,
                "moe_calib_experts_ratio" if *value == Plain::None => Plain::None,
                "moe_calib_experts_ratio" => SHARE.check(key, value)?,
                "layerwise" => layerwise(value, name)?,
                key => match own.iter().find(|(known, ..)| *known == key) {
                    Some((_, kind, _)) => kind.check(key, value)?,
                    None => {
                        let known: Vec<_> = settings.iter().map(|(name, _)| *name).collect();
                        let name = name.unwrap_or("None");
                        let known = known.join(", ");
                        return Err(ConfigError::Algorithm(format!("{name} has no setting `{key}`: {known}")));
                    }
                },
            };
            if let Some((_, slot)) = settings.iter_mut().find(|(name, _)| name == key) {
                *slot = value;
            }
        }
        let method = Self::method(name, &settings)?;
        Ok(Self { method, name, settings })
    }

    /// The list of calibrations that the `algorithm` of a config asks for.
    pub fn list(stated: &Plain) -> Result<Vec<Self>, ConfigError> {
        match stated {
            Plain::List(all) => all.iter().map(Self::new).collect(),
            one => Ok(vec![Self::new(one)?]),
        }
    }

    /// The method's name, as ModelOpt spells it.
    pub fn name(&self) -> &'static str {
        self.name.unwrap_or("none")
    }

    /// An error where the tool does not run this calibration.
    pub fn implemented(&self) -> Result<(), ConfigError> {
        let refuse = |what: String| Err(ConfigError::NotImplemented(what, IMPLEMENTED));
        match self.method {
            Method::None
            | Method::Max
            | Method::Mse(_)
            | Method::SmoothQuant { .. }
            | Method::AwqLite { .. }
            | Method::AwqClip(_)
            | Method::AwqFull { .. } => {}
            _ => return refuse(self.name().to_owned()),
        }
        if self.setting("moe_calib_experts_ratio") != Some(&Plain::None) {
            return refuse(format!("moe_calib_experts_ratio of {}", self.name()));
        }
        let layerwise = self.setting("layerwise");
        let on = |name| layerwise.and_then(|l| l.get(name)) == Some(&Plain::Bool(true));
        // Layer by layer from unquantized inputs gives the same amax as all at once; from quantized inputs it does not.
        if on("enable")
            && (on("get_qdq_activations_from_prev_layer") || !matches!(self.method, Method::Max | Method::Mse(_)))
        {
            return refuse(format!("layerwise {}", self.name()));
        }
        Ok(())
    }

    /// The mode that ModelOpt records for it, and the mode's config with every setting.
    pub fn mode(&self) -> (String, Plain) {
        let mode = self.name.map_or("_no_calibrate".to_owned(), |name| format!("{name}_calibrate"));
        let method = [("method", self.name.into())];
        (mode, Plain::dict(method.into_iter().chain(self.settings.iter().cloned())))
    }

    /// The value of a setting.
    pub fn setting(&self, name: &str) -> Option<&Plain> {
        self.settings.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    fn method(name: Option<&str>, settings: &[(&str, Plain)]) -> Result<Method, ConfigError> {
        let value = |name: &str| settings.iter().find(|(known, _)| *known == name).map(|(_, value)| value);
        let missing = |name: &str| ConfigError::Algorithm(format!("`{name}` has no value"));
        let float = |name: &str| match value(name) {
            Some(Plain::Float(value)) => Ok(*value),
            _ => Err(missing(name)),
        };
        let int = |name: &str| match value(name) {
            Some(Plain::Int(value)) => Ok(*value),
            _ => Err(missing(name)),
        };
        let clip = || {
            Ok::<_, ConfigError>(Clip {
                max_co_batch_size: int("max_co_batch_size")?,
                max_tokens_per_batch: int("max_tokens_per_batch")?,
                min_clip_ratio: float("min_clip_ratio")?,
                shrink_step: float("shrink_step")?,
            })
        };
        let sweep = || {
            Ok::<_, ConfigError>(Sweep {
                start: float("start_multiplier")?,
                stop: float("stop_multiplier")?,
                step: float("step_size")?,
                fp8_scale_sweep: value("fp8_scale_sweep") == Some(&Plain::Bool(true)),
            })
        };
        Ok(match name {
            None => Method::None,
            Some("smoothquant") => Method::SmoothQuant { alpha: float("alpha")? },
            Some("awq_lite") => Method::AwqLite { alpha_step: float("alpha_step")? },
            Some("awq_clip") => Method::AwqClip(clip()?),
            Some("awq_full") => Method::AwqFull { alpha_step: float("alpha_step")?, clip: clip()? },
            Some("mse") => Method::Mse(sweep()?),
            Some("local_hessian") => Method::LocalHessian { sweep: sweep()?, block_size: int("block_size")? },
            Some("svdquant") => Method::SvdQuant { lowrank: int("lowrank")? },
            Some("gptq") => Method::Gptq { perc_damp: float("perc_damp")?, block_size: int("block_size")? },
            Some("nvfp4_act_headroom") => Method::Nvfp4ActHeadroom,
            Some("lsq") => Method::Lsq,
            Some(_) => Method::Max,
        })
    }
}

impl Kind {
    /// `value` as this kind; a whole number is a float too.
    fn check(self, name: &str, value: &Plain) -> Result<Plain, ConfigError> {
        let wrong = |wanted: &str| Err(ConfigError::Algorithm(format!("`{name}` must be {wanted}")));
        let number = match value {
            Plain::Int(value) => Some(*value as f64),
            Plain::Float(value) => Some(*value),
            _ => None,
        };
        match (self, value) {
            (Self::Float { least, included, most }, _) => match number {
                Some(n) if (n > least || (included && n == least)) && n <= most => Ok(Plain::Float(n)),
                _ if most.is_infinite() => wrong("a number above 0"),
                _ if included => wrong(&format!("a number from {least} to {most}")),
                _ => wrong(&format!("a number above {least}, at most {most}")),
            },
            (Self::FloatBelow { most }, _) => match number {
                Some(n) if n > 0.0 && n < most => Ok(Plain::Float(n)),
                _ => wrong(&format!("a number between 0 and {most}")),
            },
            (Self::Int, Plain::Int(n)) if *n > 0 => Ok(value.clone()),
            (Self::Int, _) => wrong("a whole number above 0"),
            (Self::Bool, Plain::Bool(_)) | (Self::Other, _) => Ok(value.clone()),
            (Self::Bool, _) => wrong("true or false"),
        }
    }
}

impl Default {
    fn plain(self) -> Plain {
        match self {
            Self::Float(value) => Plain::Float(value),
            Self::Int(value) => Plain::Int(value),
            Self::Bool(value) => Plain::Bool(value),
            Self::None => Plain::None,
            Self::Post => Plain::List(vec![Plain::str("post")]),
            Self::MethodMax => Plain::dict([("method", Plain::str("max"))]),
        }
    }
}

/// The settings of calibration layer by layer, with the values of `given`.
fn layerwise(given: &Plain, method: Option<&str>) -> Result<Plain, ConfigError> {
    let mut settings = [
        ("enable", Plain::Bool(false)),
        ("get_qdq_activations_from_prev_layer", Plain::Bool(method == Some("gptq"))),
        ("checkpoint_dir", Plain::None),
        ("save_every", Plain::Int(1)),
        ("calib_mutates_weights", Plain::Bool(true)),
    ];
    let wrong = |text: String| Err(ConfigError::Algorithm(format!("layerwise: {text}")));
    match given {
        Plain::None => {}
        Plain::Dict(given) => {
            for (key, value) in given {
                let Some((name, slot)) = settings.iter_mut().find(|(name, _)| *key == Plain::str(*name)) else {
                    return wrong(format!("no setting {key:?}"));
                };
                match (*name, value) {
                    ("checkpoint_dir", Plain::None | Plain::Str(_)) | ("save_every", Plain::Int(1..)) => {}
                    ("checkpoint_dir", _) => return wrong("`checkpoint_dir` must be a text".into()),
                    ("save_every", _) => return wrong("`save_every` must be a whole number above 0".into()),
                    (_, Plain::Bool(_)) => {}
                    (name, _) => return wrong(format!("`{name}` must be true or false")),
                }
                *slot = value.clone();
            }
        }
        _ => return wrong("it is not a mapping".into()),
    }
    Ok(Plain::dict(settings))
}
