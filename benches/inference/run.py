#!/usr/bin/env python3
"""longshore, llama.cpp and transformers on the same models, machine and prompt, in turns; medians and quartiles.

    run.py --models DIR [--longshore PATH] [--only dense|moe] [--dtypes bf16,f32,q8] [--pp 256] [--tg 24] [--rounds 5]
           [--peers llama,transformers] [--threads N] [--roofline PATH] [--json FILE]

Run with the Python of setup.sh. DIR gets the models of models.py and their GGUF files when it lacks them. Without --longshore only
the peers are measured. Before every measurement the machine must be idle for a second; a measurement during which other programs
took more than a tenth of its threads' time is repeated, at most twice. Prints a Markdown table; FILE gets every measurement.
q8 is INT8 by row, kept in codes (longshore, products in bf16), beside llama.cpp's Q8_0; transformers has nothing like it.
--roofline is the crate's `kernel_roofline` example: adds the share of its GEMM speed (prefill) and of the memory's (decode).
"""
import argparse
import json
import os
import random
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

import machine

HERE = os.path.dirname(os.path.abspath(__file__))
TITLES = {"longshore": "longshore", "llama": "llama.cpp", "transformers": "transformers"}
OTHERS = 0.1     # what other programs may take during a measurement, as a share of its threads' time


def prompt(count):
    return random.Random(1).choices(range(3, 32000), k=count)


def folder(models, model, dtype):
    """The Hugging Face folder that longshore reads: for q8 the one that it quantized, all weights and the head in INT8."""
    return os.path.join(models, f"{model}-int8" if dtype == "q8" else model)


def prepare(a, models, model, dtypes, peers):
    python = lambda script, *args: subprocess.run([sys.executable, "-W", "ignore", os.path.join(HERE, script), *args], check=True)
    if not os.path.exists(os.path.join(models, model, "model.safetensors")):
        python("models.py", models, "--only", model)
    if "q8" in dtypes and a.longshore and not os.path.exists(folder(models, model, "q8")):
        subprocess.run([a.longshore, "quantize", os.path.join(models, model), folder(models, model, "q8"), "--to", "hf", "--quant-cfg",
                        os.path.join(HERE, "int8.yaml"), "--skip-generate", "--skip-report", "--quiet"], check=True)
    for dtype in dtypes if "llama" in peers else []:
        path = os.path.join(models, f"{model}-{dtype}.gguf")
        if not os.path.exists(path):
            python("gguf_from_hf.py", os.path.join(models, model), path, "--type", dtype)


