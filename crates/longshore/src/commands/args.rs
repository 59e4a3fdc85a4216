//! `longshore args`: the Megatron arguments of a checkpoint.

use super::Answer;
use crate::cli::launch::{ArgumentsArgs, Form};
use crate::locate;
use crate::options::Env;
use crate::report::Report;
use crate::units::counted;
use anyhow::Result;
use longshore_convert::Error;
use longshore_convert::arguments::{arguments, conf, line, run_config};
use longshore_convert::model::TRAVELLING;
use longshore_convert::outline::Outline;
use serde_json::json;

pub(super) fn run(args: &ArgumentsArgs, env: &Env, report: &Report) -> Result<Answer> {
    let base = args.base.as_ref().map(|base| locate::checkpoint(base, env)).transpose()?;
    let outline = Outline::open(&locate::checkpoint(&args.checkpoint, env)?, base.as_deref())?;
    let (text, said) = if args.form == Form::RunConfig {
        (run_config(&outline).map_err(Error::Refused)?, None)
    } else {
        let said = arguments(&outline, args.mtp).map_err(Error::Refused)?;
        let text = match args.form {
            Form::Conf => conf(&said, tokenizer(args, &outline).as_deref()),
            _ => line(&said),
        };
        (text, Some(said))
    };
    let mut notes: Vec<String> = outline.model.notes.iter().map(|note| note.text.clone()).collect();
    if let Some(mtp) = outline.model.config.mtp.as_ref().filter(|_| !args.mtp && said.is_some()) {
        let depth = counted(mtp.depth, "MTP block");
        notes.push(format!("the model's {depth} is left out, as in NVIDIA's own files; --mtp says it"));
    }
    for note in &notes {
        report.note("Note", note);
    }
    if report.is_json() {
        let form = match args.form {
            Form::Conf => "conf",
            Form::Args => "args",
            Form::RunConfig => "run-config",
        };
        report.json("args", &json!({"form": form, "text": text, "arguments": said, "notes": notes}))?;
    } else {
        report.data(&text)?;
    }
    Ok(Answer::Yes)
}

/// What holds the tokenizer and config: `--base` or the checkpoint as they were named, or the Hugging Face files in a Megatron one.
fn tokenizer(args: &ArgumentsArgs, outline: &Outline) -> Option<String> {
    let folder = outline.model.folder.as_ref()?;
    let named = args.base.as_ref().unwrap_or(&args.checkpoint);
    let travels = args.base.is_none() && folder.ends_with(TRAVELLING);
    Some(if travels { folder } else { named }.display().to_string())
}
