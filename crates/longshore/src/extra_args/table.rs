//! What every argument means. Names as in Megatron-LM of August 2026 and its releases 0.12 to 0.19
//! (`megatron/training/arguments.py` and its dataclasses, `megatron/post_training/arguments.py`) and the scripts of
//! `examples/post_training/modelopt`.

use super::Job;

/// How many words follow an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    Nothing,
    One,
    /// Everything up to the next `--`.
    Many,
}

/// What an argument does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    TeSpec,
    FusedNorms,
    Tp,
    Pp,
    Ep,
    Etp,
    Bf16,
    Fp16,
    VocabularyDivisor,
    Flag(Flag),
}

/// An argument that stands for a flag of one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Flag {
    QuantCfg,
    KvCache,
    WeightOnly,
    DisableQkvQuant,
    Calib,
    CalibSize,
    CalibSeq,
    CalibBatch,
    SkipGenerate,
    Prompts,
    References,
    GenerateLen,
    MaxNew,
    Fraction,
    FewShots,
    LowerBound,
    MmluDataset,
    NoProgress,
}

/// What an argument means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// In these jobs; in others it has no effect, as there.
    Act(Act, &'static [Job]),
    /// Decides shapes: compared with the model, see [`crate::model_args`]; a contradiction is an error.
    Shape,
    /// Decides how Megatron computes: compared with the model, whose own value counts; a contradiction is a warning.
    Compute,
    Irrelevant,
    /// Paths have arguments and variables of their own.
    Path,
    /// Nothing unless it has another value than this.
    Only(&'static str, &'static str),
    /// Refused, with what to use instead.
    Unsupported(&'static str),
}

/// Arguments of one meaning.
pub(super) struct Group {
    pub(super) meaning: Meaning,
    pub(super) takes: Takes,
    /// For `longshore help env`.
    pub(super) text: &'static str,
    pub(super) names: &'static [&'static str],
}

/// Everything else that Megatron and the scripts know: a name a line, with ` X` if a value follows and ` X...` if several
/// may.
pub(super) const IRRELEVANT: &str = include_str!("irrelevant.txt");

const WRITERS: &[Job] = &[Job::Convert, Job::Quantize];
const QUANTIZE: &[Job] = &[Job::Quantize];
const GENERATE: &[Job] = &[Job::Generate];
const MMLU: &[Job] = &[Job::Mmlu];
const ALL: &[Job] = &[Job::Convert, Job::Quantize, Job::Export, Job::Generate, Job::Mmlu];

const SHAPE: &str = "compared with the model that is read; a contradiction is an error";
const COMPUTE: &str = "compared with the model that is read, whose own value counts; a contradiction is a warning";
const SPECULATION: &str = "speculative decoding models are not supported; `generate --mtp` uses the model's own layers";
const TRAINING: &str = "training, distillation and pruning are not supported; longshore reads what they wrote";
const SEARCH: &str = "AutoQuantize is not supported; name a config or a recipe (`longshore quantize --list`)";

const fn act(
    act: Act,
    jobs: &'static [Job],
    takes: Takes,
    text: &'static str,
    names: &'static [&'static str],
) -> Group {
    Group { meaning: Meaning::Act(act, jobs), takes, text, names }
}