def peer(program, models, model, dtype, job, wait=lambda: True):
    """One job of a peer in its own process: its answer, the seconds that other programs took, and whether the machine was quiet."""
    script = [sys.executable, "-W", "ignore", os.path.join(HERE, f"peer_{program}.py")]
    what = [os.path.join(models, f"{model}-{dtype}.gguf")] if program == "llama" else [os.path.join(models, model), dtype]
    with subprocess.Popen(script + what, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        child.stdin.write(json.dumps(job) + "\n")
        child.stdin.flush()
        if child.stdout.readline() != "ready\n":
            sys.exit(f"{program} failed on {model} {dtype}")
        quiet = wait()
        busy = machine.busy_seconds()
        child.stdin.write("go\n")
        child.stdin.flush()
        line = child.stdout.readline()
        busy = machine.busy_seconds() - busy
    if not line:
        sys.exit(f"{program} failed on {model} {dtype}")
    answer = json.loads(line)
    return answer, busy - answer["cpu_seconds"], quiet


def measure_peer(program, a, model, dtype):
    job = dict(prompt=prompt(a.pp), steps=a.tg, threads=a.threads, context=max(512, a.pp + a.tg))
    answer, others, quiet = peer(program, a.models, model, dtype, job, machine.wait_until_quiet)
    steps = sum(answer["step_seconds"])
    return dict(name=answer["name"], prefill=a.pp / answer["prefill_seconds"], decode=a.tg / steps, quiet=quiet,
                others=others / (a.threads * (answer["prefill_seconds"] + steps)))


def measure_longshore(a, model, dtype):
    """As the peers, it runs the prompt once before the run that counts."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.write(2 * (json.dumps({"input_ids": prompt(a.pp)}) + "\n"))
        file.flush()
        return run_longshore(a, model, dtype, file.name)


def run_longshore(a, model, dtype, prompts):
    how = ["--precision", "bf16", "--weights", "packed"] if dtype == "q8" else ["--precision", dtype]
    command = [a.longshore, "generate", folder(a.models, model, dtype), "--prompt-file", prompts, "--max-new", str(a.tg + 1),
               "--ignore-eos", *how, "--threads", str(a.threads), "--json"]
    quiet = machine.wait_until_quiet()
    own = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    busy, cpu, start = machine.busy_seconds(), own(), time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wall, cpu, busy = time.monotonic() - start, own() - cpu, machine.busy_seconds() - busy
    if done.returncode:
        sys.exit(f"longshore failed on {model} {dtype}: {done.stderr[-2000:]}")
    turn = json.loads(done.stdout)["results"][1]["turns"][0]
    return dict(name="longshore", prefill=a.pp / turn["prefill_seconds"], decode=a.tg / turn["decode_seconds"], quiet=quiet,
                others=(busy - cpu) / (a.threads * wall))


def measure(program, a, model, dtype):
    """The least disturbed of up to three runs; `disturbed` says that even that one was."""
    best = None
    for _ in range(3):
        one = measure_longshore(a, model, dtype) if program == "longshore" else measure_peer(program, a, model, dtype)
        one["disturbed"] = one["others"] > OTHERS or not one["quiet"]
        if best is None or one["others"] < best["others"]:
            best = one
        if not best["disturbed"] or not one["quiet"]:
            break
    print(f"  {model} {dtype} {TITLES[program]}: {best['prefill']:.0f} / {best['decode']:.1f} tok/s"
          + (" (disturbed)" if best["disturbed"] else ""), file=sys.stderr, flush=True)
    return best


def spread(values, form):
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return f"{middle:{form}} ({low:{form}}-{high:{form}})"


def rows(results, limits):
    """The lines of the table. limits: {(model, dtype): (prefill, decode) tok/s of the roofline}"""
    median = lambda runs, key: statistics.median(r[key] for r in runs)
    for (model, dtype), programs in results.items():
        ours = programs.get("longshore")
        for program, runs in programs.items():
            cells = [model, dtype, TITLES[program] + (" *" if any(r["disturbed"] for r in runs) else "")]
            for key, form in (("prefill", ".0f"), ("decode", ".1f")):
                cells.append(spread([r[key] for r in runs], form))
            for key in ("prefill", "decode"):
                cells.append(f"{median(ours, key) / median(runs, key):.2f}" if ours and program != "longshore" else "")
            if limits:
                for key, limit in zip(("prefill", "decode"), limits[model, dtype]):
                    cells.append(f"{100 * median(runs, key) / limit:.0f} %" if limit else "")
            yield "| " + " | ".join(cells) + " |"


def rooflines(a, models, dtypes):
    gemm, read, report = machine.roofline(a.roofline, a.threads)
    limits = {}
    for model in models:
        with open(os.path.join(a.models, model, "config.json")) as f:
            weights, flops = machine.work_per_token(json.load(f))
        for dtype in dtypes:
            size = weights * {"bf16": 2, "f32": 4, "q8": 1}[dtype]
            speed = gemm["bf16" if dtype == "q8" else dtype]
            limits[model, dtype] = (speed and speed * 1e9 / flops, read and read * 1e9 / size)
    return limits, report


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--models", required=True)
    ap.add_argument("--longshore")
    ap.add_argument("--only", choices=["dense", "moe"])
    ap.add_argument("--dtypes", default="bf16,f32")
    ap.add_argument("--pp", type=int, default=256)
    ap.add_argument("--tg", type=int, default=24)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--peers", default="llama,transformers")
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    ap.add_argument("--roofline")
    ap.add_argument("--json")
    a = ap.parse_args()
    models, dtypes = [a.only] if a.only else ["dense", "moe"], a.dtypes.split(",")
    programs = (["longshore"] if a.longshore else []) + [p for p in a.peers.split(",") if p]
    for model in models:
        prepare(a, a.models, model, dtypes, programs)
    limits, report = rooflines(a, models, dtypes) if a.roofline else ({}, None)
    results = {}
    for model in models:
        for dtype in dtypes:
            runs = results[model, dtype] = {p: [] for p in programs if (p, dtype) != ("transformers", "q8")}
            for _ in range(a.rounds):
                for program in runs:
                    runs[program].append(measure(program, a, model, dtype))
    command = shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
    head = ["model", "dtype", "program", f"prefill {a.pp} tok/s", f"decode {a.tg} tok/s", "longshore / it, prefill", "decode"]
    head += ["of the GEMM speed", "of the memory speed"] if limits else []
    table = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *rows(results, limits)]
    names = sorted({r["name"] for programs in results.values() for runs in programs.values() for r in runs})
    print(f"{machine.describe()}; {a.threads} threads\n`{command}`\n{', '.join(names)}\n"
          f"Median (quartiles) of {a.rounds} rounds; * other programs disturbed a measurement.\n")
    print("\n".join(table))
    if a.json:
        with open(a.json, "w") as f:
            measurements = [dict(model=m, dtype=d, program=p, **r) for (m, d), programs in results.items()
                            for p, runs in programs.items() for r in runs]
            json.dump(dict(machine=machine.describe(), command=command, roofline=report,
                           limits=[[*k, *v] for k, v in limits.items()], measurements=measurements), f, indent=1)


if __name__ == "__main__":
    main()
