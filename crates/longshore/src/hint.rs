//! Advice for errors: what to do, apart from what is wrong.

use crate::calibration::CalibrationError;
use crate::error::{Unanswered, UsageError};
use crate::nearest::nearest;
use longshore_ckpt::{Error as Checkpoint, OtherFormat};
use longshore_convert::{Error, Problem};
use longshore_endpoint::Error as Endpoint;
use longshore_infer::chat::ChatError;
use longshore_infer::error::Error as Engine;
use longshore_quant::config::{ConfigError, built_ins};
use std::io::ErrorKind;

/// What the user can do about `error`, where there is something.
pub(crate) fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(error) = error.downcast_ref() {
        return usage(error);
    }
    if let Some(error) = error.downcast_ref() {
        return config(error);
    }
    match error.downcast_ref::<longshore_infer::error::Error>() {
        Some(Engine::Convert(error)) => return convert(error),
        Some(Engine::Memory { .. }) => {
            return Some(
                "`--memory SIZE` allows more; a smaller --batch-tokens, --batch or --max-new needs less".into(),
            );
        }
        Some(Engine::NotStored { .. }) => {
            return Some("`--base DIR` names a folder whose config.json says it".into());
        }
        Some(Engine::EmptyPrompt { .. }) => {
            return Some(
                "a model goes on from at least one token; `--prompt-ids` can name the one that begins texts".into(),
            );
        }
        Some(Engine::NoMtp) => return Some("without --mtp the text is the same".into()),
        _ => {}
    }
    if let Some(error) = error.downcast_ref() {
        return chat(error);
    }
    if let Some(error) = error.downcast_ref() {
        return endpoint(error);
    }
    if let Some(Unanswered { error, .. }) = error.downcast_ref() {
        let go_on = "the same command goes on with the others";
        return Some(endpoint(error).map_or_else(|| go_on.to_owned(), |hint| format!("{hint}; {go_on}")));
    }
    if let Some(error) = error.downcast_ref::<CalibrationError>() {
        return error.hint();
    }
    error.downcast_ref().map_or_else(|| checkpoint(error.downcast_ref()?), convert)
}

fn convert(error: &Error) -> Option<String> {
    match error {
        Error::Checkpoint(error) => checkpoint(error),
        Error::Refused(problems) => refused(problems),
        Error::Model { .. } => Some("`longshore arch list` shows the supported architectures".into()),
        Error::SourceChanged { .. } => Some("when the source is at rest, run the same command again".into()),
        Error::Destination { what, .. } if what.starts_with("is not empty") => {
            Some("`--force` replaces what it holds, once the new is complete".into())
        }
        Error::Destination { .. } | Error::Interrupted { .. } | Error::Stopped => None,
    }
}

fn usage(error: &UsageError) -> Option<String> {
    Some(match error {
        UsageError::Absent { .. } => "`longshore help env` lists the variables".into(),
        UsageError::NotCached { repo, .. } => format!("`hf download {repo}`"),
        UsageError::NoDataset { repo, .. } => {
            format!("`hf download {repo} --repo-type dataset`; `--data bundled` is a small set of our own")
        }
        UsageError::ExtraArgs { .. } => "`longshore help env` lists the known arguments".into(),
        UsageError::NoArchitecture { nearest: Some(nearest), .. } => format!("did you mean `{nearest}`?"),
        UsageError::NoArchitecture { .. } => "`longshore arch list` shows the supported architectures".into(),
        UsageError::NoDemoModel { .. } => "run the demo in a clone of the longshore repository".into(),
        UsageError::SameFormat { format: "safetensors", .. } => "`longshore convert` makes torch_dist of it".into(),
        UsageError::SameFormat { .. } => "`longshore export` makes safetensors of it".into(),
        UsageError::NoTokenizer { .. } => {
            "`--tokenizer DIR` names a folder with one; `--prompt-ids 1,17,42` needs none".into()
        }
        UsageError::NoTokenizerForText { .. } => {
            "`--tokenizer DIR` names a folder with the model's; JSON lines of token ids need none".into()
        }
        UsageError::Models { models, .. } if !models.is_empty() => "`--model NAME` names one".into(),
        UsageError::TokenizerSize { .. } => "`--tokenizer DIR` names the folder of the model's own".into(),
        _ => return None,
    })
}

