//! `MLM_EXTRA_ARGS`: Megatron-LM and `ModelOpt` arguments that users of the existing scripts already have.
//!
//! [`TABLE`] says of every argument what it means for a checkpoint. What is not in the table is an error, because an
//! argument that is silently ignored is how checkpoints go wrong. Names as in megatron-core 0.12 to 0.19
//! (`megatron/training/arguments.py`) and `ModelOpt` 0.47 (`examples/megatron-lm`).

use crate::error::UsageError;
use crate::nearest::nearest;
use crate::options::IGNORED_VARIABLES;
use longshore_ckpt::Dtype;
use longshore_convert::{NormKeys, SpecName};
use std::fmt::Write;

/// How many words follow an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Nothing,
    One,
    /// Everything up to the next `--`.
    Many,
}

/// What an argument means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    TeSpec,
    FusedNorms,
    Tp,
    Pp,
    Ep,
    Etp,
    Bf16,
    Fp16,
    VocabularyDivisor,
    /// The only format written.
    CheckpointFormat,
    /// Compared with the model, see [`crate::model_args`].
    Model,
    Irrelevant,
    /// Paths have arguments and variables of their own.
    Path,
    /// Belongs to a job that this version does not do.
    Elsewhere,
}

/// Arguments of one meaning.
struct Group {
    meaning: Meaning,
    takes: Takes,
    /// For `longshore help env`.
    text: &'static str,
    names: &'static [&'static str],
}

