//! A checkpoint ready to run: where it is, its tokenizer, how much memory it may take.

use crate::cli::run::{DtMin, EngineArgs, PrecisionName, QuantizedWeights};
use crate::error::UsageError;
use crate::extra_args::{Extra, Job};
use crate::locate;
use crate::model_args;
use crate::options::{Env, Given, Origin, threads};
use crate::report::Report;
use crate::units::{bytes, counted};
use anyhow::{Context, Result};
use longshore_ckpt::{Dtype, Format};
use longshore_convert::model::tokenizer_folder;
use longshore_convert::source::Source;
use longshore_infer::backend::cpu::{Cpu, Precision};
use longshore_infer::chat::{ChatError, ChatTemplate};
use longshore_infer::error::Error as EngineError;
use longshore_infer::memory::Demand;
use longshore_infer::model::{Model, ModelOptions, check_ids, unsaid};
use longshore_infer::quantized::QuantState;
use longshore_infer::resume;
use longshore_infer::tokenizer::{Tokenizer, stop_ids};
use longshore_quant::Element;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A checkpoint whose weights are not read yet.
pub(crate) struct Opened {
    pub(crate) source: Source,
    pub(crate) precision: Precision,
    /// Where the checkpoint's own config files are.
    own: PathBuf,
    /// Where tokenizer and template are.
    pub(crate) companions: PathBuf,
    pub(crate) tokenizer: Option<Tokenizer>,
    /// What was opened, and the folder with its config.
    opened: (PathBuf, Option<PathBuf>),
}

impl Opened {
    /// Opens the checkpoint that `given` names.
    pub(crate) fn new(given: &Path, args: &EngineArgs, env: &Env, report: &Report) -> Result<Self> {
        let folder = locate::checkpoint(given, env)?;
        let mut base = args.base.as_deref().map(|base| locate::checkpoint(base, env)).transpose()?;
        let mut source = Source::open(&folder, base.as_deref(), args.allow_unmapped)?;
        let missing = unsaid(&source.model.config);
        // Megatron's arguments say what its trainer was told, which may be less than what the model computes.
        if let (false, None, Some(named)) = (missing.is_empty(), &base, env.path("HF_MODEL_CKPT")) {
            let config = locate::checkpoint(&named, env)?;
            source = Source::open(&folder, Some(&config), args.allow_unmapped)?;
            let text = format!("in {} ($HF_MODEL_CKPT), for {}", config.display(), missing.join(" and "));
            report.status("Config", &text);
            base = Some(config);
        }
        for note in &source.model.notes {
            // Shown without being asked for: what is inferred or not known of a config may change what is computed.
            report.note("Note", &note.text);
        }
        let own = source.model.folder.clone().or_else(|| tokenizer_folder(&source.catalog));
        let own = own.unwrap_or_else(|| source.catalog.folder.clone());
        let companions = match &args.tokenizer {
            Some(folder) => locate::checkpoint(folder, env)?,
            None => own.clone(),
        };
        let tokenizer = Tokenizer::load(&companions)?;
        if let (Some(_), None) = (&args.tokenizer, &tokenizer) {
            return Err(UsageError::NoTokenizer { path: companions }.into());
        }
        let vocab = source.model.config.vocab_size;
        if let Some(tokens) = tokenizer.as_ref().map(|t| t.vocab_size() as u64).filter(|&tokens| tokens > vocab) {
            return Err(UsageError::TokenizerSize { path: companions, tokens, vocab }.into());
        }
        let precision = match args.precision {
            Some(PrecisionName::F32) => Precision::Float32,
            None if stored_in_float32(&source) => Precision::Float32,
            None | Some(PrecisionName::Bf16) => Precision::Bfloat16,
        };
        Ok(Self { source, precision, own, companions, tokenizer, opened: (folder, base) })
    }