fn config(error: &ConfigError) -> Option<String> {
    let others = "`--recipe-dir DIR` names a folder with others, such as an installed modelopt_recipes";
    Some(match error {
        ConfigError::NoRecipe(name) => {
            let nearest =
                nearest(name, built_ins().iter().flat_map(|r| [r.name].into_iter().chain(r.older.iter().copied())));
            let nearest = nearest.map(|nearest| format!("did you mean `{nearest}`? ")).unwrap_or_default();
            format!("{nearest}`longshore quantize --list` shows what is built in; {others}")
        }
        ConfigError::NotBuiltIn(..) => format!("`longshore quantize --list` shows what is built in; {others}"),
        _ => return None,
    })
}

fn endpoint(error: &Endpoint) -> Option<String> {
    Some(match error {
        Endpoint::Refused { status: 401 | 403, .. } => {
            "the key is read from $OPENAI_API_KEY, or the variable that --api-key-env names".into()
        }
        Endpoint::Refused { status: 404, .. } => {
            "--endpoint takes the base of the server's addresses, e.g. http://host:8000/v1, and --model one of its models".into()
        }
        Endpoint::GaveUp { .. } => {
            "is the server up? --timeout SECONDS, --retries N and --concurrency N say how it is asked".into()
        }
        _ => return None,
    })
}

fn chat(error: &ChatError) -> Option<String> {
    Some(match error {
        ChatError::NoTemplate { .. } => {
            "`--tokenizer DIR` names a folder with one; a text without --chat needs none".into()
        }
        ChatError::Raised { .. } => {
            "change the messages as it says; `--template-var NAME=VALUE` sets a variable that it reads".into()
        }
        ChatError::NoDefault { .. }
        | ChatError::Syntax { .. }
        | ChatError::Render { .. }
        | ChatError::TooMuchWork { .. } => "`--tokenizer DIR` names a folder with another template".into(),
        _ => return None,
    })
}

fn checkpoint(error: &Checkpoint) -> Option<String> {
    let kind = match error {
        Checkpoint::Io { source, .. } => source.kind(),
        Checkpoint::NotFound { .. } => {
            return Some(
                "a checkpoint is a folder with `model.safetensors` or its index, a Megatron root with \
                 `latest_checkpointed_iteration.txt`, or one of its `release` or `iter_*` folders"
                    .into(),
            );
        }
        Checkpoint::OtherFormat { format, .. } => return Some(other_format(*format).into()),
        _ => return None,
    };
    match kind {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Some("free some space; the same command goes on from the finished files".into())
        }
        _ => None,
    }
}

/// Which program makes a checkpoint of it that is read.
fn other_format(format: OtherFormat) -> &'static str {
    match format {
        OtherFormat::MegatronRanks => {
            "Megatron-LM rewrites it: the training command with `--load DIR --ckpt-convert-format torch_dist \
             --ckpt-convert-save NEW`"
        }
        OtherFormat::FsdpDtensor => {
            "Megatron-Bridge exports it to Hugging Face: `examples/conversion/mfsdp/convert_checkpoints_fsdp.py export`"
        }
        OtherFormat::TorchDcp => "load it in the program that wrote it, and save it with `--ckpt-format torch_dist`",
        OtherFormat::Zarr => "megatron-core up to 0.15 loads it, and saves it with `--ckpt-format torch_dist`",
        OtherFormat::NemoArchive => "unpack it, `mkdir DIR && tar -xf FILE.nemo -C DIR`, and name DIR",
        OtherFormat::NemoPickle => "NeMo loads it, and saves it as a distributed checkpoint (`model_weights/`)",
    }
}

fn refused(problems: &[Problem]) -> Option<String> {
    let any = |is: fn(&Problem) -> bool| problems.iter().any(is);
    if problems.iter().all(|p| matches!(p, Problem::Unmapped { .. })) {
        return Some("`--allow-unmapped` leaves these tensors out, each with a line in the report".into());
    }
    if any(|p| matches!(p, Problem::Damaged { .. })) {
        return Some("fetch the source again; `longshore verify` checks it".into());
    }
    if any(|p| matches!(p, Problem::Mtp { .. })) {
        return Some(
            "`--mtp drop` (convert, export, cut) writes a config without MTP; `--mtp-from-base` (export) copies the tensors of `--base DIR`"
                .into(),
        );
    }
    if any(|p| matches!(p, Problem::Missing { .. } | Problem::Shape { .. } | Problem::Unmapped { .. })) {
        return Some("the config decides names and shapes; compare it with `longshore inspect`".into());
    }
    None
}
