//! `MLM_EXTRA_ARGS`: Megatron-LM and `ModelOpt` arguments that users of the existing scripts already have.
//!
//! [`table`] says of every argument that Megatron and the scripts know what it means for each [`Job`]: acted on, compared
//! with the model, irrelevant, refused. What is not in the table is an error, because an argument that is silently ignored
//! is how checkpoints go wrong.

mod apply;
mod table;

pub(crate) use apply::apply;

use crate::error::UsageError;
use crate::nearest::nearest;
use crate::options::{Env, IGNORED_VARIABLES};
use longshore_ckpt::Dtype;
use longshore_convert::{NormKeys, SpecName};
use std::collections::BTreeMap;
use std::fmt::Write;
use table::{Act, Flag, IRRELEVANT, Meaning, TABLE, Takes};

/// What a command does with the arguments; each is one of the scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    Convert,
    Quantize,
    Export,
    Generate,
    Mmlu,
}

/// What `MLM_EXTRA_ARGS` says; of an argument given twice the last counts, as in argparse.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Extra {
    pub(crate) spec: Option<SpecName>,
    pub(crate) norms: Option<NormKeys>,
    pub(crate) tp: Option<u64>,
    pub(crate) pp: Option<u64>,
    pub(crate) ep: Option<u64>,
    pub(crate) etp: Option<u64>,
    pub(crate) dtype: Option<Dtype>,
    pub(crate) divisor: Option<u64>,
    /// Model arguments: name without dashes and value, `true` for a switch.
    pub(crate) expected: Vec<Expected>,
    /// Arguments above that mean nothing to a Hugging Face output.
    pub(crate) import_only: Vec<String>,
    /// Arguments without effect in this job.
    pub(crate) unused: Vec<String>,
    /// What [`apply()`] turns into flags, by what it does.
    flags: BTreeMap<Flag, (String, String)>,
}

/// A model argument, to compare with the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Without dashes.
    pub(crate) name: String,
    /// `true` for a switch.
    pub(crate) value: String,
    /// Whether it decides shapes, so that a contradiction is an error.
    pub(crate) shape: bool,
}

/// What the table says of a name.
struct Entry {
    meaning: Meaning,
    takes: Takes,
}

fn entry(name: &str) -> Option<Entry> {
    if let Some(group) = TABLE.iter().find(|group| group.names.contains(&name)) {
        return Some(Entry { meaning: group.meaning, takes: group.takes });
    }
    irrelevant().find(|(known, _)| *known == name).map(|(_, takes)| Entry { meaning: Meaning::Irrelevant, takes })
}

/// The names that mean nothing here.
fn irrelevant() -> impl Iterator<Item = (&'static str, Takes)> {
    IRRELEVANT.lines().map(|line| match line.split_once(' ') {
        None => (line, Takes::Nothing),
        Some((name, "X")) => (name, Takes::One),
        Some((name, _)) => (name, Takes::Many),
    })
}

impl Extra {
    /// What `$MLM_EXTRA_ARGS` means for `job`.
    pub(crate) fn of(env: &Env, job: Job) -> Result<Self, UsageError> {
        Self::parse(env.text("MLM_EXTRA_ARGS")?.unwrap_or_default(), job)
    }

    /// Splits and looks up; all faults at once.
    pub(crate) fn parse(text: &str, job: Job) -> Result<Self, UsageError> {
        let words = split(text).map_err(|problem| UsageError::ExtraArgs { problems: vec![problem] })?;
        let (mut extra, mut problems) = (Self::default(), Vec::new());
        let mut rest = words.as_slice();
        while let Some((word, after)) = rest.split_first() {
            rest = after;
            let (name, joined) = word.split_once('=').map_or((word.as_str(), None), |(n, v)| (n, Some(v)));
            let Some(entry) = entry(name) else {
                problems.push(unknown(name));
                // Its values are not mistakes of their own.
                rest = &rest[values(rest)..];
                continue;
            };
            let value = match (entry.takes, joined) {
                (Takes::Nothing, None) => "true",
                (Takes::Nothing, Some(_)) => {
                    problems.push(format!("`{name}` takes no value"));
                    continue;
                }
                (_, Some(value)) => value,
                (Takes::One, None) if values(rest) > 0 => {
                    let value = &rest[0];
                    rest = &rest[1..];
                    value
                }
                (Takes::Many, None) if values(rest) > 0 => {
                    rest = &rest[values(rest)..];
                    ""
                }
                (_, None) => {
                    problems.push(format!("`{name}` needs a value"));
                    continue;
                }
            };
            if let Err(problem) = extra.take(entry.meaning, name, value, job) {
                problems.push(problem);
            }
        }
        if problems.is_empty() { Ok(extra) } else { Err(UsageError::ExtraArgs { problems }) }
    }

