//! From flags and variables to the library's options: flag > `MLM_EXTRA_ARGS` > variable > default, with the origin of
//! each. (The scripts append the extra arguments after those made from variables, so there too they win.)
//!
//! Everything here is a function of the arguments and an [`Env`]; nothing looks at the process or the disk.

mod cut;

pub(crate) use cut::cut;

use crate::cli::quantize::{Compat, QuantizeArgs};
use crate::cli::{
    ConvertArgs, DtypeName, ExportArgs, MegatronArgs, MtpArg, Norms, OutputArgs, Spec, Target, WriteArgs,
};
use crate::error::UsageError;
use crate::extra_args::{self, Expected, Extra, Job};
use longshore_ckpt::{Catalog, Dtype, Format};
use longshore_convert::options::HF_FILE_SIZE;
use longshore_convert::{DtypeChoice, ExportOptions, ImportOptions, Layout, MtpChoice, NormKeys, SpecName, model};
use serde::{Serialize, Serializer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::num::NonZero;
use std::path::{Path, PathBuf};

/// Variables of the scripts that start processes or other programs: nothing a checkpoint shows.
pub(crate) const IGNORED_VARIABLES: [&str; 8] =
    ["CP", "DP", "HF_TOKEN", "LAUNCH_SCRIPT", "MLM_ENV_SETUP", "MLM_SKIP_INSTALL", "SANDBOX_ENV_SETUP", "SANDBOX_ROOT"];

/// The environment. An empty variable counts as unset.
#[derive(Debug, Default)]
pub(crate) struct Env(BTreeMap<OsString, OsString>);

impl Env {
    pub(crate) fn from_process() -> Self {
        Self(std::env::vars_os().filter(|(_, value)| !value.is_empty()).collect())
    }

    #[cfg(test)]
    pub(crate) fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().filter(|p| !p.1.is_empty()).map(|p| (p.0.into(), p.1.into())).collect())
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.into(), value.into());
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(&OsString::from(name))
    }

    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.0.get(&OsString::from(name)).map(PathBuf::from)
    }

    pub(crate) fn text(&self, name: &'static str) -> Result<Option<&str>, UsageError> {
        let Some(value) = self.0.get(&OsString::from(name)) else { return Ok(None) };
        value.to_str().map(Some).ok_or_else(|| UsageError::Value {
            name: format!("${name}"),
            value: value.to_string_lossy().into_owned(),
            expected: "UTF-8",
        })
    }

    /// What no message may show; the error is that it is not UTF-8.
    pub(crate) fn secret(&self, name: &str) -> Option<Result<&str, ()>> {
        self.0.get(&OsString::from(name)).map(|value| value.to_str().ok_or(()))
    }

    fn positive(&self, name: &'static str) -> Result<Option<u64>, UsageError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        extra_args::parse_positive(&format!("${name}"), text).map(Some)
    }
}

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The command line.
    Flag,
    /// A variable.
    Variable(&'static str),
    /// Nobody said.
    Default,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Variable(name) => write!(f, "${name}"),
            Self::Default => f.write_str("default"),
        }
    }
}

impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A value and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given<T> {
    pub(crate) value: T,
    pub(crate) origin: Origin,
}

/// One resolved option, for the report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Choice {
    /// The flag's name.
    #[serde(skip)]
    pub(crate) name: &'static str,
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

/// A conversion with its direction.
#[derive(Clone, Debug)]
pub(crate) enum Direction {
    /// Hugging Face → `torch_dist`.
    Import(ImportOptions),
    /// `torch_dist` → Hugging Face.
    Export(ExportOptions),
}

/// How a torch_dist source names its tensors, which what is made of it keeps where nobody says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredKeys {
    pub(crate) spec: SpecName,
    pub(crate) norms: NormKeys,
}

impl StoredKeys {
    /// Those of `catalog`, if it is torch_dist.
    pub(crate) fn of(catalog: &Catalog) -> Option<Self> {
        let keys = || Self { spec: model::spec(catalog), norms: model::spec_keys(catalog).norms };
        (catalog.format == Format::TorchDist).then(keys)
    }
}

