//! `longshore demo`: the main job on the model that the repository bundles, there and back, a few sentences from it, and
//! the proof that nothing changed; then quantized, exported and linted, and all three scored.

mod scores;

use super::{Answer, inspect, verify as verify_command};
use crate::cli::{Cli, DemoArgs};
use crate::error::UsageError;
use crate::options::{Env, threads};
use crate::progress_bar::ProgressBar;
use crate::report::{Report, peak_memory};
use crate::units::{bytes, count, counted, seconds};
use anyhow::{Context, Result, ensure};
use clap::Parser;
use longshore_ckpt::fs::ReadFile;
use longshore_ckpt::{Catalog, TensorInfo};
use longshore_convert::diff::{DiffOptions, Tolerance, diff};
use longshore_convert::run::{RunOptions, execute};
use longshore_convert::source::Source;
use longshore_convert::verify::{VerifyOptions, VerifyReport, verify, verify_against};
use longshore_convert::{ExportOptions, ImportOptions, Plan, SpecName};
use longshore_convert::{plan_export, plan_import};
use longshore_infer::backend::cpu::{Cpu, Precision};
use longshore_infer::generate::GenerateOptions;
use longshore_infer::model::{Model, ModelOptions};
use longshore_infer::sample::{Sampler, Sampling};
use longshore_infer::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The bundled model's folder inside `models/`.
const MODEL: &str = "nemotron-h-10m";
/// What the converted checkpoint continues.
const PROMPT: &str = "It was a bright cold day in";

pub(super) fn run(args: &DemoArgs, report: &Report) -> Result<Answer> {
    let started = Instant::now();
    let source = model_folder()?;
    let (folder, temporary) = match &args.dir {
        Some(dir) => (dir.clone(), false),
        None => (temporary_folder()?, true),
    };
    let demo = Demo { source: &source, folder: &folder, progress: ProgressBar::new(report)?, report };
    let result = demo.all();
    if temporary && result.is_ok() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("removing `{}`", folder.display()))?;
    } else {
        report.status("Kept", &folder.display().to_string());
    }
    let (specs, scores) = result?;
    if report.is_json() {
        let took = started.elapsed().as_secs_f64();
        let fields = json!({
            "equal": true, "source": source, "specs": specs, "scores": scores,
            "timings": {"total_seconds": took}, "peak_memory": peak_memory(),
        });
        report.json("demo", &fields)?;
    }
    let took = seconds(started.elapsed().as_secs_f64());
    report.say("\n");
    report.status("Proved", &format!("the model went to Megatron-Core and back unchanged, in both specs  in {took}"));
    Ok(Answer::Yes)
}

/// `models/nemotron-h-10m` of the repository that this program was built from, else of the current folder.
fn model_folder() -> Result<PathBuf, UsageError> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    let found =
        [PathBuf::from("models"), built].into_iter().map(|models| models.join(MODEL)).find(|path| path.is_dir());
    found.map(|path| path.canonicalize().unwrap_or(path)).ok_or(UsageError::NoDemoModel { name: MODEL })
}

fn temporary_folder() -> Result<PathBuf> {
    let path = std::env::temp_dir().join(format!("longshore-demo-{}", std::process::id()));
    std::fs::create_dir(&path).with_context(|| format!("creating `{}`", path.display()))?;
    Ok(path)
}

struct Demo<'a> {
    source: &'a Path,
    folder: &'a Path,
    progress: ProgressBar<'a>,
    report: &'a Report,
}

