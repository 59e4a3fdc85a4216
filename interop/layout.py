#!/usr/bin/env python3
"""The layout of NVIDIA's example, pp 2 · tp 4 · ep 4 · etp 1, in real Megatron-Core and ModelOpt: eight processes.

    layout.py [--quick] [--longshore PATH] [--work DIR]

Two tiny models with eight Mamba groups and eight experts go the way of the example: Hugging Face to Megatron, quantized from there,
and back. `groups4` has a key head for every tensor-parallel rank; `groups2` has two for four ranks, as released models have,
a latent MoE and MTP. For the Transformer Engine's modules and for the local ones with fused norms:

  write     `longshore convert` with this layout
  load      megatron-core builds its model, loads, and every parameter of every rank is the source's to the bit; the stored keys are
            those that the ranks ask for, for local modules also the extra states of norms that only the other spec has
  padded    the same in a model whose vocabulary Megatron padded
  back      `longshore export` gives the source, bit for bit
  saved     so does the export of what megatron-core saves at this layout
  quantize  `longshore quantize` from the Megatron checkpoint, FP8, with this layout
  state     weight amaxes, extra states and modelopt_state are those that ModelOpt and Megatron save in one process
  restore   ModelOpt inserts its quantizers from the checkpoint, megatron-core loads it; weights, and every amax, on every rank.
            ModelOpt 0.47 needs help with the experts here (`right_replicas`, `lift_refusal` in quantize_megatron.py);
            quantize.py checks that it still does
  unified   the export of the quantized checkpoint has the packed weights and scales of ModelOpt's own export
  wrong     a changed bit, exchanged parts, exchanged experts, a lost extra state: each must be seen

One line per check, then `N passed, N failed`; exit status 0 if nothing failed. Runs in the environment of setup.sh.
"""
import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)

import checking

if __name__ == "__main__":
    checking.enter_environment()

sys.dont_write_bytecode = True
os.environ.update(PYTHONDONTWRITEBYTECODE="1")
import torch
from torch.distributed.checkpoint import FileSystemReader

import compare
import matrix
import quantize_checks
import quantize_modelopt
from checking import Failed
from quantize import Pool
from quantize_checks import Checkpoint, damaged
from run import Server

LAYOUT = ("--tp", 4, "--pp", 2, "--ep", 4, "--etp", 1)
RANKS = 8
CONFIG = "FP8_DEFAULT_CFG"
MODELS = {
    "groups4": ("nemotron_h_moe", ("num_key_value_heads=4",)),
    "groups2": ("nemotron_h_latent_mtp", ("num_key_value_heads=2",)),
}
SIZES = ("hybrid_override_pattern=ME*-EM*E", "num_attention_heads=8", "head_dim=16", "n_groups=8", "mamba_num_heads=16")


@dataclasses.dataclass(frozen=True)
class Spec:
    load: tuple                 # options of load_megatron.py
    save: tuple                 # options of save_megatron.py
    form: str                   # of quantize_megatron.py
    restore: tuple              # its further options


SPECS = {
    "te": Spec(("--spec", "te", "--strict", "raise_all"), ("--spec", "te"), "te", ("--right-replicas",)),
    "local": Spec(("--spec", "local", "--remap", "--strict", "raise_all"), ("--spec", "local", "--remap"), "local-fused",
                  ("--right-replicas", "--lift-refusal")),
}


