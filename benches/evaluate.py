#!/usr/bin/env python3
"""MMLU beside the engine's prefill, without reuse of what prompts share, and beside transformers, in alternating runs; medians.

    evaluate.py speed MODEL --data DIR [--shots 0,5] [--subjects GLOB] [--limit N] [--rounds N] [--peer PYTHON] [...]
    evaluate.py memory MODEL --data DIR --memory SIZE [--fraction F] [--shots N] [...]

speed: `eval mmlu` in bfloat16 with what prompts share computed once, the same with --no-prefix-reuse, `eval ppl` on windows of 512
tokens as the engine's best rate, and with --peer (the Python of inference/setup.sh) transformers on the same prompts, right-padded, the
longest first, in batches of at most --batch-tokens tokens. Rates are prompt tokens a second: what is computed once counts for every
prompt. Longshore's time includes reading the weights, that of transformers does not.

memory: one run within --memory; the peak of the process's anonymous memory, the weights and the largest layer.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

import quantize
import throughput

sys.path.insert(0, os.path.join(throughput.HERE, "inference"))
from stream import UNITS, weights  # noqa: E402

TRANSFORMERS = """
import json, sys, time, torch, transformers
model, threads, budget = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
prompts = [json.loads(line)["input_ids"] for line in sys.stdin]
torch.set_num_threads(threads)
torch.set_grad_enabled(False)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
prompts.sort(key=len, reverse=True)
began, at = time.time(), 0
while at < len(prompts):
    longest = len(prompts[at])
    batch = prompts[at:at + max(1, budget // longest)]
    ids = torch.tensor([p + [0] * (longest - len(p)) for p in batch])
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    last = hidden[torch.arange(len(batch)), torch.tensor([len(p) - 1 for p in batch])]
    model.lm_head(last)
    at += len(batch)
print(json.dumps({"seconds": time.time() - began}))
"""


def mmlu(a, shots, *more):
    return [a.longshore, "eval", "mmlu", a.model, "--data", a.data, "--few-shots", shots, "--threads", a.threads, "--precision", "bf16",
            "--batch-tokens", str(a.batch_tokens), "--fraction", a.fraction, "--json", "--quiet",
            *(["--tokenizer", a.tokenizer] if a.tokenizer else []), *(["--subjects", a.subjects] if a.subjects else []),
            *(["--limit", a.limit] if a.limit else []), *more]


def speed(a):
    with tempfile.TemporaryDirectory() as work:
        windows = os.path.join(work, "ids.jsonl")
        with open(windows, "w") as file:
            for window in range(a.windows):
                file.write(json.dumps({"input_ids": [(window * 7919 + i * 31) % 4000 + 3 for i in range(512)]}) + "\n")
        best = [a.longshore, "eval", "ppl", a.model, "--data", windows, "--ctx", "512", "--threads", a.threads, "--precision", "bf16",
                "--batch-tokens", str(a.batch_tokens), "--json", "--quiet"]
        for shots in a.shots.split(","):
            rates = {"prefill": [], "mmlu": [], "no reuse": [], "transformers": []}
            prompts = os.path.join(work, "prompts.jsonl")
            for _ in range(a.rounds):
                done = quantize.run(best)[0]["pass"]
                rates["prefill"].append(done["tokens"] / done["seconds"])
                for name, more in (("mmlu", ["--save-prompts", prompts]), ("no reuse", ["--no-prefix-reuse"])):
                    ran = quantize.run(mmlu(a, shots, *more))[0]
                    rates[name].append(ran["tokens"] / ran["pass"]["seconds"])
                if a.peer:
                    with open(prompts) as file:
                        ran = subprocess.run([a.peer, "-W", "ignore", "-c", TRANSFORMERS, a.model, a.threads, str(a.batch_tokens)], stdin=file,
                                             stdout=subprocess.PIPE, check=True, text=True)
                    rates["transformers"].append(ran_tokens(prompts) / json.loads(ran.stdout)["seconds"])
            print(f"{shots} shots, {ran_questions(prompts)} questions, {ran_tokens(prompts)} tokens")
            for name, values in ((name, values) for name, values in rates.items() if values):
                print(f"  {name}: median {statistics.median(values):.0f} tokens/s (min {min(values):.0f}, max {max(values):.0f})")
            pairs = [("no reuse", "prefill"), ("mmlu", "no reuse"), *([("mmlu", "transformers")] if a.peer else [])]
            for one, other in pairs:
                ratios = [x / y for x, y in zip(rates[one], rates[other])]
                print(f"  {one} / {other}, pair by pair: median {statistics.median(ratios):.3f} "
                      f"(min {min(ratios):.3f}, max {max(ratios):.3f})")


def ran_questions(prompts):
    with open(prompts) as file:
        return sum(1 for _ in file)


def ran_tokens(prompts):
    with open(prompts) as file:
        return sum(len(json.loads(line)["input_ids"]) for line in file)


def memory(a):
    sizes = weights(a.model)
    ran, peak = quantize.run(mmlu(a, a.shots.split(",")[0], "--memory", a.memory))
    budget, total, largest = int(a.memory[:-1]) * UNITS[a.memory[-1]], sum(sizes.values()), max(sizes.values())
    done = ran["pass"]
    print(f"weights {total / 1e6:.1f} MB, {total / budget:.1f} x the budget of {budget / 1e6:.1f} MB; largest layer {largest / 1e6:.1f} MB")
    print(f"{ran['questions']} questions, {ran['tokens']} tokens, {done['tokens']} computed in {done['seconds']:.1f} s "
          f"({done['tokens'] / done['seconds']:.0f} tokens/s)")
    print(f"peak anonymous memory {peak / 1e6:.1f} MB: {'within' if peak <= budget + largest else 'NOT within'} the budget plus one layer")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", choices=["speed", "memory"])
    ap.add_argument("model")
    ap.add_argument("--data", required=True)
    ap.add_argument("--tokenizer")
    ap.add_argument("--shots", default="0,5")
    ap.add_argument("--subjects")
    ap.add_argument("--limit")
    ap.add_argument("--fraction", default="1")
    ap.add_argument("--windows", type=int, default=16)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--peer")
    ap.add_argument("--memory")
    ap.add_argument("--longshore", default=os.path.join(throughput.HERE, "..", "target", "release", "longshore"))
    ap.add_argument("--threads", default="2")
    ap.add_argument("--batch-tokens", type=int, default=512)
    a = ap.parse_args()
    {"speed": speed, "memory": memory}[a.what](a)


if __name__ == "__main__":
    main()
