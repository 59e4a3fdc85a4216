#!/usr/bin/env bash
# Runs the commands that teams have in their jobs, as typed, on a model: usage_block.sh MODEL [MMLU]
#   MODEL   a Hugging Face folder, which stands for NVIDIA-Nemotron-3-Nano-30B-A3B-BF16
#   MMLU    a folder with the data set [default: $MMLU_DATASET, else a few questions that are bundled]
# Nothing but the paths is replaced. One shell runs it all, so that variables leak from step to step.
set -euo pipefail
model="$(realpath "$1")"
export MMLU_DATASET="${2:-${MMLU_DATASET:-bundled}}"
# The block runs in another folder, where a relative path would mean another one.
if [[ -e "$MMLU_DATASET" ]]; then MMLU_DATASET="$(realpath "$MMLU_DATASET")"; fi
scripts="$(realpath "$(dirname "${BASH_SOURCE[0]}")/../scripts")"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
unset HF_MODEL_CKPT MLM_MODEL_CKPT MLM_MODEL_SAVE MLM_EXTRA_ARGS TP PP EP ETP QUANT_CFG PROMPTS_PATH TOKENIZER_MODEL

block='
unset MLM_MODEL_CKPT && export MLM_MODEL_SAVE=/models/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16_mlm && export HF_MODEL_CKPT=/models/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16
export PP=2
export MLM_EXTRA_ARGS="--full-te-spec"
bash convert.sh nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16

export MLM_MODEL_CKPT=/models/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16_mlm
export MLM_MODEL_SAVE=/models/NVIDIA-Nemotron-3-Nano-30B-A3B-fp8_mlm
export HF_MODEL_CKPT=/models/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16
export PP=2 && export TP=4 && export EP=4 && export ETP=1
export MLM_EXTRA_ARGS="--full-te-spec"
bash quantize.sh nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16 FP8_DEFAULT_CFG

export PP=2 && export TP=4 && export EP=4 && export ETP=1
export MLM_EXTRA_ARGS="--full-te-spec"
export MLM_MODEL_CKPT=/models/NVIDIA-Nemotron-3-Nano-30B-A3B-fp8_mlm && ./generate.sh nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16

export PP=2 && export TP=4 && export EP=4 && export ETP=1
export MLM_EXTRA_ARGS="--full-te-spec"
export MLM_MODEL_CKPT=/models/NVIDIA-Nemotron-3-Nano-30B-A3B-fp8_mlm && export MLM_EXTRA_ARGS="--fraction 0.05 --disable-tqdm" && ./mmlu.sh nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16
'

ln -s "$model" "$work/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"
# The shell ends at the first step that fails, as a job with `set -e` would; each step leaves its output.
{
    echo "set -e"
    sed -e "s#/models/#$work/#g" -e 's#^\(.*\(convert\|quantize\|generate\|mmlu\)\.sh .*\)$#\1 > "'"$work"'/\2.out"#' <<< "$block"
} > "$work/block.sh"
(cd "$scripts" && bash "$work/block.sh")

fail() { echo "usage block: $1" >&2; cat "$work/$2.out" >&2; exit 1; }
test -s "$work/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16_mlm/release/.metadata" || fail "nothing was converted" convert
test -d "$work/NVIDIA-Nemotron-3-Nano-30B-A3B-fp8_mlm/release/modelopt_state" || fail "nothing was quantized" quantize
grep -qE '^[0-9]+ TensorQuantizers found in model$' "$work/quantize.out" || fail "no list of quantizers" quantize
(( $(grep -c "^\['" "$work/quantize.out") == 2 )) || fail "no two texts after quantizing" quantize
grep -q 'Write an email to a wine expert' "$work/generate.out" || fail "the prompt is not shown" generate
after="$(sed '1,/Write an email to a wine expert/d' "$work/generate.out")"
[[ "$after" =~ [^[:space:]] ]] || fail "no text was generated" generate
grep -qE '^average +\| [01]\.[0-9]{3} \| +[0-9]+/ *[0-9]+$' "$work/mmlu.out" || fail "no table of MMLU" mmlu
echo "usage block: converted, quantized ($(grep -o '^[0-9]* TensorQuantizers' "$work/quantize.out")), generated, $(grep '^average' "$work/mmlu.out" | tr -s ' ')"