/// Every known argument.
const TABLE: &[Group] = &[
    Group {
        meaning: Meaning::TeSpec,
        takes: Takes::Nothing,
        text: "--spec te",
        names: &["--full-te-spec", "--export-default-te-spec"],
    },
    Group {
        meaning: Meaning::FusedNorms,
        takes: Takes::Nothing,
        text: "--norms fused",
        names: &["--export-te-mcore-model"],
    },
    Group { meaning: Meaning::Tp, takes: Takes::One, text: "--tp N", names: &["--tensor-model-parallel-size"] },
    Group { meaning: Meaning::Pp, takes: Takes::One, text: "--pp N", names: &["--pipeline-model-parallel-size"] },
    Group { meaning: Meaning::Ep, takes: Takes::One, text: "--ep N", names: &["--expert-model-parallel-size"] },
    Group { meaning: Meaning::Etp, takes: Takes::One, text: "--etp N", names: &["--expert-tensor-parallel-size"] },
    Group { meaning: Meaning::Bf16, takes: Takes::Nothing, text: "--dtype bf16", names: &["--bf16"] },
    Group { meaning: Meaning::Fp16, takes: Takes::Nothing, text: "--dtype fp16", names: &["--fp16"] },
    Group {
        meaning: Meaning::VocabularyDivisor,
        takes: Takes::One,
        text: "--make-vocab-size-divisible-by N (torch_dist output)",
        names: &["--make-vocab-size-divisible-by"],
    },
    Group {
        meaning: Meaning::CheckpointFormat,
        takes: Takes::One,
        text: "must be torch_dist",
        names: &["--ckpt-format", "--dist-ckpt-format"],
    },
    Group {
        meaning: Meaning::Model,
        takes: Takes::One,
        text: "compared with the model; a contradiction is an error",
        names: &[
            "--ffn-hidden-size",
            "--hidden-size",
            "--hybrid-attention-ratio",
            "--hybrid-layer-pattern",
            "--hybrid-mlp-ratio",
            "--hybrid-override-pattern",
            "--kv-channels",
            "--mamba-head-dim",
            "--mamba-num-groups",
            "--mamba-num-heads",
            "--mamba-state-dim",
            "--max-position-embeddings",
            "--moe-ffn-hidden-size",
            "--moe-latent-size",
            "--moe-router-group-topk",
            "--moe-router-num-groups",
            "--moe-router-score-function",
            "--moe-router-topk",
            "--moe-router-topk-scaling-factor",
            "--moe-shared-expert-intermediate-size",
            "--mtp-hybrid-override-pattern",
            "--mtp-num-layers",
            "--norm-epsilon",
            "--normalization",
            "--num-attention-heads",
            "--num-experts",
            "--num-layers",
            "--num-query-groups",
            "--position-embedding-type",
            "--vocab-size",
        ],
    },
    Group {
        meaning: Meaning::Model,
        takes: Takes::Nothing,
        text: "compared with the model; a contradiction is an error",
        names: &[
            "--add-qkv-bias",
            "--apply-layernorm-1p",
            "--disable-bias-linear",
            "--group-query-attention",
            "--is-hybrid-model",
            "--moe-router-enable-expert-bias",
            "--mtp-use-repeated-layer",
            "--squared-relu",
            "--swiglu",
            "--untie-embeddings-and-output-weights",
        ],
    },
    Group {
        meaning: Meaning::Irrelevant,
        takes: Takes::One,
        text: "no effect: it sets what Megatron computes in; router tensors keep their stored dtype",
        names: &["--moe-router-dtype"],
    },
    Group {
        meaning: Meaning::Irrelevant,
        takes: Takes::Nothing,
        text: "no effect on a checkpoint",
        names: &[
            "--accumulate-allreduce-grads-in-fp32",
            "--apply-query-key-layer-scaling",
            "--async-save",
            "--attention-softmax-in-fp32",
            "--auto-detect-ckpt-format",
            "--calculate-per-token-loss",
            "--ckpt-assume-constant-structure",
            "--ckpt-convert-update-legacy-dist-opt-format",
            "--ckpt-fully-parallel-load",
            "--ckpt-fully-parallel-save",
            "--cross-entropy-loss-fusion",
            "--deterministic-mode",
            "--disable-tqdm",
            "--distribute-saved-activations",
            "--enable-experimental",
            "--exit-on-missing-checkpoint",
            "--finetune",
            "--first-last-layers-bf16",
            "--init-model-with-meta-device",
            "--log-memory-to-tensorboard",
            "--log-num-zeros-in-grad",
            "--log-params-norm",
            "--log-throughput",
            "--log-timers-to-tensorboard",
            "--log-validation-ppl-to-tensorboard",
            "--manual-gc",
            "--mock-data",
            "--moe-grouped-gemm",
            "--moe-pad-expert-input-to-capacity",
            "--moe-per-layer-logging",
            "--moe-permute-fusion",
            "--moe-router-fusion",
            "--moe-router-pre-softmax",
            "--moe-shared-expert-overlap",
            "--moe-use-legacy-grouped-gemm",
            "--no-async-tensor-model-parallel-allreduce",
            "--no-bias-dropout-fusion",
            "--no-bias-gelu-fusion",
            "--no-bias-swiglu-fusion",
            "--no-check-for-nan-in-loss-and-grad",
            "--no-ckpt-fully-parallel-save",
            "--no-create-attention-mask-in-dataloader",
            "--no-gradient-accumulation-fusion",
            "--no-initialization",
            "--no-load-optim",
            "--no-load-rng",
            "--no-masked-softmax-fusion",
            "--no-mmap-bin-files",
            "--no-one-logger",
            "--no-persist-layer-norm",
            "--no-rope-fusion",
            "--no-save-optim",
            "--no-save-rng",
            "--no-use-tokenizer-model-from-checkpoint-args",
            "--overlap-grad-reduce",
            "--overlap-param-gather",
            "--recompute-activations",
            "--reset-attention-mask",
            "--reset-position-ids",
            "--sequence-parallel",
            "--skip-train",
            "--trust-remote-code",
            "--tp-comm-overlap",
            "--use-checkpoint-args",
            "--use-cpu-initialization",
            "--use-dist-ckpt",
            "--use-distributed-optimizer",
            "--use-flash-attn",
            "--use-fused-weighted-squared-relu",
            "--use-mcore-models",
            "--use-mp-args-from-checkpoint-args",
            "--use-persistent-ckpt-worker",
            "--use-precision-aware-optimizer",
            "--use-pytorch-profiler",
            "--use-rope-scaling",
            "--use-rotary-position-embeddings",
            "--use-te-rng-tracker",
            "--use-tp-pp-dp-mapping",
        ],
    },
    Group {
        meaning: Meaning::Irrelevant,
        takes: Takes::One,
        text: "no effect on a checkpoint",
        names: &[
            "--adam-beta1",
            "--adam-beta2",
            "--adam-eps",
            "--attention-backend",
            "--attention-dropout",
            "--clip-grad",
            "--context-parallel-size",
            "--cross-entropy-fusion-impl",
            "--cuda-graph-impl",
            "--data-cache-path",
            "--dataloader-type",
            "--decoder-first-pipeline-num-layers",
            "--decoder-last-pipeline-num-layers",
            "--dist-ckpt-strictness",
            "--distributed-backend",
            "--distributed-timeout-minutes",
            "--empty-unused-memory-level",
            "--eval-interval",
            "--eval-iters",
            "--exit-duration-in-mins",
            "--exit-interval",
            "--export-model-type",
            "--global-batch-size",
            "--hidden-dropout",
            "--inference-max-requests",
            "--inference-max-seq-length",
            "--init-method-std",
            "--log-interval",
            "--lr",
            "--lr-decay-iters",
            "--lr-decay-samples",
            "--lr-decay-style",
            "--lr-warmup-fraction",
            "--lr-warmup-iters",
            "--lr-warmup-samples",
            "--lr-wsd-decay-style",
            "--manual-gc-interval",
            "--micro-batch-size",
            "--min-lr",
            "--moe-aux-loss-coeff",
            "--moe-expert-capacity-factor",
            "--moe-router-bias-update-rate",
            "--moe-router-load-balancing-type",
            "--moe-token-dispatcher-type",
            "--moe-z-loss-coeff",
            "--mtp-loss-scaling-factor",
            "--num-dataset-builder-threads",
            "--num-layers-per-virtual-pipeline-stage",
            "--num-workers",
            "--optimizer",
            "--recompute-granularity",
            "--recompute-method",
            "--recompute-num-layers",
            "--rotary-base",
            "--rotary-percent",
            "--save-interval",
            "--seed",
            "--seq-length",
            "--split",
            "--tensorboard-dir",
            "--tensorboard-log-interval",
            "--tiktoken-pattern",
            "--timing-log-level",
            "--timing-log-option",
            "--tokenizer-model",
            "--tokenizer-type",
            "--train-iters",
            "--train-samples",
            "--transformer-impl",
            "--virtual-pipeline-model-parallel-size",
            "--wandb-exp-name",
            "--wandb-project",
            "--wandb-save-dir",
            "--weight-decay",
        ],
    },
    Group {
        meaning: Meaning::Irrelevant,
        takes: Takes::Many,
        text: "no effect on a checkpoint",
        names: &["--data-path", "--recompute-modules", "--spec"],
    },
    Group {
        meaning: Meaning::Path,
        takes: Takes::One,
        text: "an error: paths are arguments or variables",
        names: &[
            "--export-dir",
            "--extra-model-path",
            "--load",
            "--pretrained-checkpoint",
            "--pretrained-model-path",
            "--save",
        ],
    },
    Group {
        meaning: Meaning::Elsewhere,
        takes: Takes::One,
        text: "an error: belongs to a job that this version does not do",
        names: &[
            "--calib-batch-size",
            "--calib-dataset",
            "--calib-dataset-path-or-name",
            "--calib-max-sequence-length",
            "--calib-size",
            "--draft-len",
            "--export-kv-cache-quant",
            "--export-quant-cfg",
            "--few-shots",
            "--fraction",
            "--generate-output-len",
            "--lora-rank",
            "--lower-bound",
            "--mmlu-batch-size",
            "--osl",
            "--recipe",
        ],
    },
    Group {
        meaning: Meaning::Elsewhere,
        takes: Takes::Nothing,
        text: "an error: belongs to a job that this version does not do",
        names: &[
            "--compress",
            "--disable-qkv-quant",
            "--export-offline-model",
            "--fp8-param-gather",
            "--skip-generate",
            "--weight-only",
        ],
    },
];

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
    pub(crate) expected: Vec<(String, String)>,
    /// Arguments above that mean nothing to a Hugging Face output.
    pub(crate) import_only: Vec<String>,
    /// Irrelevant arguments.
    pub(crate) unused: Vec<String>,
}