    /// Compares model arguments of `MLM_EXTRA_ARGS` with the model: an error where shapes contradict, else warnings.
    pub(crate) fn check_arguments(&self, env: &Env, job: Job, report: &Report) -> Result<()> {
        let (extra, config) = (Extra::of(env, job)?, &self.source.model.config);
        let problems = model_args::contradictions(&extra.expected, config);
        if !problems.is_empty() {
            return Err(longshore_convert::Error::Refused(problems).into());
        }
        for line in model_args::without_effect(&extra.expected, config) {
            report.note("Warning", &line);
        }
        let unused = [extra.unused, model_args::unchecked(&extra.expected, config)].concat();
        if !unused.is_empty() {
            report.detail("Ignored", &format!("no effect here: {}", unused.join(" ")));
        }
        let stored = longshore_convert::model::spec(&self.source.catalog);
        let is_read_only = !matches!(job, Job::Convert | Job::Quantize);
        if let Some(asked) = extra.spec.filter(|&asked| is_read_only && asked != stored)
            && self.source.catalog.format == Format::TorchDist
        {
            let [asked, stored] = [asked, stored].map(|spec| format!("{spec:?}").to_lowercase());
            let text = format!("the checkpoint has the keys of the {stored} spec; $MLM_EXTRA_ARGS asks for {asked}");
            report.note("Warning", &text);
        }
        Ok(())
    }

    /// The same checkpoint, to be loaded once more.
    pub(crate) fn source_again(&self, args: &EngineArgs) -> Result<Source> {
        let (folder, base) = &self.opened;
        Ok(Source::open(folder, base.as_deref(), args.allow_unmapped)?)
    }

    /// The tokenizer, or what to do without one.
    pub(crate) fn tokenizer(&self) -> Result<&Tokenizer, UsageError> {
        self.tokenizer.as_ref().ok_or_else(|| UsageError::NoTokenizer { path: self.companions.clone() })
    }

    /// The token that the tokenizer's own rules put before every text, if any.
    pub(crate) fn begin_of_text(&self) -> Result<Option<u32>> {
        Ok(self.tokenizer.as_ref().map_or(Ok(None), Tokenizer::begin_of_text)?)
    }

    /// The folder that was opened.
    pub(crate) fn folder(&self) -> &Path {
        &self.opened.0
    }

    /// The chat template.
    pub(crate) fn template(&self) -> Result<ChatTemplate> {
        let none = || ChatError::NoTemplate { folder: self.companions.clone() };
        Ok(ChatTemplate::load(&self.companions)?.ok_or_else(none)?)
    }

    /// The ids that end a text: what the checkpoint says, before what comes with another tokenizer.
    pub(crate) fn stop_ids(&self) -> Result<Vec<u32>> {
        let own = stop_ids(&self.own)?;
        Ok(if own.is_empty() { stop_ids(&self.companions)? } else { own })
    }

    /// Checks that a prompt has tokens, all of them the model's: before minutes go into reading weights.
    pub(crate) fn check_ids(&self, prompt: usize, ids: &[u32]) -> Result<(), EngineError> {
        check_ids(self.source.model.config.vocab_size, prompt, ids)
    }

    /// Identifies a pass of the model over `prompts`; `more` is what else decides its result.
    pub(crate) fn pass_key(
        &self,
        args: &EngineArgs,
        prompts: &[Vec<u32>],
        more: &impl Serialize,
    ) -> Result<String, EngineError> {
        let how = format!("{:?} {:?}", args.dt_min, args.weights);
        resume::key(&self.source, prompts, &(self.precision.arithmetic(), how, args.batch_tokens, more))
    }

    /// Reads the weights that may stay in memory, of which `models` models share what there is.
    pub(crate) fn load(self, args: &EngineArgs, demand: Demand, models: u64, report: &Report) -> Result<Loaded> {
        let config = &self.source.model.config;
        let text = format!(
            "{}, {} ({}), {}",
            config.architecture,
            counted(config.layers.len() as u64, "layer"),
            config.pattern(),
            precision_name(self.precision)
        );
        report.status("Model", &text);
        if self.precision == Precision::Bfloat16 && stored_in_float32(&self.source) {
            report.note("Rounded", "the weights are float32; bf16 arithmetic rounds them");
        }
        let is_packed = args.weights == QuantizedWeights::Packed && self.source.quantized.is_some();
        let model = load(self.source, self.precision, args, demand, models)?;
        if is_packed {
            let (kept, all) = model.packed_linears();
            let text = format!("{kept} of {} stay in codes; the others are values", counted(all as u64, "linear"));
            report.status("Packed", &text);
        }
        let (resident, layers) = model.resident_layers();
        let text = format!("{} of {layers} layers in memory, {}", resident, bytes(model.resident_bytes()));
        report.detail("Weights", &text);
        Ok(Loaded { model, tokenizer: self.tokenizer })
    }
}