/// A writing command, resolved.
#[derive(Debug)]
pub(crate) struct WriteOptions<D = Direction> {
    pub(crate) direction: D,
    pub(crate) threads: usize,
    pub(crate) force: bool,
    pub(crate) dry_run: bool,
    /// Every option with its origin, in the order of the help.
    pub(crate) choices: Vec<Choice>,
    /// Model arguments of `MLM_EXTRA_ARGS`, to compare with the model.
    pub(crate) expected: Vec<Expected>,
    /// Settings that were found and change nothing here, named under `-v`.
    pub(crate) unused: Vec<String>,
}

/// SRC and DST of `convert`, not looked up yet.
pub(crate) fn convert_paths(args: &ConvertArgs, env: &Env) -> Result<[Given<PathBuf>; 2], UsageError> {
    Ok([
        path(args.source.as_ref(), env, &["MLM_MODEL_CKPT", "HF_MODEL_CKPT"], "SRC")?,
        destination(args.destination.as_ref(), env, "MLM_MODEL_SAVE", "_mlm")?,
    ])
}

/// SRC and DST of `export`, not looked up yet.
pub(crate) fn export_paths(args: &ExportArgs, env: &Env) -> Result<[Given<PathBuf>; 2], UsageError> {
    Ok([
        path(args.source.as_ref(), env, &["MLM_MODEL_CKPT"], "SRC")?,
        destination(args.destination.as_ref(), env, "EXPORT_DIR", "_export")?,
    ])
}

pub(crate) fn path(
    flag: Option<&PathBuf>,
    env: &Env,
    variables: &[&'static str],
    argument: &'static str,
) -> Result<Given<PathBuf>, UsageError> {
    if let Some(flag) = flag {
        return Ok(Given { value: flag.clone(), origin: Origin::Flag });
    }
    for &name in variables {
        if let Some(value) = env.path(name) {
            return Ok(Given { value, origin: Origin::Variable(name) });
        }
    }
    let variable = variables.last().expect("every path has a variable");
    Err(UsageError::Absent { argument, variable })
}

/// The variable, else the scripts' default `$MLM_WORK_DIR/$MLM_MODEL_CFG<suffix>`.
fn destination(
    flag: Option<&PathBuf>,
    env: &Env,
    variable: &'static str,
    suffix: &str,
) -> Result<Given<PathBuf>, UsageError> {
    let named = path(flag, env, &[variable], "DST");
    let (Err(_), Some(config)) = (&named, env.text("MLM_MODEL_CFG")?) else { return named };
    let work = env
        .path("MLM_WORK_DIR")
        .unwrap_or_else(|| env.path("TMPDIR").unwrap_or_else(|| PathBuf::from("/tmp")).join("megatron_workspace"));
    Ok(Given { value: work.join(format!("{config}{suffix}")), origin: Origin::Variable("MLM_MODEL_CFG") })
}

/// SRC and DST of `quantize`, not looked up yet.
pub(crate) fn quantize_paths(args: &QuantizeArgs, env: &Env) -> Result<[Given<PathBuf>; 2], UsageError> {
    Ok([
        path(args.source.as_ref(), env, &["MLM_MODEL_CKPT", "HF_MODEL_CKPT"], "SRC")?,
        destination(args.destination.as_ref(), env, "MLM_MODEL_SAVE", "_quant")?,
    ])
}

/// One output of `quantize`; `stored` are the keys of a torch_dist source.
pub(crate) fn quantize(
    args: &QuantizeArgs,
    env: &Env,
    target: Target,
    stored: Option<StoredKeys>,
) -> Result<WriteOptions, UsageError> {
    let output = OutputArgs {
        max_file_size: args.output.max_file_size,
        threads: args.engine.threads,
        allow_unmapped: args.engine.allow_unmapped,
        force: args.output.force,
        dry_run: args.output.dry_run,
    };
    let write = WriteArgs { base: args.engine.base.clone(), output, ..WriteArgs::default() };
    match target {
        Target::TorchDist => import_options(&args.megatron, &write, (env, Job::Quantize), stored, false),
        Target::Hf => {
            if args.output.to == Some(Target::Hf) {
                refuse(&megatron_flags(&args.megatron), "a Hugging Face")?;
            }
            let base = write.base.clone().map(|value| Given { value, origin: Origin::Flag });
            export_options(&write, base, args.what.compat, (env, Job::Quantize))
        }
    }
}

/// The format that `convert` writes: as asked; else what `MLM_MODEL_SAVE` names; else the other one than the source's.
pub(crate) fn target_format(args: &ConvertArgs, source: Format, destination: &Given<PathBuf>) -> Format {
    match (args.to, source) {
        (Some(Target::Hf), _) => Format::Safetensors,
        (None, Format::TorchDist) if destination.origin == Origin::Flag => Format::Safetensors,
        _ => Format::TorchDist,
    }
}

/// `convert` of a `source` of that format into `target`; `stored` are the keys of a torch_dist source.
pub(crate) fn convert(
    args: &ConvertArgs,
    env: &Env,
    source: (&Path, Format),
    target: Format,
    stored: Option<StoredKeys>,
) -> Result<WriteOptions, UsageError> {
    match (source.1, target) {
        (_, Format::TorchDist) => {
            let dequantize = args.dequantize;
            if source.1 == Format::TorchDist {
                refuse(&dequantize.then_some("--dequantize").into_iter().collect::<Vec<_>>(), "a re-cut torch_dist")?;
            }
            import_options(&args.megatron, &args.write, (env, Job::Convert), stored, dequantize)
        }
        (Format::TorchDist, Format::Safetensors) => {
            let mut flags = megatron_flags(&args.megatron);
            flags.extend(args.dequantize.then_some("--dequantize"));
            refuse(&flags, "a Hugging Face")?;
            let base = args.write.base.clone().map(|value| Given { value, origin: Origin::Flag });
            export_options(&args.write, base, None, (env, Job::Convert))
        }
        (Format::Safetensors, Format::Safetensors) => {
            Err(UsageError::SameFormat { path: source.0.to_owned(), format: format_name(target) })
        }
    }
}

/// `export` of a `torch_dist` source.
pub(crate) fn export(args: &ExportArgs, env: &Env, source: (&Path, Format)) -> Result<WriteOptions, UsageError> {
    if source.1 == Format::Safetensors {
        return Err(UsageError::SameFormat { path: source.0.to_owned(), format: format_name(source.1) });
    }
    let base = path(args.write.base.as_ref(), env, &["HF_MODEL_CKPT"], "--base").ok();
    export_options(&args.write, base, args.compat, (env, Job::Export))
}

/// The name of a format in options, reports and JSON.
pub(crate) fn format_name(format: Format) -> &'static str {
    match format {
        Format::Safetensors => "safetensors",
        Format::TorchDist => "torch_dist",
    }
}