    /// Whether nothing is to be generated after quantizing.
    pub(crate) fn has_skip_generate(&self) -> bool {
        self.flags.contains_key(&Flag::SkipGenerate)
    }

    fn take(&mut self, meaning: Meaning, name: &str, value: &str, job: Job) -> Result<(), String> {
        match meaning {
            Meaning::Act(act, jobs) if jobs.contains(&job) => return self.act(act, name, value),
            Meaning::Act(..) | Meaning::Irrelevant => self.unused.push(name.to_owned()),
            Meaning::Shape | Meaning::Compute => {
                let (name, shape) = (name.trim_start_matches('-').to_owned(), meaning == Meaning::Shape);
                self.expected.retain(|earlier| earlier.name != name);
                self.expected.push(Expected { name, value: value.to_owned(), shape });
            }
            Meaning::Only(nothing, _) if value == nothing => self.unused.push(name.to_owned()),
            Meaning::Only(_, why) => return Err(format!("`{name} {value}` is not supported: {why}")),
            Meaning::Path => return Err(format!("`{name}`: name paths as arguments or variables")),
            Meaning::Unsupported(why) => return Err(format!("`{name}` is not supported: {why}")),
        }
        Ok(())
    }

    fn act(&mut self, act: Act, name: &str, value: &str) -> Result<(), String> {
        let positive = || parse_positive(name, value).map_err(|error| error.to_string());
        match act {
            Act::TeSpec => self.spec = Some(SpecName::Te),
            Act::FusedNorms => self.norms = Some(NormKeys::Fused),
            Act::Tp => self.tp = Some(positive()?),
            Act::Pp => self.pp = Some(positive()?),
            Act::Ep => self.ep = Some(positive()?),
            Act::Etp => self.etp = Some(positive()?),
            Act::VocabularyDivisor => self.divisor = Some(positive()?),
            Act::Bf16 => self.dtype = Some(Dtype::Bfloat16),
            Act::Fp16 => self.dtype = Some(Dtype::Float16),
            Act::Flag(flag) => return self.flag(flag, name, value),
        }
        if !matches!(act, Act::Bf16 | Act::Fp16) {
            self.import_only.push(name.to_owned());
        }
        Ok(())
    }

    fn flag(&mut self, flag: Flag, name: &str, value: &str) -> Result<(), String> {
        if flag == Flag::KvCache && ["fp8_affine", "nvfp4_affine", "nvfp4_rotate"].contains(&value) {
            return Err(format!("`{name} {value}` is not supported: use fp8 or nvfp4"));
        }
        self.flags.insert(flag, (name.to_owned(), value.to_owned()));
        Ok(())
    }
}

/// A whole number of at least 1, given as `name`.
pub(crate) fn parse_positive(name: &str, value: &str) -> Result<u64, UsageError> {
    value.trim().parse().ok().filter(|n| *n >= 1).ok_or_else(|| UsageError::Value {
        name: name.to_owned(),
        value: value.to_owned(),
        expected: "a whole number of at least 1",
    })
}

fn unknown(name: &str) -> String {
    let known = TABLE.iter().flat_map(|group| group.names).copied().chain(irrelevant().map(|(name, _)| name));
    match nearest(name, known) {
        Some(nearest) => format!("`{name}` is not known; the nearest known name is `{nearest}`"),
        None => format!("`{name}` is not known"),
    }
}

/// How many words stand before the next argument. A negative number is a value.
fn values(words: &[String]) -> usize {
    words.iter().take_while(|word| !word.starts_with("--")).count()
}