/// The model of a checkpoint, quantized as its quantizers say; one of `models` that share the memory.
pub(crate) fn load(
    source: Source,
    precision: Precision,
    args: &EngineArgs,
    demand: Demand,
    models: u64,
) -> Result<Arc<Model<Cpu>>> {
    let threads = threads(args.threads);
    let dt_min = dt_min(&source, args)?;
    let memory = args.memory.or_else(free_memory).map(|budget| (budget / models, demand));
    let backend = Cpu::new(threads, precision).context("starting threads")?;
    let element = match precision {
        Precision::Float32 => Element::Float32,
        Precision::Bfloat16 => Element::Bfloat16,
    };
    let quant = QuantState::of(&source, element)?.map(Arc::new);
    let packed = args.weights == QuantizedWeights::Packed;
    Ok(Model::load(source, backend, &ModelOptions { dt_min, memory, threads, quant, packed })?)
}

/// The lower bound of a prompt's time steps.
pub(crate) fn dt_min(source: &Source, args: &EngineArgs) -> Result<Option<f32>, UsageError> {
    Ok(match args.dt_min {
        None => None,
        Some(DtMin::Value(x)) => Some(x),
        Some(DtMin::Config) => {
            let stored = source.model.config.forward.time_step_min;
            Some(stored.ok_or(UsageError::NotInConfig { field: "time_step_min" })? as f32)
        }
    })
}

/// `args` with the tokenizer that variables name: beside a checkpoint that comes from `$MLM_MODEL_CKPT`, as the scripts have
/// it, that of `$TOKENIZER_MODEL` or of `$HF_MODEL_CKPT`.
pub(crate) fn with_tokenizer(
    args: &EngineArgs,
    checkpoint: &Given<PathBuf>,
    env: &Env,
    report: &Report,
) -> Result<EngineArgs> {
    let mut args = args.clone();
    if args.tokenizer.is_some() || checkpoint.origin != Origin::Variable("MLM_MODEL_CKPT") {
        return Ok(args);
    }
    for variable in ["TOKENIZER_MODEL", "HF_MODEL_CKPT"] {
        let Some(named) = env.path(variable) else { continue };
        let folder = locate::checkpoint(&named, env)?;
        if Tokenizer::load(&folder)?.is_some() {
            report.status("Tokenizer", &format!("in {} (${variable})", folder.display()));
            args.tokenizer = Some(folder);
        } else {
            let text =
                format!("there is no tokenizer in `{}` (${variable}): the checkpoint's own counts", folder.display());
            report.note("Note", &text);
        }
        break;
    }
    Ok(args)
}

/// A model with its tokenizer.
pub(crate) struct Loaded {
    pub(crate) model: Arc<Model<Cpu>>,
    pub(crate) tokenizer: Option<Tokenizer>,
}

impl Loaded {
    /// Whether nothing says which rows of the vocabulary are padding: a checkpoint without a config of its own.
    pub(crate) fn may_be_padded(&self) -> bool {
        self.model.source().model.folder.is_none()
    }

    /// Rows of the vocabulary without padding.
    pub(crate) fn real_rows(&self) -> Result<usize> {
        Ok(if self.may_be_padded() { self.model.trained_rows()? } else { self.model.vocab() })
    }
}

/// Where activations go that do not fit.
pub(crate) fn scratch(args: &EngineArgs) -> PathBuf {
    args.scratch.clone().unwrap_or_else(std::env::temp_dir)
}

pub(crate) fn precision_name(precision: Precision) -> &'static str {
    match precision {
        Precision::Float32 => "f32",
        Precision::Bfloat16 => "bf16",
    }
}

/// Whether the weights are float32 (or wider), by the embedding.
fn stored_in_float32(source: &Source) -> bool {
    let embedding = source.tensor("embedding.word_embeddings.weight").1;
    matches!(embedding, Dtype::Float32 | Dtype::Float64)
}

/// 80 % of the memory that this process could still get, in bytes.
fn free_memory() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let available = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)?;
    Some(available.min(control_group_memory().unwrap_or(u64::MAX)) / 5 * 4)
}

/// What the control group still allows, where it limits memory at all.
fn control_group_memory() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let folder = PathBuf::from(format!("/sys/fs/cgroup{path}"));
    let number = |name: &str| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}