/// `flag`, or one thread per processor.
pub(crate) fn threads(flag: Option<u16>) -> usize {
    flag.map_or_else(|| std::thread::available_parallelism().map_or(1, NonZero::get), usize::from)
}

fn import_options(
    m: &MegatronArgs,
    w: &WriteArgs,
    (env, job): (&Env, Job),
    stored: Option<StoredKeys>,
    dequantize: bool,
) -> Result<WriteOptions, UsageError> {
    let given = [("--vocab-size", w.vocab_size.is_some()), ("--mtp-from-base", w.prediction.mtp_from_base)];
    refuse(&given.into_iter().filter(|given| given.1).map(|given| given.0).collect::<Vec<_>>(), "a torch_dist")?;
    let mut extra = Extra::of(env, job)?;
    let mut c = Choices { env, list: Vec::new() };
    let spec_flag = if m.full_te_spec { Some(Spec::Te) } else { m.spec };
    let spec = c.pick("spec", spec_flag.map(spec_name), extra.spec, stored.map_or(SpecName::Te, |keys| keys.spec));
    let own_norms = match stored {
        Some(keys) if keys.spec == spec => keys.norms,
        _ => NormKeys::of(spec),
    };
    let norms_flag = if m.export_te_mcore_model { Some(Norms::Fused) } else { m.norms };
    let norms = c.pick("norms", norms_flag.map(norm_keys), extra.norms, own_norms);
    let tp = c.size("tp", m.tp, extra.tp, "TP", 1)?;
    let layout = Layout {
        tp,
        pp: c.size("pp", m.pp, extra.pp, "PP", 1)?,
        ep: c.size("ep", m.ep, extra.ep, "EP", 1)?,
        etp: c.size("etp", m.etp, extra.etp, "ETP", tp)?,
    };
    let dtype = c.dtype(w.dtype, &extra);
    let make_vocab_size_divisible_by =
        c.pick("make-vocab-size-divisible-by", m.make_vocab_size_divisible_by.map(Some), extra.divisor.map(Some), None);
    let options = ImportOptions {
        spec,
        norms,
        layout,
        lower_layout: c.pick("lower-layout", m.lower_layout.then_some(true), None, false),
        dtype,
        make_vocab_size_divisible_by,
        iteration: c.pick("iteration", m.iteration.map(Some), None, None),
        core_attention_states: core_attention_states(c.pick("mcore", m.mcore.clone().map(Some), None, None))?,
        dequantize: c.pick("dequantize", dequantize.then_some(true), None, false),
        allow_unmapped: c.pick("allow-unmapped", w.output.allow_unmapped.then_some(true), None, false),
        mtp: c.pick("mtp", w.prediction.mtp.map(mtp_choice), None, MtpChoice::Keep),
        base: c.pick("base", w.base.clone().map(Some), None, None),
        max_file_size: c.pick("max-file-size", w.output.max_file_size.map(Some), None, None),
    };
    extra.unused.extend(ignored_variables(env, &[]));
    Ok(c.finish(Direction::Import(options), &w.output, extra))
}