const fn refused(why: &'static str, takes: Takes, names: &'static [&'static str]) -> Group {
    Group { meaning: Meaning::Unsupported(why), takes, text: why, names }
}

/// Every argument with a meaning.
pub(super) const TABLE: &[Group] = &[
    act(
        Act::TeSpec,
        ALL,
        Takes::Nothing,
        "convert, quantize: --spec te; elsewhere the keys of the checkpoint decide",
        &["--full-te-spec", "--export-default-te-spec"],
    ),
    act(Act::FusedNorms, WRITERS, Takes::Nothing, "convert, quantize: --norms fused", &["--export-te-mcore-model"]),
    act(Act::Tp, WRITERS, Takes::One, "convert, quantize: --tp", &["--tensor-model-parallel-size"]),
    act(Act::Pp, WRITERS, Takes::One, "convert, quantize: --pp", &["--pipeline-model-parallel-size"]),
    act(Act::Ep, WRITERS, Takes::One, "convert, quantize: --ep", &["--expert-model-parallel-size"]),
    act(Act::Etp, WRITERS, Takes::One, "convert, quantize: --etp", &["--expert-tensor-parallel-size"]),
    act(Act::Bf16, ALL, Takes::Nothing, "convert, quantize, export: --dtype bf16", &["--bf16"]),
    act(Act::Fp16, ALL, Takes::Nothing, "convert, quantize, export: --dtype fp16", &["--fp16"]),
    act(
        Act::VocabularyDivisor,
        WRITERS,
        Takes::One,
        "convert, quantize: --make-vocab-size-divisible-by (torch_dist output)",
        &["--make-vocab-size-divisible-by"],
    ),
    act(Act::Flag(Flag::QuantCfg), QUANTIZE, Takes::One, "quantize: --quant-cfg", &["--export-quant-cfg", "--recipe"]),
    act(Act::Flag(Flag::KvCache), QUANTIZE, Takes::One, "quantize: --kv-cache", &["--export-kv-cache-quant"]),
    act(Act::Flag(Flag::WeightOnly), QUANTIZE, Takes::Nothing, "quantize: --weight-only", &["--weight-only"]),
    act(
        Act::Flag(Flag::DisableQkvQuant),
        QUANTIZE,
        Takes::Nothing,
        "quantize: --disable-qkv-quant",
        &["--disable-qkv-quant"],
    ),
    act(
        Act::Flag(Flag::Calib),
        QUANTIZE,
        Takes::One,
        "quantize: --calib",
        &["--calib-dataset-path-or-name", "--calib-dataset"],
    ),
    act(Act::Flag(Flag::CalibSize), QUANTIZE, Takes::One, "quantize: --calib-size", &["--calib-size"]),
    act(Act::Flag(Flag::CalibSeq), QUANTIZE, Takes::One, "quantize: --calib-seq", &["--calib-max-sequence-length"]),
    act(Act::Flag(Flag::CalibBatch), QUANTIZE, Takes::One, "quantize: --calib-batch", &["--calib-batch-size"]),
    act(Act::Flag(Flag::SkipGenerate), QUANTIZE, Takes::Nothing, "quantize: --skip-generate", &["--skip-generate"]),
    act(Act::Flag(Flag::Prompts), QUANTIZE, Takes::One, "quantize: --prompts", &["--prompts"]),
    act(Act::Flag(Flag::References), QUANTIZE, Takes::One, "quantize: --references", &["--references"]),
    act(Act::Flag(Flag::GenerateLen), QUANTIZE, Takes::One, "quantize: --generate-len", &["--generate-output-len"]),
    act(Act::Flag(Flag::MaxNew), GENERATE, Takes::One, "generate: --max-new", &["--osl"]),
    act(Act::Flag(Flag::Fraction), MMLU, Takes::One, "eval mmlu: --fraction", &["--fraction"]),
    act(Act::Flag(Flag::FewShots), MMLU, Takes::One, "eval mmlu: --few-shots", &["--few-shots"]),
    act(Act::Flag(Flag::LowerBound), MMLU, Takes::One, "eval mmlu: --lower-bound", &["--lower-bound"]),
    act(Act::Flag(Flag::MmluDataset), MMLU, Takes::One, "eval mmlu: --data", &["--mmlu-dataset"]),
    act(Act::Flag(Flag::NoProgress), ALL, Takes::Nothing, "--no-progress", &["--disable-tqdm"]),
    Group {
        meaning: Meaning::Only("torch_dist", "torch_dist is the format that is written"),
        takes: Takes::One,
        text: "must be torch_dist",
        names: &["--ckpt-format", "--dist-ckpt-format"],
    },
    Group {
        meaning: Meaning::Only("0", SPECULATION),
        takes: Takes::One,
        text: "must be 0",
        names: &["--draft-len", "--draft-length"],
    },
    Group {
        meaning: Meaning::Only("None", "convert stores values; `quantize` quantizes"),
        takes: Takes::One,
        text: "must be None",
        names: &["--algorithm", "--export-real-quant-cfg"],
    },
    Group {
        meaning: Meaning::Shape,
        takes: Takes::One,
        text: SHAPE,
        names: &[
            "--ffn-hidden-size",
            "--hidden-size",
            "--hybrid-layer-pattern",
            "--hybrid-override-pattern",
            "--kv-channels",
            "--mamba-head-dim",
            "--mamba-num-groups",
            "--mamba-num-heads",
            "--mamba-state-dim",
            "--moe-ffn-hidden-size",
            "--moe-latent-size",
            "--moe-shared-expert-intermediate-size",
            "--mtp-hybrid-override-pattern",
            "--mtp-num-layers",
            "--normalization",
            "--num-attention-heads",
            "--num-experts",
            "--num-layers",
            "--num-query-groups",
            "--vocab-size",
        ],
    },
    Group {
        meaning: Meaning::Shape,
        takes: Takes::Nothing,
        text: SHAPE,
        names: &[
            "--add-qkv-bias",
            "--disable-bias-linear",
            "--moe-router-enable-expert-bias",
            "--swiglu",
            "--untie-embeddings-and-output-weights",
        ],
    },
    Group {
        meaning: Meaning::Compute,
        takes: Takes::One,
        text: COMPUTE,
        names: &[
            "--moe-router-group-topk",
            "--moe-router-num-groups",
            "--moe-router-score-function",
            "--moe-router-topk",
            "--moe-router-topk-scaling-factor",
            "--norm-epsilon",
            "--position-embedding-type",
        ],
    },
    Group {
        meaning: Meaning::Compute,
        takes: Takes::Nothing,
        text: COMPUTE,
        names: &["--apply-layernorm-1p", "--mtp-use-repeated-layer", "--squared-relu"],
    },
    Group {
        meaning: Meaning::Path,
        takes: Takes::One,
        text: "refused: paths are arguments or variables",
        names: &[
            "--export-dir",
            "--load",
            "--pretrained-checkpoint",
            "--pretrained-model-name",
            "--pretrained-model-path",
            "--prompts-path",
            "--save",
            "--tokenizer-model",
        ],
    },
    refused(
        SPECULATION,
        Takes::One,
        &[
            "--draft-topk",
            "--eagle-config",
            "--export-draft-vocab-size",
            "--export-eagle-algorithm",
            "--export-eagle-ffn-hidden-size",
            "--export-num-eagle-layers",
            "--export-num-medusa-heads",
            "--export-num-mtp",
            "--export-parallel-draft-step",
            "--extra-model-path",
            "--mix-hidden-states",
        ],
    ),
    refused(SPECULATION, Takes::Nothing, &["--export-offline-model"]),
    refused(SPECULATION, Takes::Many, &["--export-freeze-mtp"]),
    refused(
        TRAINING,
        Takes::One,
        &[
            "--export-kd-cfg",
            "--export-kd-teacher-ckpt-format",
            "--export-kd-teacher-load",
            "--export-kd-teacher-model-config",
            "--finetune-data-split",
            "--logits-load-kd-loss-alpha",
            "--lora-rank",
            "--offline-distillation-data",
            "--prune-export-config",
            "--prune-intermediate-ckpt",
            "--pruning-scores-path",
            "--qad-train-target",
            "--target-ffn-hidden-size",
            "--target-hidden-size",
            "--target-mamba-head-dim",
            "--target-mamba-num-heads",
            "--target-moe-ffn-hidden-size",
            "--target-moe-shared-expert-intermediate-size",
            "--target-num-attention-heads",
            "--target-num-layers",
            "--target-num-moe-experts",
            "--target-num-query-groups",
            "--teacher-model-config",
        ],
    ),
    refused(TRAINING, Takes::Nothing, &["--export-kd-finalize", "--freeze-base-for-mtp"]),
    refused(TRAINING, Takes::Many, &["--finetune-data-files"]),
    refused(
        SEARCH,
        Takes::One,
        &["--auto-quantize-bits", "--auto-quantize-checkpoint", "--auto-quantize-method", "--auto-quantize-score-size"],
    ),
    refused(SEARCH, Takes::Many, &["--auto-quantize-formats"]),
    refused("name a file of prompts as $PROMPTS_PATH", Takes::One, &["--finetune-hf-dataset"]),
    refused("weights stay values in a Megatron checkpoint; `export` packs them", Takes::Nothing, &["--compress"]),
    refused("only torch_dist is written", Takes::Nothing, &["--export-legacy-megatron"]),
    refused("`export` writes packed weights that vLLM loads as they are", Takes::Nothing, &["--export-vllm-fq"]),
    refused(
        "this architecture is not converted yet (`longshore arch list`)",
        Takes::Nothing,
        &["--enable-gpt-oss", "--export-moe-apply-probs-on-input", "--export-qk-l2-norm"],
    ),
    refused("every expert keeps the scale of its own weights", Takes::Nothing, &["--sync-expert-weight-amax"]),
    refused("samples begin at the beginning; `--seed` draws others", Takes::Nothing, &["--calib-use-random-offset"]),
    refused(
        "parameters in TE's FP8 or FP4 form are not written; `quantize` writes ModelOpt's",
        Takes::Nothing,
        &["--fp4-param-gather", "--fp8-param", "--fp8-param-gather"],
    ),
];
