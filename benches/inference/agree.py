#!/usr/bin/env python3
"""Shows that the peers do the same work: llama.cpp's f32 logits beside those of transformers, after a prompt and after every step.

    agree.py --models DIR [--only dense|moe] [--prompt 200] [--steps 8] [--tolerance 1e-4]

Run with the Python of setup.sh. DIR as run.py leaves it (it is made when absent). Exits with 1 when any logit differs by more than
the tolerance. A difference in sums of floats is below 1e-5; a wrong mapping gives differences as large as the logits.
"""
import argparse
import os
import sys
import tempfile

import numpy as np

import run


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--models", required=True)
    ap.add_argument("--only", choices=["dense", "moe"])
    ap.add_argument("--prompt", type=int, default=200)
    ap.add_argument("--steps", type=int, default=8)
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    ap.add_argument("--tolerance", type=float, default=1e-4)
    a = ap.parse_args()
    failed = False
    for model in [a.only] if a.only else ["dense", "moe"]:
        run.prepare(a.models, model, ["f32"])
        ids = run.prompt(a.prompt + a.steps)
        logits = {}
        for program in ("llama", "transformers"):
            with tempfile.TemporaryDirectory() as d:
                path = os.path.join(d, "logits.npy")
                run.peer(program, a.models, model, "f32", dict(prompt=ids[:a.prompt], forced=ids[a.prompt:], steps=a.steps,
                         threads=a.threads, context=512, exact=True, logits=path))
                logits[program] = np.load(path)
        ours, theirs = logits["llama"], logits["transformers"]
        difference = np.abs(ours - theirs).max(axis=1)
        same = (ours.argmax(axis=1) == theirs.argmax(axis=1)).sum()
        failed |= not difference.max() <= a.tolerance
        steps = difference[1:].max(initial=0)
        print(f"{model}: logits std {theirs.std():.3f}; largest difference {difference[0]:.1e} after {a.prompt} tokens, "
              f"{steps:.1e} in {a.steps} steps; the same most probable token {same}/{len(ours)}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