fn export_options(
    w: &WriteArgs,
    base: Option<Given<PathBuf>>,
    compat: Option<Compat>,
    (env, job): (&Env, Job),
) -> Result<WriteOptions, UsageError> {
    let mut extra = Extra::of(env, job)?;
    extra.unused.append(&mut extra.import_only);
    let mut c = Choices { env, list: Vec::new() };
    let base_origin = base.as_ref().map_or(Origin::Default, |given| given.origin);
    let options = ExportOptions {
        base: c.record("base", base.map(|given| given.value), base_origin),
        dtype: c.dtype(w.dtype, &extra),
        mtp: c.pick("mtp", w.prediction.mtp.map(mtp_choice), None, MtpChoice::Keep),
        mtp_from_base: c.pick("mtp-from-base", w.prediction.mtp_from_base.then_some(true), None, false),
        vocab_size: c.pick("vocab-size", w.vocab_size.map(Some), None, None),
        allow_unmapped: c.pick("allow-unmapped", w.output.allow_unmapped.then_some(true), None, false),
        max_file_size: c.pick("max-file-size", w.output.max_file_size, None, HF_FILE_SIZE),
        compat_modelopt: c.pick("compat", compat.map(|_| true), None, false),
    };
    extra.unused.extend(ignored_variables(env, &["TP", "PP", "EP", "ETP"]));
    Ok(c.finish(Direction::Export(options), &w.output, extra))
}

/// Picks values by precedence and remembers every choice.
struct Choices<'a> {
    env: &'a Env,
    list: Vec<Choice>,
}

impl Choices<'_> {
    fn record<T: Serialize>(&mut self, name: &'static str, value: T, origin: Origin) -> T {
        let json = serde_json::to_value(&value).unwrap_or(Value::Null);
        self.list.push(Choice { name, value: json, origin });
        value
    }

    fn pick<T: Serialize>(&mut self, name: &'static str, flag: Option<T>, extra: Option<T>, default: T) -> T {
        match (flag, extra) {
            (Some(value), _) => self.record(name, value, Origin::Flag),
            (None, Some(value)) => self.record(name, value, Origin::Variable("MLM_EXTRA_ARGS")),
            (None, None) => self.record(name, default, Origin::Default),
        }
    }

    /// A parallel size, which also has a variable of its own.
    fn size(
        &mut self,
        name: &'static str,
        flag: Option<u64>,
        extra: Option<u64>,
        variable: &'static str,
        default: u64,
    ) -> Result<u64, UsageError> {
        match (flag.or(extra), self.env.positive(variable)) {
            (None, Ok(Some(value))) => Ok(self.record(name, value, Origin::Variable(variable))),
            (None, Err(error)) => Err(error),
            _ => Ok(self.pick(name, flag, extra, default)),
        }
    }

    fn dtype(&mut self, flag: Option<DtypeName>, extra: &Extra) -> DtypeChoice {
        self.pick("dtype", flag.map(dtype_choice), extra.dtype.map(DtypeChoice::Cast), DtypeChoice::Keep)
    }

    fn finish<D>(mut self, direction: D, w: &OutputArgs, extra: Extra) -> WriteOptions<D> {
        let origin = if w.threads.is_some() { Origin::Flag } else { Origin::Default };
        let threads = self.record("threads", threads(w.threads), origin);
        let force = self.pick("force", w.force.then_some(true), None, false);
        let (expected, unused) = (extra.expected, extra.unused);
        WriteOptions { direction, threads, force, dry_run: w.dry_run, choices: self.list, expected, unused }
    }
}

