//! Arguments that stand for flags of a command: where the command line has not got the flag itself.

use super::table::Flag;
use super::{Extra, Job};
use crate::cli::eval::EvalTask;
use crate::cli::{Cli, Command};
use crate::error::UsageError;
use crate::options::Env;
use std::str::FromStr;

/// Sets the flags that `$MLM_EXTRA_ARGS` names; `given` tells by its id whether the command line has an argument.
pub(crate) fn apply(cli: &mut Cli, given: &dyn Fn(&str) -> bool, env: &Env) -> Result<(), UsageError> {
    let job = match &cli.command {
        Command::Convert(_) | Command::Import(_) | Command::Plan(_) => Job::Convert,
        Command::Quantize(_) => Job::Quantize,
        Command::Export(_) => Job::Export,
        Command::Generate(_) => Job::Generate,
        Command::Eval(args) if matches!(args.task, EvalTask::Mmlu(_)) => Job::Mmlu,
        _ => return Ok(()),
    };
    let mut flags = Flags { extra: Extra::of(env, job)?, given, problems: Vec::new() };
    flags.switch(Flag::NoProgress, "no_progress", &mut cli.global.no_progress);
    match &mut cli.command {
        Command::Quantize(args) => {
            flags.option(Flag::QuantCfg, "quant_cfg", &mut args.what.quant_cfg);
            flags.option(Flag::KvCache, "kv_cache", &mut args.what.kv_cache);
            flags.switch(Flag::WeightOnly, "weight_only", &mut args.what.weight_only);
            flags.switch(Flag::DisableQkvQuant, "disable_qkv_quant", &mut args.what.disable_qkv_quant);
            flags.option(Flag::Calib, "calib", &mut args.calib.calib);
            flags.positive(Flag::CalibSize, "calib_size", &mut args.calib.calib_size);
            flags.positive(Flag::CalibSeq, "calib_seq", &mut args.calib.calib_seq);
            flags.positive(Flag::CalibBatch, "calib_batch", &mut args.calib.calib_batch);
            flags.switch(Flag::SkipGenerate, "skip_generate", &mut args.output.skip_generate);
            flags.option(Flag::Prompts, "prompts", &mut args.smoke.prompts);
            flags.option(Flag::References, "references", &mut args.smoke.references);
            flags.value(Flag::GenerateLen, "generate_len", &mut args.smoke.generate_len, "a whole number");
        }
        Command::Generate(args) => {
            flags.value(Flag::MaxNew, "max_new", &mut args.max_new, "a whole number");
        }
        Command::Eval(args) => {
            if let EvalTask::Mmlu(args) = &mut args.task {
                flags.value(Flag::Fraction, "fraction", &mut args.ask.fraction, "a number");
                flags.value(Flag::FewShots, "few_shots", &mut args.ask.few_shots, "a whole number");
                let mut bound = args.lower_bound.unwrap_or_default();
                if flags.value(Flag::LowerBound, "lower_bound", &mut bound, "a number") {
                    args.lower_bound = Some(bound);
                }
                flags.option(Flag::MmluDataset, "data", &mut args.data);
            }
        }
        _ => {}
    }
    if flags.problems.is_empty() { Ok(()) } else { Err(UsageError::ExtraArgs { problems: flags.problems }) }
}

/// The arguments on their way into a command's flags.
struct Flags<'a> {
    extra: Extra,
    given: &'a dyn Fn(&str) -> bool,
    problems: Vec<String>,
}

impl Flags<'_> {
    /// The argument and its value, unless the command line has the flag `id`.
    fn named(&mut self, flag: Flag, id: &str) -> Option<(String, String)> {
        self.extra.flags.remove(&flag).filter(|_| !(self.given)(id))
    }

    fn switch(&mut self, flag: Flag, id: &str, target: &mut bool) {
        *target |= self.named(flag, id).is_some();
    }

    fn option<T: From<String>>(&mut self, flag: Flag, id: &str, target: &mut Option<T>) {
        if let Some((_, value)) = self.named(flag, id) {
            *target = Some(value.into());
        }
    }

    /// Whether a value was there and could be read.
    fn value<T: FromStr>(&mut self, flag: Flag, id: &str, target: &mut T, expected: &str) -> bool {
        let Some((name, text)) = self.named(flag, id) else { return false };
        match text.parse() {
            Ok(value) => {
                *target = value;
                true
            }
            Err(_) => {
                self.problems.push(format!("`{name}` is `{text}`: expected {expected}"));
                false
            }
        }
    }

    fn positive<T: FromStr + PartialEq + Default>(&mut self, flag: Flag, id: &str, target: &mut T) {
        let name = self.extra.flags.get(&flag).cloned();
        if self.value(flag, id, target, "a whole number of at least 1") && *target == T::default() {
            let (name, text) = name.unwrap_or_default();
            self.problems.push(format!("`{name}` is `{text}`: expected a whole number of at least 1"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;

    fn applied(line: &[&str], extra: &str) -> Result<Cli, UsageError> {
        let (mut cli, given) = cli::parse_from(line).expect("well formed");
        let env = Env::of(&[("MLM_EXTRA_ARGS", extra)]);
        apply(&mut cli, &|id| given.has(id), &env)?;
        Ok(cli)
    }

    #[test]
    fn arguments_become_flags_unless_the_flag_is_there() {
        let extra = "--calib-size 8 --calib-max-sequence-length 64 --export-quant-cfg fp8 --weight-only --disable-tqdm";
        let cli = applied(&["longshore", "quantize", "a", "b", "--calib-size", "512"], extra).expect("known");
        let Command::Quantize(args) = cli.command else { panic!("quantize") };
        assert_eq!((args.calib.calib_size, args.calib.calib_seq), (512, 64));
        assert_eq!((args.what.quant_cfg.as_deref(), args.what.weight_only), (Some("fp8"), true));
        assert!(cli.global.no_progress);

        let extra = "--fraction 0.05 --lower-bound 0.3";
        let cli = applied(&["longshore", "eval", "mmlu", "--few-shots", "5"], extra).expect("known");
        let Command::Eval(args) = cli.command else { panic!("eval") };
        let EvalTask::Mmlu(args) = args.task else { panic!("mmlu") };
        assert_eq!((args.ask.fraction, args.ask.few_shots, args.lower_bound), (0.05, 5, Some(0.3)));
    }

    #[test]
    fn values_that_do_not_fit_are_all_named() {
        let error = applied(&["longshore", "quantize"], "--calib-size 0 --calib-batch-size x --generate-output-len -1");
        let Err(UsageError::ExtraArgs { problems }) = error else { panic!("expected problems") };
        assert_eq!(
            problems,
            [
                "`--calib-size` is `0`: expected a whole number of at least 1",
                "`--calib-batch-size` is `x`: expected a whole number of at least 1",
                "`--generate-output-len` is `-1`: expected a whole number",
            ]
        );
    }

    #[test]
    fn commands_that_no_script_stands_for_do_not_read_the_arguments() {
        assert!(applied(&["longshore", "inspect", "a"], "--no-such-thing").is_ok());
        assert!(applied(&["longshore", "generate", "a"], "--no-such-thing").is_err());
    }
}
