#!/usr/bin/env python3
"""The forward pass against transformers: what Longshore computes for Nemotron-H and Llama models, number by number.

    logits.py [--quick] [--longshore PATH] [--work DIR] [--only TEXT] [--config CONFIG.json] [--pattern MEM*]

Tiny random models of every kind, the bundled model, stories260K where it is among the shared data, and (not with --quick) a few
layers of Nemotron-3-Nano in their real shape, where its config.json is at hand and memory and disk allow. Per model:

  f32      residual stream after every layer, router logits, chosen experts and logits equal transformers' in float32
  f64      Longshore's distance from a float64 run is not more than twice that of transformers' float32
  steps    without --dt-min, the logits equal transformers' token by token, through its cache, without its bound on time steps
  bf16     KL divergence from float32 and agreement on the most likely token are not worse than those of transformers' bfloat16
  greedy   32 tokens after every prompt are the same, with the same probabilities
  te, local  the same numbers, to the bit, from the checkpoint converted to torch_dist (Llama models: are refused)

and runs that are wrong on purpose must be seen. One line per check, then `N passed, N failed`; exit status 0 if nothing failed.
Runs in the environment of setup.sh, which it makes where there is none.
"""
import json
import os
import random
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
LENGTHS = (5, 23, 40, 300)      # the last is longer than a chunk of the scan and a block of attention
LONG = 1200                     # tokens, for models with rotary embedding
MANY = (300,) * 8               # bfloat16 is compared by its statistics, which few tokens leave to chance
NEW = 32
NEEDED = 15 << 30               # bytes of memory and of disk for the real shape: its largest layer in float64 is 10 GiB

import checking

if __name__ == "__main__":
    checking.enter_environment()

import torch
from safetensors.torch import load_file

import logits_models as models
import logits_reference as reference
from checking import Failed
from logits_compare import LIMIT, Rounding, close_to_exact, distance, equal, not_worse

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


def prompts(folder, lengths=LENGTHS):
    draw, vocab = random.Random(7), json.load(open(os.path.join(folder, "config.json")))["vocab_size"]
    return [[draw.randrange(vocab) for _ in range(n)] for n in lengths]


