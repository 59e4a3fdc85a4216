#!/usr/bin/env python3
"""Weight-only quantization beside `cp`, and calibration beside the engine's prefill, in alternating runs; medians.

    quantize.py weights SOURCE [--work DIR] [--rounds N] [--longshore PATH] [--threads N] [--formats NAMES]
    quantize.py calibration MODEL [--memory SIZE] [--samples N] [--tokens N] [--rounds N] [--longshore PATH] [--threads N]

weights: every format that needs no activations, by `max`, from SOURCE (a Hugging Face folder of a few gigabytes) into a Hugging
Face folder; `cp` copies SOURCE, cold and until the copy is on disk, as in throughput.py. What counts is the rate at which the
source is read.

calibration: FP8_DEFAULT_CFG on random token ids, and `generate` of one token from each of the same prompts; tokens a second of
the two passes, by the program's own clock. With --memory only the first, and the peak of the process's anonymous memory.
"""
import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading

import throughput

sys.path.insert(0, os.path.join(throughput.HERE, "inference"))
from stream import watch  # noqa: E402

FORMATS = {
    "fp8": ["FP8_DEFAULT_CFG", "--weight-only"],
    "fp8 channel": ["FP8_PER_CHANNEL_PER_TOKEN_CFG"],
    "int8": ["INT8_WEIGHT_ONLY_CFG"],
    "int4": ["INT4_BLOCKWISE_WEIGHT_ONLY_CFG", "--exclude", "*down_proj*"],  # whose columns blocks do not divide in Nano
    "nvfp4": ["W4A16_NVFP4_CFG"],
    "mxfp8": ["MXFP8_DEFAULT_CFG"],
    "mxfp4": ["MXFP4_DEFAULT_CFG"],
}


def weights(a):
    os.makedirs(a.work, exist_ok=True)
    for name in a.formats.split(",") if a.formats else FORMATS:
        config, *flags = FORMATS[name]
        tool = lambda out: [a.longshore, "quantize", a.source, out, "--to", "hf", "--quant-cfg", config, *flags, "--skip-generate",
                            "--skip-report", "--threads", a.threads, "--json", "--quiet"]
        throughput.compare(name, a.source, a.work, tool, a.rounds)
    shutil.rmtree(a.work)


def run(command):
    """A command's JSON, and the peak of its anonymous memory."""
    seen = [0]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watcher = threading.Thread(target=watch, args=(process.pid, seen))
    watcher.start()
    out, err = process.communicate()
    watcher.join()
    if process.returncode:
        sys.exit(f"{command}: {err[-2000:]}")
    return json.loads(out), seen[0]


def calibration(a):
    with open(os.path.join(a.source, "config.json")) as file:
        vocabulary = json.load(file)["vocab_size"]
    pick = random.Random(1)
    with tempfile.TemporaryDirectory() as work:
        prompts = os.path.join(work, "prompts.jsonl")
        with open(prompts, "w") as file:
            for _ in range(a.samples):
                file.write(json.dumps({"input_ids": [pick.randrange(3, vocabulary) for _ in range(a.tokens)]}) + "\n")
        memory = ["--memory", a.memory] if a.memory else []
        common = ["--threads", a.threads, "--batch-tokens", str(a.batch_tokens), "--json", "--quiet", *memory]
        rates, peak = {"prefill": [], "calibration": []}, 0
        for _ in range(a.rounds):
            if not a.memory:
                ran, _ = run([a.longshore, "generate", a.source, "--prompt-file", prompts, "--batch", str(a.samples), "--max-new", "1",
                              "--ignore-eos", *common])
                rates["prefill"].append(ran["timings"]["prefill_tokens_per_second"])
            out = os.path.join(work, "out")
            ran, most = run([a.longshore, "quantize", a.source, out, "--to", "hf", "--quant-cfg", "FP8_DEFAULT_CFG", "--calib", prompts,
                             "--calib-size", str(a.samples), "--calib-seq", str(a.tokens), "--skip-generate", "--skip-report",
                             *common])
            rates["calibration"].append(ran["calibration"]["tokens_per_second"])
            peak = max(peak, most)
            shutil.rmtree(out)
    for name, values in ((name, values) for name, values in rates.items() if values):
        print(f"{name}: median {statistics.median(values):.0f} tokens/s (min {min(values):.0f}, max {max(values):.0f})")
    ratios = [c / p for c, p in zip(rates["calibration"], rates["prefill"])]
    if ratios:
        print(f"calibration / prefill, pair by pair: median {statistics.median(ratios):.3f} "
              f"(min {min(ratios):.3f}, max {max(ratios):.3f})")
    size = sum(os.path.getsize(f) for f in throughput.files(a.source) if f.endswith(".safetensors"))
    print(f"weights {size / 1e6:.1f} MB, peak of anonymous memory {peak / 1e6:.1f} MB, budget {a.memory or 'none'}")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", choices=["weights", "calibration"])
    ap.add_argument("source")
    ap.add_argument("--work", default="quantize-work")
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--longshore", default=os.path.join(throughput.HERE, "..", "target", "release", "longshore"))
    ap.add_argument("--threads", default="2")
    ap.add_argument("--formats")
    ap.add_argument("--memory")
    ap.add_argument("--samples", type=int, default=16)
    ap.add_argument("--tokens", type=int, default=256)
    ap.add_argument("--batch-tokens", type=int, default=512)
    a = ap.parse_args()
    {"weights": weights, "calibration": calibration}[a.what](a)


if __name__ == "__main__":
    main()