/// Splits as a POSIX shell does, without expansions: white space, quotes, backslashes.
fn split(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => words.extend(word.take()),
            '\'' | '"' => quoted(c, &mut chars, word.get_or_insert_default())?,
            '\\' => word.get_or_insert_default().push(chars.next().ok_or("a backslash ends the text")?),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

fn quoted(quote: char, chars: &mut std::str::Chars, word: &mut String) -> Result<(), String> {
    while let Some(c) = chars.next() {
        match c {
            c if c == quote => return Ok(()),
            '\\' if quote == '"' => match chars.next() {
                Some(c @ ('"' | '\\' | '$' | '`')) => word.push(c),
                Some(c) => word.extend(['\\', c]),
                None => break,
            },
            c => word.push(c),
        }
    }
    Err(format!("a {quote} is not closed"))
}

/// The text of `longshore help env`.
pub(crate) fn help() -> String {
    let mut text = String::from(
        "Variables of the ModelOpt/Megatron scripts. An argument beats its variable; empty means unset.\n\n",
    );
    let variables = [
        ("HF_MODEL_CKPT", "SRC of convert and quantize, CKPT of generate and eval; --base of export;"),
        ("", "beside MLM_MODEL_CKPT the tokenizer"),
        ("MLM_MODEL_CKPT", "SRC of export; of the others it wins over HF_MODEL_CKPT"),
        ("MLM_MODEL_SAVE", "DST of convert and quantize"),
        ("EXPORT_DIR", "DST of export"),
        ("MLM_MODEL_CFG", "without these two: $MLM_WORK_DIR/$MLM_MODEL_CFG and _mlm, _quant or _export"),
        ("MLM_WORK_DIR", "[default: megatron_workspace in the temporary directory]"),
        ("TP PP EP ETP", "--tp --pp --ep --etp"),
        ("QUANT_CFG", "--quant-cfg of quantize"),
        ("TOKENIZER_MODEL", "--tokenizer, beside MLM_MODEL_CKPT"),
        ("MLM_EXTRA_ARGS", "split as a shell does and looked up in the table below"),
        ("MMLU_DATASET", "--data of eval mmlu"),
        ("HF_HUB_CACHE HF_HOME", "where the Hugging Face cache is"),
        ("NO_COLOR", "no colours"),
    ];
    for (name, meaning) in variables {
        let _ = writeln!(text, "  {name:<21} {meaning}");
    }
    let _ = writeln!(text, "\nIgnored: {}.", IGNORED_VARIABLES.join(" "));
    text += "\nMLM_EXTRA_ARGS, as convert, quantize, export, generate and eval mmlu take it. A flag beats it,\n\
        and it beats the other variables. What is not listed is an error.\n";
    let mut last = "";
    for group in TABLE {
        if group.text != last {
            let refused = if matches!(group.meaning, Meaning::Unsupported(_)) { "refused: " } else { "" };
            let _ = writeln!(text, "\n  {refused}{}:", group.text);
            last = group.text;
        }
        for name in group.names {
            let _ = writeln!(text, "    {name}{}", takes(group.takes));
        }
    }
    text += "\n  no effect here, as in the scripts or because they decide how Megatron runs (named under -v):\n";
    let mut line = String::from("   ");
    for (name, takes_) in irrelevant() {
        let word = format!(" {name}{}", takes(takes_));
        if line.len() + word.len() > WIDTH {
            let _ = writeln!(text, "{line}");
            line = String::from("   ");
        }
        line += &word;
    }
    text += &line;
    text
}

/// Columns of the list of names without effect: what the help does not wrap anew.
const WIDTH: usize = 98;

fn takes(takes: Takes) -> &'static str {
    match takes {
        Takes::Nothing => "",
        Takes::One => " X",
        Takes::Many => " X...",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOBS: [Job; 5] = [Job::Convert, Job::Quantize, Job::Export, Job::Generate, Job::Mmlu];

    fn problems(text: &str, job: Job) -> Vec<String> {
        match Extra::parse(text, job) {
            Err(UsageError::ExtraArgs { problems }) => problems,
            other => panic!("expected problems, found {other:?}"),
        }
    }

    #[test]
    fn words_split_as_in_a_shell() {
        let words = |text: &str| split(text).expect("well formed");
        assert_eq!(words("  --a 1\t--b=2\n"), ["--a", "1", "--b=2"]);
        assert_eq!(words(r#"--p 'M-M*|E' "a b"c \* "q\"\n" '' "#), ["--p", "M-M*|E", "a bc", "*", "q\"\\n", ""]);
        for bad in ["'a", "\"a", "\"a\\", "a\\"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_name_is_in_one_group() {
        let names: Vec<&str> = TABLE.iter().flat_map(|group| group.names).copied().collect();
        let all: Vec<&str> = names.into_iter().chain(irrelevant().map(|(name, _)| name)).collect();
        for (i, name) in all.iter().enumerate() {
            let is_plain = name[2..].bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
            assert!(name.starts_with("--") && is_plain && !all[..i].contains(name), "{name}");
        }
        assert!(all.len() > 1000, "{}", all.len());
    }

    #[test]
    fn mapped_arguments_set_options() {
        let text = "--full-te-spec --export-te-mcore-model --fp16 --bf16 --make-vocab-size-divisible-by=128";
        let extra = Extra::parse(text, Job::Convert).expect("known");
        assert_eq!((extra.spec, extra.norms), (Some(SpecName::Te), Some(NormKeys::Fused)));
        assert_eq!((extra.dtype, extra.divisor), (Some(Dtype::Bfloat16), Some(128)));
        assert_eq!(Extra::parse("--export-default-te-spec", Job::Mmlu).expect("known").spec, Some(SpecName::Te));
        // Nothing is written that has a layout.
        assert_eq!(Extra::parse("--expert-model-parallel-size 4", Job::Mmlu).expect("known").ep, None);
    }

    #[test]
    fn model_arguments_are_kept_for_the_comparison() {
        let text = "--num-layers 3 --num-layers 52 --hybrid-layer-pattern 'M*-E' --squared-relu";
        let extra = Extra::parse(text, Job::Generate).expect("known");
        let expected = |name: &str, value: &str, shape| Expected { name: name.into(), value: value.into(), shape };
        assert_eq!(
            extra.expected,
            [
                expected("num-layers", "52", true),
                expected("hybrid-layer-pattern", "M*-E", true),
                expected("squared-relu", "true", false)
            ]
        );
    }

    #[test]
    fn an_argument_of_another_job_has_no_effect_and_is_named() {
        let text = "--fraction 0.05 --disable-tqdm --calib-size 8 --osl 3";
        let flags = |job| {
            let extra = Extra::parse(text, job).expect("known");
            (extra.flags.into_keys().collect::<Vec<_>>(), extra.unused)
        };
        assert_eq!(flags(Job::Mmlu).0, [Flag::Fraction, Flag::NoProgress]);
        assert_eq!(flags(Job::Quantize).0, [Flag::CalibSize, Flag::NoProgress]);
        assert_eq!(flags(Job::Generate).0, [Flag::MaxNew, Flag::NoProgress]);
        assert_eq!(
            flags(Job::Convert),
            (vec![Flag::NoProgress], ["--fraction", "--calib-size", "--osl"].map(str::to_owned).to_vec())
        );
    }

    #[test]
    fn irrelevant_arguments_are_named() {
        let text = "--sequence-parallel --data-path 0.5 a 0.5 b --lr -1e-4 --finetune --seq-length 4096";
        for job in JOBS {
            let extra = Extra::parse(text, job).expect("known");
            assert_eq!(extra.unused, ["--sequence-parallel", "--data-path", "--lr", "--finetune", "--seq-length"]);
            assert_eq!(extra.expected, []);
        }
    }

    #[test]
    fn all_faults_come_at_once_with_the_nearest_name() {
        assert_eq!(
            problems(
                "--num-layer 3 stray --zzzzzzzz --tensor-model-parallel-size --finetune=1 --expert-model-parallel-size x",
                Job::Convert
            ),
            [
                "`--num-layer` is not known; the nearest known name is `--num-layers`",
                "`--zzzzzzzz` is not known",
                "`--tensor-model-parallel-size` needs a value",
                "`--finetune` takes no value",
                "`--expert-model-parallel-size` is `x`: expected a whole number of at least 1",
            ]
        );
        assert_eq!(problems("stray", Job::Export), ["`stray` is not known"]);
    }

    #[test]
    fn what_is_not_supported_is_refused_in_every_job() {
        for job in JOBS {
            assert_eq!(
                problems("--auto-quantize-bits 4.8 --load /x --ckpt-format torch --draft-length 3 --compress", job),
                [
                    "`--auto-quantize-bits` is not supported: AutoQuantize is not supported; name a config or a recipe \
                     (`longshore quantize --list`)",
                    "`--load`: name paths as arguments or variables",
                    "`--ckpt-format torch` is not supported: torch_dist is the format that is written",
                    "`--draft-length 3` is not supported: speculative decoding models are not supported; \
                     `generate --mtp` uses the model's own layers",
                    "`--compress` is not supported: weights stay values in a Megatron checkpoint; `export` packs them",
                ]
            );
            assert!(Extra::parse("--draft-length 0 --algorithm None --export-kv-cache-quant none", job).is_ok());
        }
        assert_eq!(
            problems("--export-kv-cache-quant fp8_affine", Job::Quantize),
            ["`--export-kv-cache-quant fp8_affine` is not supported: use fp8 or nvfp4"]
        );
    }
}