class Checks(checking.Checks):
    def __init__(self, a, work):
        super().__init__()
        self.a, self.work = a, work
        self.roundings = []     # (ours, theirs) of every model in bfloat16
        self.dt_min = ()        # how the model at hand is told to clamp time steps as transformers does

    def longshore(self, *argv):
        """stdout. A program that ends with an error is no wrong result that `wrong` could take for seen."""
        r = subprocess.run([self.a.longshore, *map(str, argv)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if r.returncode:
            raise RuntimeError(f"`longshore {' '.join(map(str, argv))[:200]}` ended with {r.returncode}: {r.stderr.strip()[-300:]}")
        return r.stdout

    def saved(self, model, ids, precision="f32", options=None):
        """The file that `longshore logits --save` writes."""
        options = self.dt_min if options is None else options
        asked, out = os.path.join(self.work, "ids.jsonl"), os.path.join(self.work, f"{precision}.safetensors")
        with open(asked, "w") as f:
            f.writelines(json.dumps({"input_ids": p}) + "\n" for p in ids)
        if os.path.exists(out):         # what an earlier call wrote
            os.remove(out)
        self.longshore("logits", model, "--precision", precision, *options, "--prompt-file", asked, "--save", out, "--quiet")
        return out

    def outputs(self, model, ids, *args, **kw):
        """What Longshore computes, in the form of logits_reference."""
        tensors, found = load_file(self.saved(model, ids, *args, **kw)), []
        for p in range(len(ids)):
            own = {k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(f"p{p}.")}
            o = reference.Outputs(0)
            o.hidden, o.logits = own["hidden"], own["logits"]
            for put, name in ((o.router, "router."), (o.experts, "topk_idx."), (o.weights, "topk_w.")):
                put.update(sorted((int(k[len(name):]), v) for k, v in own.items() if k.startswith(name)))
            found.append(o)
        return found

    def generated(self, model, ids, want):
        """The same tokens; their log probabilities within the tolerance of logits, which have standard deviations of 1 to 10."""
        worst = 0.0
        for p, (prompt, (tokens, logprobs)) in enumerate(zip(ids, want)):
            said = json.loads(self.longshore("generate", model, "--prompt-ids", ",".join(map(str, prompt)), "--max-new", NEW, "--ignore-eos",
                                             "--json", "--precision", "f32", *self.dt_min, "--top-logprobs", 1))
            if said["ids"] != tokens:
                at = next((i for i, (a, b) in enumerate(zip(said["ids"], tokens)) if a != b), len(said["ids"]))
                raise Failed(f"prompt {p}: token {at} of {len(tokens)} differs")
            worst = max([worst] + [abs(a - b) for a, b in zip(said["logprobs"], logprobs)])
        if not worst <= 10 * LIMIT:
            raise Failed(f"log probabilities differ by {worst:.1e}")
        return f"{len(want)} x {NEW} tokens the same; log probabilities {worst:.1e}"

    def converted(self, model, ids, spec, hf):
        """What the Hugging Face folder `hf` computes and what `model`, converted, computes, byte by byte."""
        out = os.path.join(self.work, "converted")
        shutil.rmtree(out, ignore_errors=True)
        self.longshore("convert", model, out, "--spec", spec, "--quiet")
        files = []
        for folder in (hf, out):
            with open(self.saved(folder, ids), "rb") as f:
                files.append(f.read())
        if files[0] != files[1]:
            raise Failed("other bytes than from the Hugging Face folder")
        return f"{len(files[0])} bytes the same"

    def refused(self, model, spec):
        """What cannot be converted says so and leaves nothing behind."""
        out = os.path.join(self.work, "refused")
        r = subprocess.run([self.a.longshore, "convert", model, out, "--spec", spec], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if r.returncode != 2 or "not converted" not in r.stderr or os.path.exists(out):
            raise Failed(f"exit status {r.returncode}: {r.stderr.strip()[-300:]}")
        return "refused"

    # ---- a small model
    def small(self, m):
        torch.set_num_threads(1)        # for work this small, more are slower
        self.dt_min = () if m.llama else ("--dt-min", "config")
        folder = m.make(self.work)
        ids = prompts(folder, LENGTHS + (LONG,) * m.long)
        theirs, exact = (reference.prefill(folder, ids, t) for t in (F32, F64))
        next_tokens = reference.greedy(folder, ids, NEW, F32)
        self.check(f"f32     {m.name}", lambda: equal(self.outputs(folder, ids), theirs, exact))
        self.check(f"f64     {m.name}", lambda: close_to_exact(self.outputs(folder, ids), theirs, exact))
        self.check(f"steps   {m.name}", self.stepwise, folder, ids)
        self.check(f"bf16    {m.name}", self.bf16, folder, prompts(folder, MANY), reference.prefill)
        self.check(f"greedy  {m.name}", self.generated, folder, ids, next_tokens)
        for spec in ("te", "local"):
            self.check(f"{spec:<7} {m.name}", *((self.refused, folder, spec) if m.llama else (self.converted, folder, ids, spec, folder)))
        if m.name == "llama3-tied":
            for name, change in (("rotary factor", models.other_rope), ("gate and up", models.swapped)):
                other = change(folder, os.path.join(self.work, change.__name__))
                self.wrong(name, lambda: equal(self.outputs(other, ids), theirs, exact))
        if m.clamps:
            self.wrong("without --dt-min", lambda: equal(self.outputs(folder, ids, options=()), theirs, exact))
        if m.name == "moe":
            other = models.changed(folder, os.path.join(self.work, "changed"))
            self.wrong("bf16 as f32", lambda: equal(self.outputs(folder, ids, "bf16"), theirs, exact))
            self.wrong("weight, f32", lambda: equal(self.outputs(other, ids), theirs, exact))
            self.wrong("weight, greedy", self.generated, other, ids, next_tokens)
            self.wrong("weight, te", self.converted, other, ids, "te", folder)

    def bf16(self, folder, ids, prefill, want=None):
        want = want or prefill(folder, ids, F32)
        ours, theirs = (Rounding.of(x, want) for x in (self.outputs(folder, ids, "bf16"), prefill(folder, ids, BF16)))
        self.roundings.append((ours, theirs))
        return not_worse(ours, theirs, bool(want[0].experts))

    def all_bf16(self):
        """The sums over all models, where nothing is left to chance."""
        ours, theirs = (Rounding(torch.cat([r.kl for r in side]), sum(r.same for r in side), sum(r.flips for r in side))
                        for side in zip(*self.roundings))
        if ours.flips > theirs.flips or ours.kl.mean() > theirs.kl.mean():
            raise Failed(f"KL {ours.kl.mean():.2e} against {theirs.kl.mean():.2e}; routes changed {ours.flips} against {theirs.flips}")
        return not_worse(ours, theirs, True)

    def stepwise(self, folder, ids):
        ours, theirs = self.outputs(folder, ids, options=()), reference.steps(folder, ids, F32)
        worst = max(float((o.logits - t).abs().max()) / max(1.0, float(t.std())) for o, t in zip(ours, theirs))
        if not worst <= LIMIT:
            raise Failed(f"logits differ by {worst:.1e}")
        return f"logits {worst:.1e}"

    # ---- a real shape
    def real_shape(self, config):
        """Layers of a release, one of every kind: 4 GB of disk for Nano, more for more layers with experts."""
        torch.set_num_threads(os.cpu_count() or 1)
        self.dt_min = ("--dt-min", "config")
        folder = models.released_shape(config, self.a.pattern, os.path.join(self.work, "real"))
        ids, by_layer = prompts(folder), reference.prefill_by_layer
        theirs, exact, ours = by_layer(folder, ids, F32), by_layer(folder, ids, F64), self.outputs(folder, ids)
        self.check("f32     real shape", equal, ours, theirs, exact)
        self.check("f64     real shape", close_to_exact, ours, theirs, exact)
        del exact, ours
        self.check("bf16    real shape", self.bf16, folder, ids, by_layer, theirs)
        shutil.rmtree(folder)

    def same_by_layer(self, m):
        """The reference against itself: layer by layer it gives the same bits as the whole model."""
        torch.set_num_threads(1)
        folder = m.make(self.work)
        ids = prompts(folder)
        for dtype in (F32, F64, BF16):
            worst = distance(reference.prefill_by_layer(folder, ids, dtype), reference.prefill(folder, ids, dtype))
            if any(d != 0 for d, _, _ in worst.values()):
                raise Failed(f"{dtype}: {worst}")

    def run(self):
        for m in models.MODELS + models.trained_llama():
            if self.a.only in m.name:
                self.small(m)
        chosen, why = self.config()
        if chosen:
            for m in (m for m in models.MODELS if m.name in ("moe-odd-tied", "latent")):
                self.check(f"layers  {m.name}", self.same_by_layer, m)
            self.real_shape(chosen)
        else:
            print(f"real shape: skipped, {why}")
        if not self.a.only:
            self.check("bf16    all together", self.all_bf16)
        return self.summary()

    def config(self):
        """(config of the real shape, None), or (None, why there is none)."""
        if self.a.quick or self.a.only not in "real shape":
            return None, "not asked for"
        config = self.a.config or models.released_config()
        memory, disk = models.free_memory(), shutil.disk_usage(self.work).free
        if not config:
            return None, "its config.json is not at hand (LONGSHORE_DATA, --config)"
        if memory < NEEDED or disk < NEEDED:
            return None, f"it needs {NEEDED >> 30} GiB of memory and of disk; free are {memory >> 30} and {disk >> 30}"
        return config, None


if __name__ == "__main__":
    sys.exit(checking.main(
        __doc__, Checks, quick=checking.switch("small models only"),
        only={"default": "", "help": "models whose name contains this text"},
        config={"help": "a released config.json for the real shape"},
        pattern={"default": "MEM*", "help": "layers of the real shape (default: MEM*)"}))
