//! `longshore quantize`: decides what every quantizer does, observes what inputs there are, writes.

mod calibrate;
mod config;
mod listed;
mod report;
mod samples;
mod shown;

pub(super) use shown::scheme_name;

use super::{Answer, lint, write};
use crate::calibration::{self, Pieces};
use crate::cli::Target;
use crate::cli::calibration::CalibArgs;
use crate::cli::quantize::QuantizeArgs;
use crate::engine::{Opened, with_tokenizer};
use crate::error::UsageError;
use crate::extra_args::Job;
use crate::locate;
use crate::options::{self, Direction, Env, Given, Origin, StoredKeys, WriteOptions};
use crate::report::{Report, peak_memory};
use crate::saving;
use anyhow::Result;
use config::Chosen;
use longshore_convert::plan::Quantized;
use longshore_convert::quantized::linear::Naming;
use longshore_convert::quantized::{Calibrated, Quantization};
use longshore_convert::{Error, Plan, SpecName, plan_quantized_export, plan_quantized_import, run};
use longshore_quant::config::{Method, QuantConfig};
use longshore_quant::search::Search;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Instant;

/// An output: where, and with which options.
struct Output {
    paths: write::Paths,
    options: WriteOptions,
}

impl Output {
    fn plan(&self, quantized: &Quantized<'_>) -> longshore_convert::Result<Plan> {
        let (source, destination) = (&self.paths.folder, &self.paths.destination.value);
        match &self.options.direction {
            Direction::Import(options) => plan_quantized_import(source, destination, options, quantized),
            Direction::Export(options) => plan_quantized_export(source, destination, options, quantized),
        }
    }
}

pub(super) fn run(args: &QuantizeArgs, env: &Env, report: &Report) -> Result<Answer> {
    if args.what.list {
        return shown::list(report);
    }
    let started = Instant::now();
    let Chosen { config, recipe } = config::read(&args.what, env)?;
    let [source, destination] = options::quantize_paths(args, env)?;
    let engine = with_tokenizer(&args.engine, &source, env, report)?;
    let opened = Opened::new(&source.value, &engine, env, report)?;
    opened.check_arguments(env, Job::Quantize, report)?;
    opened.source.model.check_converted(&opened.source.catalog.folder)?;
    let jobs = jobs(args, env, &opened, &source, destination)?;
    let naming = naming(&jobs, &opened);
    let quantization = Quantization::decide(&opened.source.model, naming, &config).map_err(Error::Refused)?;
    let nothing = Calibrated::default();
    let quantized = |calibrated| Quantized { quantization: &quantization, calibrated, config: &config };
    // Whatever is wrong is found before anything is computed.
    let mut plans = Vec::new();
    for job in &jobs {
        plans.push(job.plan(&quantized(&nothing))?);
    }
    shown::say_plan(&config, recipe.as_ref(), &quantization, &plans, &jobs, report);
    let mut fields = json!({
        "dry_run": args.output.dry_run,
        "config": config.name,
        "recipe": recipe,
        "outputs": plans.iter().map(Plan::summary).collect::<Vec<_>>(),
        "warnings": quantization.warnings,
    });
    if args.output.dry_run {
        return shown::dry_run(&quantization, fields, report);
    }
    let needed = quantization.needs_activations() || !is_plain(&config);
    let calib = calib_args(args, env, needed, report);
    let set = needed.then(|| calibration::load(&calib, &Pieces::of(&opened)?, env)).transpose()?;
    let key = match &set {
        Some(set) => calibrate::key(&opened, args, set, &quantization, &config)?,
        None => String::new(),
    };
    let inputs: Vec<String> = plans.iter().map(|plan| format!("{}-{key}", plan.summary().fingerprint)).collect();
    if let Some(results) = already_made(&plans, &inputs) {
        fields["results"] = json!(results);
        return finished_before(&fields, &results, report);
    }
    for (plan, job) in plans.iter().zip(&jobs) {
        run::check_destination(plan, job.options.force)?;
    }
    let destination = &jobs[0].paths.destination.value;
    let (calibrated, observed, savers) = if let Some(set) = set {
        fields["calibration"] = json!(set.report);
        let observed = calibrate::run(opened, args, &set, &quantization, &config, &key, destination, report)?;
        fields["calibration"]["resumed_layers"] = json!(observed.resumed_layers);
        fields["calibration"]["tokens_per_second"] = json!(observed.tokens_per_second);
        (observed.calibrated, Some(observed.calibration), observed.savers)
    } else {
        for place in calibrate::places(destination) {
            saving::remove_others(place, report)?;
        }
        report.status("Calibrated", "nothing: the scales of this config are found in the weights");
        (Calibrated { weight_search: Search::of(&config.algorithm), ..Calibrated::default() }, None, Vec::new())
    };
    let mut results = Vec::new();
    for (job, inputs) in jobs.iter().zip(inputs) {
        let plan = job.plan(&quantized(&calibrated))?.with_inputs(inputs);
        results.push(write::execute_plan(&plan, &job.options, started, report)?);
    }
    for saver in savers {
        saver.discard();
    }
    fields["results"] = json!(results);
    let bytes = [plans[0].summary().source.bytes, plans[0].summary().target.bytes];
    if report::is_wanted(args, bytes[0], report) {
        let subject = report::Subject {
            source: &jobs[0].paths.source.value,
            result: &jobs[0].paths.destination.value,
            bytes,
            config: &config.name,
            engine: &engine,
            quantization: &quantization,
            calibrated: &calibrated,
            observed: observed.as_ref(),
        };
        let made = report::build(&subject, env, report)?;
        made.publish(args.output.report.as_deref(), report)?;
        fields["report"] = json!(made);
    }
    let mut findings = Vec::new();
    for job in jobs.iter().filter(|job| matches!(job.options.direction, Direction::Export(_))) {
        findings.push(lint::written(&job.paths.destination.value, report)?);
    }
    fields["lint"] = json!(findings);
    if args.output.reference_output {
        report.data(&listed::summary(&quantization, &jobs[0].paths.destination.value)?)?;
    }
    let mut answer = Answer::Yes;
    if !args.output.skip_generate {
        let (source, result) = (&jobs[0].paths.folder, &jobs[0].paths.destination.value);
        let samples = samples::run(source, result, (&engine, args), env, report)?;
        answer = samples::check(samples.as_deref(), args, report)?;
        fields["samples"] = json!(samples);
    }
    if report.is_json() {
        fields["peak_memory"] = json!(peak_memory());
        report.json("quantize", &fields)?;
    }
    Ok(answer)
}