impl Extra {
    /// Splits and looks up; all faults at once.
    pub(crate) fn parse(text: &str) -> Result<Self, UsageError> {
        let words = split(text).map_err(|problem| UsageError::ExtraArgs { problems: vec![problem] })?;
        let (mut extra, mut problems) = (Self::default(), Vec::new());
        let mut rest = words.as_slice();
        while let Some((word, after)) = rest.split_first() {
            rest = after;
            let (name, joined) = word.split_once('=').map_or((word.as_str(), None), |(n, v)| (n, Some(v)));
            let Some(group) = TABLE.iter().find(|group| group.names.contains(&name)) else {
                problems.push(unknown(name));
                // Its values are not mistakes of their own.
                rest = &rest[values(rest)..];
                continue;
            };
            let value = match (group.takes, joined) {
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
            if let Err(problem) = extra.apply(group.meaning, name, value) {
                problems.push(problem);
            }
        }
        if problems.is_empty() { Ok(extra) } else { Err(UsageError::ExtraArgs { problems }) }
    }

    fn apply(&mut self, meaning: Meaning, name: &str, value: &str) -> Result<(), String> {
        let positive = || parse_positive(name, value).map_err(|error| error.to_string());
        match meaning {
            Meaning::TeSpec => self.spec = Some(SpecName::Te),
            Meaning::FusedNorms => self.norms = Some(NormKeys::Fused),
            Meaning::Tp => self.tp = Some(positive()?),
            Meaning::Pp => self.pp = Some(positive()?),
            Meaning::Ep => self.ep = Some(positive()?),
            Meaning::Etp => self.etp = Some(positive()?),
            Meaning::VocabularyDivisor => self.divisor = Some(positive()?),
            Meaning::Bf16 => self.dtype = Some(Dtype::Bfloat16),
            Meaning::Fp16 => self.dtype = Some(Dtype::Float16),
            Meaning::CheckpointFormat if value == "torch_dist" => self.unused.push(name.to_owned()),
            Meaning::CheckpointFormat => return Err(format!("`{name} {value}`: only torch_dist is supported")),
            Meaning::Model => self.expected.push((name.trim_start_matches('-').to_owned(), value.to_owned())),
            Meaning::Irrelevant => self.unused.push(name.to_owned()),
            Meaning::Path => return Err(format!("`{name}`: name paths as arguments or variables")),
            Meaning::Elsewhere => return Err(format!("`{name}` belongs to a job that this version does not do")),
        }
        if !matches!(
            meaning,
            Meaning::Bf16 | Meaning::Fp16 | Meaning::CheckpointFormat | Meaning::Model | Meaning::Irrelevant
        ) {
            self.import_only.push(name.to_owned());
        }
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
    let known = TABLE.iter().flat_map(|group| group.names).copied();
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
        ("HF_MODEL_CKPT", "SRC of convert and quantize, CKPT of generate and eval; --base of export"),
        ("MLM_MODEL_CKPT", "SRC of export; of the others it wins over HF_MODEL_CKPT"),
        ("MLM_MODEL_SAVE", "DST of convert and quantize"),
        ("EXPORT_DIR", "DST of export"),
        ("MLM_MODEL_CFG", "without these two: $MLM_WORK_DIR/$MLM_MODEL_CFG and _mlm, _quant or _export"),
        ("MLM_WORK_DIR", "[default: megatron_workspace in the temporary directory]"),
        ("TP PP EP ETP", "--tp --pp --ep --etp"),
        ("MLM_EXTRA_ARGS", "split as a shell does and looked up in the table below"),
        ("QUANT_CFG", "--quant-cfg of quantize"),
        ("MMLU_DATASET", "--data of eval mmlu"),
        ("HF_HUB_CACHE HF_HOME", "where the Hugging Face cache is"),
        ("NO_COLOR", "no colours"),
    ];
    for (name, meaning) in variables {
        let _ = writeln!(text, "  {name:<21} {meaning}");
    }
    // One of them is read by another command than those that ignore it.
    let ignored: Vec<&str> = IGNORED_VARIABLES.into_iter().filter(|name| *name != "QUANT_CFG").collect();
    let _ = writeln!(text, "\nIgnored: {}.", ignored.join(" "));
    text += "\nMLM_EXTRA_ARGS. An argument that is not listed is an error.\n";
    let mut last = "";
    for group in TABLE {
        if group.text != last {
            let _ = writeln!(text, "\n  {}:", group.text);
            last = group.text;
        }
        for name in group.names {
            let value = match group.takes {
                Takes::Nothing => "",
                Takes::One => " X",
                Takes::Many => " X...",
            };
            let _ = writeln!(text, "    {name}{value}");
        }
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        match Extra::parse(text) {
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
        for (i, name) in names.iter().enumerate() {
            assert!(name.starts_with("--") && !names[..i].contains(name), "{name}");
        }
    }

    #[test]
    fn mapped_arguments_set_options() {
        let extra =
            Extra::parse("--full-te-spec --export-te-mcore-model --fp16 --bf16 --make-vocab-size-divisible-by=128")
                .expect("known");
        assert_eq!((extra.spec, extra.norms), (Some(SpecName::Te), Some(NormKeys::Fused)));
        assert_eq!((extra.dtype, extra.divisor), (Some(Dtype::Bfloat16), Some(128)));
        assert_eq!(Extra::parse("--export-default-te-spec").expect("known").spec, Some(SpecName::Te));
    }

    #[test]
    fn model_arguments_are_kept_for_the_comparison() {
        let extra = Extra::parse("--num-layers 52 --hybrid-layer-pattern 'M*-E' --squared-relu").expect("known");
        let expected = [("num-layers", "52"), ("hybrid-layer-pattern", "M*-E"), ("squared-relu", "true")];
        assert_eq!(extra.expected, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn irrelevant_arguments_are_named() {
        let extra = Extra::parse("--sequence-parallel --data-path 0.5 a 0.5 b --lr -1e-4 --finetune").expect("known");
        assert_eq!(extra.unused, ["--sequence-parallel", "--data-path", "--lr", "--finetune"]);
    }

    #[test]
    fn all_faults_come_at_once_with_the_nearest_name() {
        assert_eq!(
            problems(
                "--num-layer 3 stray --zzzzzzzz --tensor-model-parallel-size --finetune=1 --expert-model-parallel-size x"
            ),
            [
                "`--num-layer` is not known; the nearest known name is `--num-layers`",
                "`--zzzzzzzz` is not known",
                "`--tensor-model-parallel-size` needs a value",
                "`--finetune` takes no value",
                "`--expert-model-parallel-size` is `x`: expected a whole number of at least 1",
            ]
        );
        assert_eq!(problems("stray"), ["`stray` is not known"]);
    }

    #[test]
    fn arguments_of_other_jobs_are_not_ignored() {
        assert_eq!(
            problems("--export-quant-cfg FP8_DEFAULT_CFG --load /x --ckpt-format torch"),
            [
                "`--export-quant-cfg` belongs to a job that this version does not do",
                "`--load`: name paths as arguments or variables",
                "`--ckpt-format torch`: only torch_dist is supported",
            ]
        );
    }
}