fn spec_name(spec: Spec) -> SpecName {
    match spec {
        Spec::Te => SpecName::Te,
        Spec::Local => SpecName::Local,
    }
}

fn norm_keys(norms: Norms) -> NormKeys {
    match norms {
        Norms::Fused => NormKeys::Fused,
        Norms::Separate => NormKeys::Separate,
    }
}

fn mtp_choice(mtp: MtpArg) -> MtpChoice {
    match mtp {
        MtpArg::Keep => MtpChoice::Keep,
        MtpArg::Drop => MtpChoice::Drop,
    }
}

fn dtype_choice(dtype: DtypeName) -> DtypeChoice {
    match dtype {
        DtypeName::Keep => DtypeChoice::Keep,
        DtypeName::Bf16 => DtypeChoice::Cast(Dtype::Bfloat16),
        DtypeName::Fp16 => DtypeChoice::Cast(Dtype::Float16),
        DtypeName::Fp32 => DtypeChoice::Cast(Dtype::Float32),
    }
}

/// Whether this Megatron-Core version asks for `core_attention._extra_state`: 0.12 to 0.14 do, later ones do not.
fn core_attention_states(version: Option<String>) -> Result<bool, UsageError> {
    let Some(value) = version else { return Ok(false) };
    let mut parts = value.trim_start_matches('v').split('.').map(|part| part.parse::<u32>().ok());
    match (value.as_str(), parts.next().flatten(), parts.next().flatten()) {
        (_, Some(0), Some(12..=14)) => Ok(true),
        ("main" | "dev", ..) | (_, Some(0), Some(15..)) | (_, Some(1..), Some(_)) => Ok(false),
        _ => Err(UsageError::Value { name: "--mcore".into(), value, expected: "0.12 or later, such as 0.14, or main" }),
    }
}

/// The flags among `m` that were given.
fn megatron_flags(m: &MegatronArgs) -> Vec<&'static str> {
    let given = [
        ("--spec", m.spec.is_some() || m.full_te_spec),
        ("--norms", m.norms.is_some() || m.export_te_mcore_model),
        ("--tp", m.tp.is_some()),
        ("--pp", m.pp.is_some()),
        ("--ep", m.ep.is_some()),
        ("--etp", m.etp.is_some()),
        ("--make-vocab-size-divisible-by", m.make_vocab_size_divisible_by.is_some()),
        ("--iteration", m.iteration.is_some()),
        ("--mcore", m.mcore.is_some()),
    ];
    given.into_iter().filter(|(_, is_given)| *is_given).map(|(name, _)| name).collect()
}

fn refuse(flags: &[&str], output: &'static str) -> Result<(), UsageError> {
    if flags.is_empty() {
        return Ok(());
    }
    Err(UsageError::NoEffect { options: flags.iter().map(|flag| format!("`{flag}`")).collect(), output })
}