/// The samples that are asked for. ModelOpt's script takes a gated set by default, which is taken here where it is cached.
fn calib_args(args: &QuantizeArgs, env: &Env, needed: bool, report: &Report) -> CalibArgs {
    let mut calib = args.calib.clone();
    if needed && args.output.reference_output && calib.calib.is_none() {
        calib.calib = calibration::reference_set(env);
        if calib.calib.is_none() {
            report.note("Note", calibration::in_place_of_the_gated_set());
        }
    }
    calib
}

/// What earlier runs made of the same inputs, where that is all there is to make.
fn already_made(plans: &[Plan], inputs: &[String]) -> Option<Vec<run::Report>> {
    plans.iter().zip(inputs).map(|(plan, inputs)| run::already_made(plan, inputs)).collect()
}

fn finished_before(fields: &Value, results: &[run::Report], report: &Report) -> Result<Answer> {
    for result in results {
        report.status("Complete", &format!("{}  by an earlier run", result.folder.display()));
    }
    if report.is_json() {
        report.json("quantize", fields)?;
    }
    Ok(Answer::Yes)
}

/// What is to be written: the destination, and the second folder where one is named.
fn jobs(
    args: &QuantizeArgs,
    env: &Env,
    opened: &Opened,
    source: &Given<PathBuf>,
    destination: Given<PathBuf>,
) -> Result<Vec<Output>> {
    let folder = opened.source.catalog.folder.clone();
    let job = |target: Target, destination: Given<PathBuf>| -> Result<Output> {
        let stored = StoredKeys::of(&opened.source.catalog);
        let mut options = options::quantize(args, env, target, stored)?;
        locate::base(&mut options, env)?;
        let paths = write::Paths { source: source.clone(), folder: folder.clone(), destination };
        Ok(Output { paths, options })
    };
    let target = args.output.to.unwrap_or(Target::TorchDist);
    let mut jobs = vec![job(target, destination)?];
    if let Some(also) = &args.output.also_hf {
        if target == Target::Hf {
            return Err(UsageError::NoEffect { options: vec!["`--also-hf`".into()], output: "a Hugging Face" }.into());
        }
        let origin = Origin::Flag;
        jobs.push(job(Target::Hf, Given { value: also.clone(), origin })?);
    }
    Ok(jobs)
}

/// Names are those of the side where ModelOpt would have quantized: Megatron's as soon as it is involved.
fn naming(jobs: &[Output], opened: &Opened) -> Naming {
    let spec = match &jobs[0].options.direction {
        Direction::Import(options) => Some(options.spec),
        Direction::Export(_) => StoredKeys::of(&opened.source.catalog).map(|keys| keys.spec),
    };
    match spec {
        Some(SpecName::Te) => Naming::MegatronTe,
        Some(SpecName::Local) => Naming::MegatronLocal,
        None => Naming::HuggingFace,
    }
}

/// Whether nothing but magnitudes is looked for, which needs no text.
fn is_plain(config: &QuantConfig) -> bool {
    config.algorithm.iter().all(|a| matches!(a.method, Method::None | Method::Max | Method::Mse(_)))
}