class Checks(checking.Checks):
    width = 53

    def __init__(self, a, work):
        super().__init__()
        self.a, self.work, self.hf = a, work, {}     # model -> its Hugging Face folder
        self.tokens = quantize_modelopt.write_tokens(os.path.join(work, "tokens.jsonl"))
        self.megatron, self.modelopt = Server(sys.executable), Pool(False)
        for pool in (self.megatron, self.modelopt):
            pool.reply()

    def path(self, *parts):
        p = os.path.join(self.work, *parts)
        os.makedirs(os.path.dirname(p), exist_ok=True)
        shutil.rmtree(p, ignore_errors=True)
        return p

    # ---- Longshore
    def run_command(self, argv, **variables):
        env = {k: v for k, v in os.environ.items() if k not in matrix.SCRIPT_VARIABLES}
        r = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**env, **variables})
        if r.returncode:
            raise Failed(f"`{' '.join(argv)[:200]}` ended with {r.returncode}: {(r.stderr or r.stdout).strip()[:300]}")

    def longshore(self, *argv):
        self.run_command([self.a.longshore, *map(str, argv), "--quiet"])

    def example(self, step, source, out, spec):
        """A step of the example by its script: `source` becomes the torch_dist checkpoint `out` at this layout."""
        extra = ["--full-te-spec"] if spec == "te" else []
        if step == "quantize":
            extra += ["--calib-dataset-path-or-name", self.tokens, "--skip-generate"]
        self.run_command(
            ["bash", os.path.join(ROOT, "scripts", f"{step}.sh"), "tiny/model", *([CONFIG] if step == "quantize" else []), "--quiet"],
            TP="4", PP="2", EP="4", ETP="1", MLM_EXTRA_ARGS=shlex.join(extra), MLM_MODEL_SAVE=out, LONGSHORE=self.a.longshore,
            **{"HF_MODEL_CKPT" if step == "convert" else "MLM_MODEL_CKPT": source})

    # ---- Megatron
    def load(self, ckpt, name, spec, divisible=1):
        argv = [ckpt, "--hf", self.hf[name], *SPECS[spec].load, *LAYOUT, "--divisible", divisible]
        return checking.last_line(self.megatron.ask("load_megatron", argv, RANKS))

    def restore(self, ckpt, name, spec):
        argv = ["restore", ckpt, "--hf", self.hf[name], "--form", SPECS[spec].form, *LAYOUT, *SPECS[spec].restore]
        if spec == "te" and name == "groups4":      # hybrid models of 0.16 have no MTP to ask for
            argv += ["--strict", "raise_all"]
        return checking.last_line(self.modelopt.ask("quantize_megatron", argv, RANKS))

    def reference(self, name, out, spec):
        """ModelOpt's own quantized checkpoint and export, from one process."""
        argv = ["save", self.hf[name], out, "--config", CONFIG, "--form", SPECS[spec].form, "--export"]
        checking.last_line(self.modelopt.ask("quantize_megatron", argv, 1))

    # ---- checks
    def back(self, ckpt, name, *options):
        out = self.path("back", os.path.basename(ckpt))
        self.longshore("export", ckpt, out, *options)
        equal, _, bad = compare.folders(self.hf[name], out)
        if bad:
            raise Failed("; ".join(bad[:3]))
        return f"{equal} tensors equal bit for bit"

    def saved(self, name, spec):
        out = self.path("saved", f"{name}-{spec}")
        argv = [self.hf[name], out, *SPECS[spec].save, *LAYOUT, "--divisible", 1]
        checking.last_line(self.megatron.ask("save_megatron", argv, RANKS))
        return self.back(out, name, "--base", self.hf[name])

    def state(self, ours, theirs):
        weights, inputs, _, objects = quantize_checks.states(Checkpoint(ours), Checkpoint(theirs), None, surplus_objects=True)
        return f"{weights} weight amaxes and {objects} extra states equal; {inputs} inputs, whose values ModelOpt made up here"

    def unified(self, ours, theirs):
        out = self.path("unified", os.path.basename(ours))
        self.longshore("export", ours, out)
        packed, same, _, _, _ = quantize_checks.exports(out, os.path.join(theirs, "hf_export"), float("inf"))
        quantize_checks.configs(out, os.path.join(theirs, "hf_export"))
        return f"{same} tensors, {packed} packed values equal"

    def converted(self, name, spec):
        label, ckpt = f"{name} {spec}", self.path("megatron", f"{name}-{spec}")
        self.check(f"write    {label}", self.example, "convert", self.hf[name], ckpt, spec)
        self.check(f"load     {label}", self.load, ckpt, name, spec)
        self.check(f"back     {label}", self.back, ckpt, name)
        self.check(f"saved    {label}", self.saved, name, spec)
        if name == "groups4" and spec == "te":
            self.check(f"padded   {label} to 512 rows", self.load, ckpt, name, spec, 128)
            self.mistakes(ckpt, name, spec)
        if name == "groups4" and not self.a.quick:
            bad = damaged(ckpt, self.path("damaged", f"state-{spec}"), "decoder.layers.5.mixer.in_proj._extra_state/shard_0_1", None)
            self.wrong(f"no extra state, {spec}", self.load, bad, name, spec)

    def quantized(self, name, spec):
        label, theirs = f"{name} {spec}", self.path("theirs", f"{name}-{spec}")
        source, ours = self.path("source", f"{name}-{spec}"), self.path("quantized", f"{name}-{spec}")

        def write():
            self.example("convert", self.hf[name], source, spec)
            self.example("quantize", source, ours, spec)
        self.check(f"quantize {label}", write)
        self.check(f"restore  {label}", self.restore, ours, name, spec)
        self.check(f"modelopt {label}", self.reference, name, theirs, spec)
        self.check(f"state    {label}", self.state, ours, theirs)
        self.check(f"unified  {label}", self.unified, ours, theirs)
        if name == "groups4" and spec == "te":
            self.quantized_mistakes(ours, theirs, name, spec)

    # ---- mistakes on purpose
    def mistakes(self, ckpt, name, spec):
        bad = damaged(ckpt, self.path("damaged", "bit"), "decoder.layers.5.mixer.out_proj.weight", one_bit)
        self.wrong("one bit of a part", self.load, bad, name, spec)
        if self.a.quick:
            return
        for what, key in (("parts of two tensor-parallel ranks", "decoder.layers.2.self_attention.linear_qkv.weight"),
                          ("experts of two ranks", "decoder.layers.7.mlp.experts.experts.linear_fc1.weight")):
            bad = exchanged(ckpt, self.path("damaged", what.replace(" ", "-")), key, 0, 2)
            self.wrong(f"exchanged {what}", self.load, bad, name, spec)

    def quantized_mistakes(self, ours, theirs, name, spec):
        key = "decoder.layers.1.mlp.experts.experts.{}.linear_fc2.weight_quantizer._amax"
        self.wrong("one bit of an amax", self.state, damaged(ours, self.path("damaged", "amax"), key.format(6), one_bit), theirs)
        if self.a.quick:
            return
        bad = damaged(ours, self.path("damaged", "no-amax"), key.format(6), None)
        self.wrong("no amax", self.restore, bad, name, spec)
        bad = damaged(ours, self.path("damaged", "weight"), "decoder.layers.6.self_attention.linear_proj.weight", one_bit)
        self.wrong("one bit of a part, quantized", self.restore, bad, name, spec)

    def run(self):
        names, specs = (["groups4"], ["te"]) if self.a.quick else (list(MODELS), list(SPECS))
        self.hf = {name: self.model(name) for name in names}
        pairs = [(name, spec) for name in names for spec in specs]
        with ThreadPoolExecutor(2) as threads:      # one for each pool
            jobs = [threads.submit(lambda side: [side(*pair) for pair in pairs], side) for side in (self.converted, self.quantized)]
            for job in jobs:
                job.result()
        for pool in (self.megatron, self.modelopt):
            pool.close()
        return self.summary()

    def model(self, name):
        base, own = MODELS[name]
        made, out = self.path("made", name), self.path("hf", name)
        checking.last_line(self.megatron.ask("make_hf", [made, "--model", base, "--set", *SIZES, *own]))
        os.rename(os.path.join(made, base), out)
        return out


def one_bit(t):
    t.view(torch.uint8).flatten()[0] ^= 1
    return t


def exchanged(root, out, key, a, b):
    """A copy of a torch_dist folder in which two chunks of a tensor have each other's place."""
    shutil.copytree(root, out)
    folder = compare.inner_folder(out)
    metadata = FileSystemReader(folder).read_metadata()
    places = sorted((i for i in metadata.storage_data if i.fqn == key), key=lambda i: tuple(i.offset))
    data = metadata.storage_data
    data[places[a]], data[places[b]] = data[places[b]], data[places[a]]
    quantize_checks.write_metadata(folder, metadata)
    return out


if __name__ == "__main__":
    sys.exit(checking.main(__doc__, Checks, quick=checking.switch("one model, te spec, two of the mistakes")))