fn ignored_variables(env: &Env, here: &[&'static str]) -> Vec<String> {
    IGNORED_VARIABLES.iter().chain(here).filter(|name| env.has(name)).map(|name| format!("${name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert_with(args: &ConvertArgs, env: &[(&str, &str)]) -> Result<WriteOptions, UsageError> {
        let (source, env) = ((Path::new("/hf"), Format::Safetensors), Env::of(env));
        convert(args, &env, source, Format::TorchDist, None)
    }

    fn import_with(args: &ConvertArgs, env: &[(&str, &str)]) -> ImportOptions {
        match convert_with(args, env).expect("the options are right").direction {
            Direction::Import(options) => options,
            Direction::Export(_) => panic!("an import was asked for"),
        }
    }

    fn origins(args: &ConvertArgs, env: &[(&str, &str)]) -> Vec<String> {
        let options = convert_with(args, env).expect("the options are right");
        let given = options.choices.iter().filter(|c| c.origin != Origin::Default);
        given.map(|c| format!("{}={} {}", c.name, c.value, c.origin)).collect()
    }

    fn tp(n: u64) -> ConvertArgs {
        ConvertArgs { megatron: MegatronArgs { tp: Some(n), ..MegatronArgs::default() }, ..ConvertArgs::default() }
    }

    fn spec(spec: Spec) -> ConvertArgs {
        ConvertArgs { megatron: MegatronArgs { spec: Some(spec), ..MegatronArgs::default() }, ..ConvertArgs::default() }
    }

    #[test]
    fn nothing_given_means_te_fused_uncut_and_kept() {
        let o = import_with(&ConvertArgs::default(), &[]);
        assert_eq!((o.spec, o.norms, o.dtype), (SpecName::Te, NormKeys::Fused, DtypeChoice::Keep));
        assert_eq!(o.layout, Layout { tp: 1, pp: 1, ep: 1, etp: 1 });
        assert_eq!(origins(&ConvertArgs::default(), &[]), [] as [String; 0]);
    }

    #[test]
    fn a_flag_beats_extra_arguments_and_they_beat_a_variable() {
        let extra = ("MLM_EXTRA_ARGS", "--tensor-model-parallel-size 4");
        assert_eq!(origins(&tp(8), &[("TP", "2"), extra]), ["tp=8 flag"]);
        assert_eq!(origins(&ConvertArgs::default(), &[("TP", "2"), extra]), ["tp=4 $MLM_EXTRA_ARGS"]);
        assert_eq!(origins(&ConvertArgs::default(), &[("TP", "2")]), ["tp=2 $TP"]);
        assert_eq!(origins(&ConvertArgs::default(), &[("TP", "")]), [] as [String; 0]);
    }

    #[test]
    fn etp_follows_tp_until_it_is_named() {
        assert_eq!(import_with(&tp(4), &[]).layout.etp, 4);
        assert_eq!(import_with(&ConvertArgs::default(), &[("TP", "4"), ("ETP", "1")]).layout.etp, 1);
    }

    #[test]
    fn a_variable_that_is_no_size_is_named() {
        for value in ["two", "0", "-1", "1.5"] {
            let error = convert_with(&ConvertArgs::default(), &[("EP", value)]).expect_err("no size");
            assert_eq!(error.to_string(), format!("`$EP` is `{value}`: expected a whole number of at least 1"));
        }
    }

    #[test]
    fn norms_follow_the_spec_until_they_are_named() {
        let fused = [("MLM_EXTRA_ARGS", "--export-te-mcore-model")];
        assert_eq!(import_with(&spec(Spec::Local), &[]).norms, NormKeys::Separate);
        assert_eq!(import_with(&spec(Spec::Local), &fused).norms, NormKeys::Fused);
        let te = [("MLM_EXTRA_ARGS", "--full-te-spec")];
        assert_eq!(import_with(&ConvertArgs::default(), &te).spec, SpecName::Te);
        assert_eq!(import_with(&spec(Spec::Local), &te).spec, SpecName::Local);
    }

    #[test]
    fn megatron_versions_select_the_extra_states() {
        let states = |version: &str| core_attention_states(Some(version.into()));
        for old in ["0.12", "0.13.1", "v0.14.0"] {
            assert_eq!(states(old), Ok(true), "{old}");
        }
        for new in ["0.15", "0.16.1", "0.19.0", "1.0", "main"] {
            assert_eq!(states(new), Ok(false), "{new}");
        }
        for bad in ["", "0", "0.11", "core_v0.14"] {
            assert!(states(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mlm_model_ckpt_wins_over_hf_model_ckpt_and_an_argument_over_both() {
        let env = Env::of(&[("HF_MODEL_CKPT", "/hf"), ("MLM_MODEL_CKPT", "/mlm"), ("MLM_MODEL_SAVE", "/save")]);
        let [source, destination] = convert_paths(&ConvertArgs::default(), &env).expect("both are given");
        assert_eq!((source.value.to_str(), source.origin), (Some("/mlm"), Origin::Variable("MLM_MODEL_CKPT")));
        assert_eq!(destination.value.to_str(), Some("/save"));
        let args = ConvertArgs { source: Some("/arg".into()), ..ConvertArgs::default() };
        assert_eq!(convert_paths(&args, &env).expect("both are given")[0].value.to_str(), Some("/arg"));
    }

    #[test]
    fn the_scripts_default_destination_needs_the_models_name() {
        let args = ConvertArgs { source: Some("/arg".into()), ..ConvertArgs::default() };
        let work = [("MLM_WORK_DIR", "/scratch"), ("MLM_MODEL_CFG", "nvidia/Nano")];
        let [_, destination] = convert_paths(&args, &Env::of(&work)).expect("the name is there");
        assert_eq!(destination.value.to_str(), Some("/scratch/nvidia/Nano_mlm"));
        let absent = UsageError::Absent { argument: "DST", variable: "MLM_MODEL_SAVE" };
        assert_eq!(convert_paths(&args, &Env::of(&work[..1])), Err(absent));
    }

    #[test]
    fn the_other_format_is_the_default_target() {
        let typed = Given { value: PathBuf::from("/d"), origin: Origin::Flag };
        let save = Given { value: PathBuf::from("/d"), origin: Origin::Variable("MLM_MODEL_SAVE") };
        let args = ConvertArgs::default();
        assert_eq!(target_format(&args, Format::Safetensors, &typed), Format::TorchDist);
        assert_eq!(target_format(&args, Format::TorchDist, &typed), Format::Safetensors);
        assert_eq!(target_format(&args, Format::TorchDist, &save), Format::TorchDist);
    }

    #[test]
    fn flags_without_effect_on_the_output_are_refused() {
        let source = (Path::new("/mc"), Format::TorchDist);
        let error = convert(&tp(2), &Env::default(), source, Format::Safetensors, None).expect_err("no effect");
        assert_eq!(error.to_string(), "`--tp` has no effect on a Hugging Face output");
        let args =
            ConvertArgs { write: WriteArgs { vocab_size: Some(1), ..WriteArgs::default() }, ..ConvertArgs::default() };
        let error = convert_with(&args, &[]).expect_err("no effect");
        assert_eq!(error.to_string(), "`--vocab-size` has no effect on a torch_dist output");
    }

    #[test]
    fn export_takes_its_base_from_the_scripts_variable_and_ignores_the_layout() {
        let env = Env::of(&[
            ("HF_MODEL_CKPT", "/hf"),
            ("TP", "8"),
            ("CP", "1"),
            ("MLM_EXTRA_ARGS", "--export-te-mcore-model --bf16 --finetune"),
        ]);
        let o = export(&ExportArgs::default(), &env, (Path::new("/mc"), Format::TorchDist)).expect("right");
        let Direction::Export(options) = o.direction else { panic!("an export was asked for") };
        assert_eq!(options.base, Some(PathBuf::from("/hf")));
        assert_eq!(options.dtype, DtypeChoice::Cast(Dtype::Bfloat16));
        assert_eq!(options.max_file_size, HF_FILE_SIZE);
        assert_eq!(o.unused, ["--export-te-mcore-model", "--finetune", "$CP", "$TP"]);
    }

    #[test]
    fn a_megatron_checkpoint_is_cut_anew_in_the_spec_that_it_has_and_a_folder_is_not_rewritten() {
        let (args, env) = (tp(4), Env::default());
        let source = (Path::new("/mc"), Format::TorchDist);
        let o = convert(
            &args,
            &env,
            source,
            Format::TorchDist,
            Some(StoredKeys { spec: SpecName::Local, norms: NormKeys::Fused }),
        )
        .expect("right");
        let Direction::Import(options) = o.direction else { panic!("torch_dist was asked for") };
        assert_eq!((options.spec, options.norms, options.layout.tp), (SpecName::Local, NormKeys::Fused, 4));
        let args = ConvertArgs { dequantize: true, ..ConvertArgs::default() };
        assert!(convert(&args, &env, source, Format::TorchDist, None).is_err());
        let source = (Path::new("/hf"), Format::Safetensors);
        let error = convert(&ConvertArgs::default(), &env, source, Format::Safetensors, None).expect_err("same");
        assert_eq!(
            error.to_string(),
            "`/hf` is safetensors already; rewriting safetensors as safetensors is not supported"
        );
    }
}