impl Demo<'_> {
    fn all(&self) -> Result<(Vec<Value>, Value)> {
        let catalog = Catalog::open(self.source)?;
        self.report.say(&head(&catalog));
        let specs = [("te", SpecName::Te), ("local", SpecName::Local)];
        let proved = specs.into_iter().map(|(name, spec)| self.one(name, spec));
        let proved = proved.collect::<Result<_>>()?;
        self.quantized()?;
        Ok((proved, self.scores()?))
    }

    /// The converted checkpoint in FP8, calibrated on a few samples, and as servers load it.
    fn quantized(&self) -> Result<()> {
        let name = |name: &str| self.folder.join(name).display().to_string();
        let (mc, fp8, hf) = (name("te"), name("te-fp8"), name("te-fp8-hf"));
        let quantize =
            ["quantize", &mc, &fp8, "--quant-cfg", "FP8_DEFAULT_CFG", "--calib-size", "8", "--skip-generate"];
        for args in [&quantize[..], &["export", &fp8, &hf], &["lint", &hf]] {
            self.command(&args.join(" "));
            let command = Cli::try_parse_from(std::iter::once(&"longshore").chain(args))?.command;
            ensure!(
                super::run(&command, &Env::default(), &self.report.quietly())? == Answer::Yes,
                "{}",
                args.join(" ")
            );
        }
        let size = |folder: &Path| Ok::<_, anyhow::Error>(Catalog::open(folder)?.total_size());
        let (before, after) = (size(self.source)?, size(Path::new(&hf))?);
        self.report.status("Accepted", &format!("{} in place of {}", bytes(after), bytes(before)));
        Ok(())
    }

    /// There and back in one spec.
    fn one(&self, name: &str, spec: SpecName) -> Result<Value> {
        let (mc, hf) = (self.folder.join(name), self.folder.join(format!("{name}-back")));
        let (source, mc_path, hf_path) = (self.source.display(), mc.display(), hf.display());

        self.command(&format!("convert {source} {mc_path} --spec {name}"));
        let there = self.write(&plan_import(self.source, &mc, &ImportOptions::new(spec))?)?;

        self.command(&format!("verify {mc_path}"));
        let options = VerifyOptions { quick: false, threads: threads(None) };
        self.valid(Instant::now(), &self.progress.finish(verify(&mc, &options, &self.progress))?)?;

        self.command(&format!("verify {mc_path} --against {source}"));
        let against = verify_against(&mc, self.source, &options, &self.progress);
        self.valid(Instant::now(), &self.progress.finish(against)?)?;

        self.command(&format!("inspect {mc_path}"));
        self.report.say(&head(&Catalog::open(&mc)?));

        let generated = self.generate(&mc)?;

        self.command(&format!("export {mc_path} {hf_path}"));
        let back = self.write(&plan_export(&mc, &hf, &ExportOptions::default())?)?;

        self.command(&format!("diff {source} {hf_path}"));
        let options = DiffOptions { glob: None, tolerance: Tolerance::Bits, threads: threads(None) };
        let result = self.progress.finish(diff(self.source, &hf, &options, &self.progress))?;
        ensure!(result.entries.is_empty(), "{} differences between source and export", result.entries.len());
        self.report.status("Equal", &counted(result.compared, "tensor"));

        // Without the library's mapping, so that no mistake of it can hide.
        let equal = same_bytes(&Catalog::open(self.source)?, &Catalog::open(&hf)?)?;
        self.report.status("Compared", &format!("{} of tensor data, byte for byte: equal", bytes(equal)));
        Ok(json!({"spec": name, "convert": there, "export": back, "tensors": result.compared, "equal_bytes": equal,
                 "generated": generated}))
    }

    /// A few sentences from the converted checkpoint, and the proof that the source says the same.
    fn generate(&self, mc: &Path) -> Result<String> {
        self.command(&format!("generate {} {PROMPT:?} --precision f32", mc.display()));
        let (ours, text) = generate(mc)?;
        let (theirs, _) = generate(self.source)?;
        ensure!(
            ours == theirs,
            "the converted checkpoint generates other tokens, or other probabilities, than its source"
        );
        self.report.say(&format!("{}\n", text.trim()));
        self.report
            .status("Equal", &format!("{} and their probabilities, bit for bit", counted(ours.len() as u64, "token")));
        Ok(text)
    }

    fn command(&self, text: &str) {
        self.report.say(&format!("\n$ longshore {text}\n"));
    }

    fn write(&self, plan: &Plan) -> Result<Value> {
        let options = RunOptions { threads: threads(None), force: false };
        let result = self.progress.finish(execute(plan, &options, &self.progress))?;
        let summary = plan.summary();
        let tensors = format!("{} → {}", count(summary.source.tensors), counted(summary.target.tensors, "tensor"));
        let text = format!("{}  {tensors}, {}", result.folder.display(), bytes(result.bytes));
        self.report.status(if result.already_complete { "Complete" } else { "Published" }, &text);
        Ok(json!(result))
    }

    fn valid(&self, started: Instant, result: &VerifyReport) -> Result<()> {
        let problems: Vec<String> = result.problems.iter().map(ToString::to_string).collect();
        ensure!(problems.is_empty(), "verification failed: {}", problems.join("\n  "));
        verify_command::say(result, started.elapsed().as_secs_f64(), self.report);
        Ok(())
    }
}

/// What follows [`PROMPT`] by the checkpoint in `folder`: ids with the bits of their log probabilities, and the text.
fn generate(folder: &Path) -> Result<(Vec<(u32, u32)>, String)> {
    let source = Source::open(folder, None, false)?;
    let companions = source.model.folder.clone().context("the checkpoint brings its tokenizer")?;
    let tokenizer = Tokenizer::load(&companions)?.context("the checkpoint brings its tokenizer")?;
    let backend = Cpu::new(threads(None), Precision::Float32)?;
    let model = Model::load(source, backend, &ModelOptions { threads: threads(None), ..ModelOptions::default() })?;
    let options = GenerateOptions {
        max_new: 48,
        stop: Vec::new(),
        chunk: 512,
        top_logprobs: 0,
        scratch: std::env::temp_dir(),
        candidates: tokenizer.vocab_size(),
    };
    let mut samplers = [Sampler::new(Sampling::default())?];
    let prompt = tokenizer.encode(PROMPT, true)?;
    let out = longshore_infer::generate::generate(&model, &[prompt], &options, &mut samplers, &mut |_, _| true)?;
    let tokens = &out.texts[0].0;
    let ids: Vec<u32> = tokens.iter().map(|t| t.id).collect();
    Ok((tokens.iter().map(|t| (t.id, t.logprob.to_bits())).collect(), tokenizer.decode(&ids, true)?))
}

fn head(catalog: &Catalog) -> String {
    let tensors: Vec<(&String, &TensorInfo)> = catalog.tensors.iter().collect();
    inspect::head(catalog, &tensors, &inspect::model(catalog))
}

/// The bytes of all tensors of two safetensors folders, if they are the same in both.
fn same_bytes(a: &Catalog, b: &Catalog) -> Result<u64> {
    ensure!(a.tensors.keys().eq(b.tensors.keys()), "source and export have different tensors");
    let mut total = 0;
    for (name, info) in &a.tensors {
        let (ours, theirs) = (data(a, info)?, data(b, &b.tensors[name])?);
        ensure!(info.dtype == b.tensors[name].dtype && ours == theirs, "tensor `{name}` differs");
        total += ours.len() as u64;
    }
    Ok(total)
}

fn data(catalog: &Catalog, info: &TensorInfo) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for chunk in &info.chunks {
        let mut part = vec![0; usize::try_from(chunk.extent.len)?];
        ReadFile::open(&catalog.path(chunk.extent.file))?.read_exact_at(chunk.extent.offset, &mut part)?;
        bytes.extend(part);
    }
    Ok(bytes)
}
