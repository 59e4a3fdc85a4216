#!/usr/bin/env python3
"""Quantization against NVIDIA ModelOpt: states, checkpoints and exports, tensor by tensor, on small Nemotron-H models.

    quantize.py [--quick | --full] [--longshore PATH] [--work DIR] [--only TEXT]

ModelOpt quantizes Megatron models that compute (local modules) and transformers models, with the same tokens. Per model
and config:

  state    Longshore's torch_dist against the one that ModelOpt and Megatron saved: keys, weight amaxes and weights to the bit,
           calibrated inputs within a tolerance, the dict in every extra state, modelopt_state
  export   the unified folder against export_mcore_gpt_to_hf: packed weights and scales byte for byte, config files as JSON
  torch_dist, again   the same folder from a torch_dist source, and by `export` from Longshore's own quantized checkpoints
  theirs   `export` of the checkpoint that ModelOpt saved, against its own export, byte for byte
  restore  ModelOpt inserts its quantizers from Longshore's checkpoint and Megatron loads it, at several layouts; with ModelOpt's
           amax values in it, the logits are those of ModelOpt's model, to the bit
  recut    what ModelOpt saved in one spec of Megatron is restored in the other, and is to the bit what it was on the way back
  te       the same with the modules of the Transformer Engine (parameters only: keys, amaxes, extra states, no logits)
  hf       against export_hf_checkpoint of transformers, where inputs are observed as servers quantize them
  wide     the same restores at tp 4, ep 4, pp 2; layouts at which ModelOpt 0.47 cannot save must still be refused
  wrong    a changed amax, a lost extra state, exchanged scales of keys and values: each must be seen

One line per check; exit status 1 if one failed. SKIPPED is what Longshore cannot do yet: with --full it counts as failed.
"""
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)

import checking

if __name__ == "__main__":
    checking.enter_environment()

sys.dont_write_bytecode = True
os.environ.update(PYTHONDONTWRITEBYTECODE="1")
import torch
from safetensors.torch import load_file, save_file

import quantize_checks as checks
import quantize_modelopt
from checking import Failed
from quantize_checks import Checkpoint
from run import Server

# Relative difference of calibrated inputs. A step of bfloat16 is up to 0.8 %: in bfloat16 the two forward passes are up to two
# steps apart (1.4 % measured, an expert's second input in the last layer); in float32 1e-5 leaves no room for another rule.
BF16_NEAR, F32_NEAR, FLIPPED_NEAR = 0.02, 1e-5, 0.15
LOGITS_NEAR = 1e-4                      # of float32 logits, in standard deviations
LOGITS_SHARE = 0.9                      # of the positions of a quantized model, which must be that near
TWO = [("--tp", 1), ("--tp", 2), ("--ep", 2)]

# name: what a flag of `longshore quantize` says of it, and whether ModelOpt's Megatron export writes it at all
QUICK = ["FP8_DEFAULT_CFG", "NVFP4_DEFAULT_CFG", "MXFP8_DEFAULT_CFG"]
CONFIGS = QUICK + ["FP8_PER_CHANNEL_PER_TOKEN_CFG", "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", "INT8_DEFAULT_CFG", "INT8_WEIGHT_ONLY_CFG",
                   "INT4_BLOCKWISE_WEIGHT_ONLY_CFG", "W4A16_NVFP4_CFG", "MAMBA_MOE_FP8_AGGRESSIVE_CFG",
                   "MAMBA_MOE_FP8_CONSERVATIVE_CFG", "MAMBA_MOE_NVFP4_AGGRESSIVE_CFG", "MAMBA_MOE_NVFP4_CONSERVATIVE_CFG"]
MORE = ["MXFP4_DEFAULT_CFG", "MXFP6_DEFAULT_CFG", "MXINT8_DEFAULT_CFG", "W4A8_NVFP4_FP8_CFG", "W4A8_MXFP4_FP8_CFG",
        "NVFP4_MLP_ONLY_CFG", "NVFP4_EXPERTS_ONLY_CFG"]


# ModelOpt 0.47's own Megatron export ends with an exception where q, k and v share scales that are not one number; theirs is
# compared with the export of transformers instead.
NO_MEGATRON_EXPORT = ["FP8_PER_CHANNEL_PER_TOKEN_CFG", "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", "INT8_DEFAULT_CFG", "INT8_WEIGHT_ONLY_CFG"]
RECIPES = ["general/ptq/nvfp4_default-kv_fp8", "models/nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16/ptq/nvfp4-max-calib"]
SQUARES = ["FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG"]      # of 128, which a half of in_proj's rows does not hold


def ranks(layout):
    """Processes of a layout, which may have other options beside it."""
    size = {layout[i]: int(layout[i + 1]) for i in range(len(layout)) if layout[i] in ("--tp", "--pp", "--ep", "--etp")}
    tp, pp, ep = (size.get(x, 1) for x in ("--tp", "--pp", "--ep"))
    return pp * max(tp, ep * size.get("--etp", 1 if ep > 1 else tp))


class Skipped(Exception):
    """What Longshore cannot do yet; the text says why."""


def flip(tensors):
    name = next(k for k, t in tensors.items() if t.dtype == torch.float8_e4m3fn)
    tensors[name].view(torch.uint8)[0, 0] ^= 1


def exchange(tensors):
    k, v = (next(n for n in tensors if n.endswith(f"{c}_proj.{c}_scale")) for c in "kv")
    tensors[k], tensors[v] = tensors[v], tensors[k]


class Pool(Server):
    """quantize_pool.py, computing or with the stand-ins of the Transformer Engine."""

    def __init__(self, computing):
        env = dict(os.environ, PYTHONWARNINGS="ignore", **({"LONGSHORE_INTEROP_COMPUTE": "1"} if computing else {}))
        self.process = subprocess.Popen([sys.executable, "-W", "ignore", os.path.join(HERE, "quantize_pool.py")], env=env, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


class Checks:
    def __init__(self, a, work):
        self.a, self.work, self.results, self.start, self.lock = a, work, [], time.time(), threading.Lock()
        self.pools = {True: queue.Queue(), False: queue.Queue()}
        started = [(c, Pool(c)) for c in (True, False)]
        for computing, pool in started:
            pool.reply()
            self.pools[computing].put(pool)
        self.tokens = quantize_modelopt.write_tokens(os.path.join(work, "tokens.jsonl"))
        self.table = {}         # config -> numbers of docs/correctness.md

    # ---- running things
    def check(self, name, fn, *args):
        """Runs one check and prints its line. Returns whether it passed."""
        if self.a.only not in name:
            return True
        begin, word = time.time(), "ok     "
        try:
            detail = fn(*args) or ""
        except Skipped as e:
            word, detail = "FAILED " if self.a.full else "SKIPPED", str(e)
        except Exception as e:      # a broken check is a failed check
            word, detail = "FAILED ", str(e) if isinstance(e, Failed) else f"{type(e).__name__}: {e}"
        with self.lock:
            self.results.append((name, word.strip()))
            print(f"{word} {name:<62} {time.time() - begin:5.1f}s  {detail}", flush=True)
        return word != "FAILED "

    def wrong(self, name, fn, *args):
        """Passes where `fn` fails: what is wrong on purpose must be seen."""
        def refused():
            try:
                fn(*args)
            except Failed as e:
                return f"seen: {str(e)[:110]}"
            raise Failed("what is wrong on purpose was not seen")
        self.check(f"wrong    {name}", refused)

    def refused(self, name, why, *args):
        """Passes where ModelOpt's own save ends with `why`. Where it does not any more, the layout is one to be restored."""
        def refused():
            try:
                self.ask("quantize_megatron", *args)
            except Failed as e:
                if why not in str(e):
                    raise
                return f"ModelOpt's own save ends with `{why}`"
            raise Failed("ModelOpt can save at this layout")
        self.check(f"refused  {name}", refused)

    def ask(self, script, argv, computing, ranks=0):
        pool = self.pools[computing].get()
        try:
            r = pool.ask(script, argv, ranks)
        finally:
            self.pools[computing].put(pool)
        return checking.last_line(r)

    def longshore(self, *argv):
        r = subprocess.run([self.a.longshore, *map(str, argv), "--quiet"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if r.returncode:
            said = (r.stderr or r.stdout).strip()
            raise Failed(f"`longshore {' '.join(map(str, argv))[:200]}` ended with {r.returncode}: {said[:300]}")
        return r.stdout

    def path(self, *parts):
        p = os.path.join(self.work, *parts)
        os.makedirs(os.path.dirname(p), exist_ok=True)
        shutil.rmtree(p, ignore_errors=True)
        return p

    def model(self, name):
        out = os.path.join(self.work, "models", name)
        if not os.path.exists(out):
            os.makedirs(os.path.dirname(out), exist_ok=True)
            self.ask("quantize_models", [os.path.dirname(out), name], True)
        return out

    # ---- both sides
    def quantize(self, source, out, config, *options):
        name, *kv = config.split("+")
        kv = ["--kv-cache", kv[0].removesuffix("_KV_CFG").lower()] if kv else []
        fc2 = [] if "--fc2-amax" in options else ["--fc2-amax", "megatron"]
        return self.longshore("quantize", source, out, "--quant-cfg", name, *kv, "--calib", self.tokens, "--skip-generate", *fc2, *options)

    def reference(self, hf, name, config, form="compute", *options):
        """What ModelOpt and Megatron save."""
        out = self.path("theirs", name, form, config)
        self.ask("quantize_megatron", ["save", hf, out, "--config", config, "--form", form, *options], form == "compute", 1)
        return out

    # ---- one model, one config
    def pair(self, name, config):
        label, hf = f"{name} {config.removesuffix('_CFG')}", self.model(name)
        theirs, f32 = os.path.join(self.work, "theirs", name, "compute", config), name.endswith("-f32")
        exported = [] if f32 or config in NO_MEGATRON_EXPORT else ["--export"]
        if not self.check(f"modelopt {label}", lambda: self.reference(hf, name, config, "compute", *exported) and ""):
            return
        ours, unified = self.path("ours", name, config), self.path("ours-hf", name, config)

        def write():
            self.quantize(hf, ours, config, "--spec", "local", "--norms", "fused", *([] if f32 else ["--also-hf", unified]))
        if not self.check(f"quantize {label}", write):
            return
        self.check(f"state    {label}", self.state, label, ours, theirs, F32_NEAR if f32 else BF16_NEAR)
        if exported:
            self.check(f"export   {label}", self.export, label, unified, os.path.join(theirs, "hf_export"))
            self.check(f"theirs   {label}", self.theirs, name, hf, config, theirs)
        if not f32:
            self.check(f"again    {label}", self.again, name, hf, config, ours, unified)
        self.check(f"listed   {label}", self.listed, hf, config, ["--spec", "local"], theirs)
        self.check(f"logits   {label}", self.restore, ours, hf, "compute", "--like", theirs)
        if f32:
            self.check(f"engine   {label}", self.engine, hf, theirs, "before")
            self.check(f"engine   {label}, quantized", self.engine, theirs, theirs, "after", "--base", hf)
        elif name == "moe" and config in self.layouts_of():
            separate = self.path("ours-separate", name, config)
            if self.check(f"quantize {label} separate norms", lambda: self.quantize(hf, separate, config, "--spec", "local") and ""):
                self.check(f"restore  {label} separate norms", self.restore, separate, hf, "compute-separate")
            for layout in TWO[2:] if config in SQUARES else TWO[1:]:
                self.check(f"restore  {label} {layout[0][2:]}{layout[1]}", self.restore, ours, hf, "compute", *layout)
        if name == "moe" and config == "FP8_DEFAULT_CFG" and os.path.exists(ours):
            self.mistakes(label, ours, theirs, unified, hf)

    def layouts_of(self):
        return QUICK[:1] if self.a.quick else CONFIGS if self.a.full else QUICK + SQUARES + ["INT4_BLOCKWISE_WEIGHT_ONLY_CFG", "INT8_DEFAULT_CFG"]

    def state(self, label, ours, theirs, tolerance, surplus=True):
        weights, inputs, worst, objects = checks.states(Checkpoint(ours), Checkpoint(theirs), tolerance, surplus)
        self.table.setdefault(label, {}).update(weights=weights, inputs=inputs, worst=worst, objects=objects)
        return f"{weights} weight amaxes and {objects} extra states equal, {inputs} inputs within {worst:.1e}"

    def export(self, label, ours, theirs, tolerance=BF16_NEAR):
        packed, same, inputs, worst, _ = checks.exports(ours, theirs, tolerance)
        wrote = checks.configs(ours, theirs)
        self.table.setdefault(label, {}).update(packed=packed, same=same)
        return f"{same} tensors, {packed} packed values equal, {inputs} input scales within {worst:.1e}" + ("" if wrote else "; ModelOpt wrote no config")

    def again(self, name, hf, config, ours, unified):
        """The same folder from other sources: to the bit, input scales included."""
        plain = os.path.join(self.work, "plain", name)
        with self.lock:
            if not os.path.exists(plain):
                self.longshore("convert", hf, plain)
        second, third = self.path("again", name, config, "quantize"), self.path("again", name, config, "export")
        self.quantize(plain, second, config, "--to", "hf")
        packed, same, inputs, _, _ = checks.exports(second, unified, 0.0)
        checks.configs(second, unified)
        self.from_quantized(ours, third)
        checks.exports(third, unified, 0.0)
        checks.configs(third, unified)
        return f"{same + inputs} tensors equal, from torch_dist and from the quantized checkpoint"

    def from_quantized(self, source, out, *options):
        try:
            self.longshore("export", source, out, *options)
        except Failed as e:
            if "no rule names it" in str(e):
                raise Skipped("`longshore export` does not read quantized checkpoints yet") from e
            raise

    def theirs(self, name, hf, config, theirs):
        out = self.path("from-theirs", name, os.path.basename(os.path.dirname(theirs)), config)
        self.from_quantized(theirs, out, "--base", hf)
        packed, same, inputs, _, _ = checks.exports(out, os.path.join(theirs, "hf_export"), 0.0)
        checks.configs(out, os.path.join(theirs, "hf_export"))
        return f"{same + inputs} tensors equal"

    def restore(self, ckpt, hf, form, *options):
        return self.ask("quantize_megatron", ["restore", ckpt, "--hf", hf, "--form", form, *options], form.startswith("compute"), ranks(options))

    def engine(self, model, theirs, which, *options):
        """Longshore's float32 logits against those that Megatron computed."""
        out = self.path("logits", os.path.basename(model) + which) + ".safetensors"
        try:
            self.longshore("logits", model, "--precision", "f32", "--prompt-file", self.tokens, "--save", out, *options)
        except Failed as e:
            if "no rule names it" in str(e) or "not supported" in str(e):
                raise Skipped("the engine does not run quantized checkpoints yet") from e
            raise
        got, both = load_file(out), load_file(os.path.join(theirs, "logits.safetensors"))
        def distances(x):
            rows = [(got[f"p{p}.logits"].float() - w).abs().amax(-1) / max(1.0, float(w.std())) for p, w in enumerate(both[x])]
            return torch.cat(rows)
        mine = distances(which)
        near = float((mine <= LOGITS_NEAR).float().mean())
        # An activation on the border between two codes falls to either side by the last bit of a sum, and changes its
        # token and, through the states, those behind it. All others must agree.
        if near < (1.0 if which == "before" else LOGITS_SHARE):
            if which != "before" and bool((distances("before") <= LOGITS_NEAR).all()):
                raise Skipped(f"the engine computes without the quantizers that the checkpoint has: {near:.1%} of the positions agree")
            raise Failed(f"logits of {near:.1%} of the positions agree, the others differ by up to {float(mine.max()):.1e}")
        inside = float(mine[mine <= LOGITS_NEAR].max())
        return f"logits of {near:.1%} of the positions agree to {inside:.1e}, the worst differs by {float(mine.max()):.1e}"

    # ---- mistakes on purpose
    def mistakes(self, label, ours, theirs, unified, hf):
        amax, state = "decoder.layers.1.mlp.experts.experts.2.linear_fc1.weight_quantizer._amax", "decoder.layers.0.mixer.in_proj._extra_state/shard_0_1"
        ulp = lambda t: (t.view(torch.int16) + 1).view(t.dtype)

        def off(value):
            value["modelopt_quantizer_state"]["input_quantizer"]["_disabled"] = True
            return value
        for what, key, change in (("one bit of an amax", amax, ulp), ("no amax", amax, None), ("no extra state", state, None),
                                  ("a quantizer off", state, off)):
            bad = checks.damaged(ours, self.path("damaged", what.replace(" ", "-")), key, change)
            self.wrong(f"{what}, state", self.state, label, bad, theirs, BF16_NEAR)
            if change is not ulp:       # a restored model is compared with its file
                self.wrong(f"{what}, restore", self.restore, bad, hf, "compute", "--like", theirs)
        bad = self.edited(unified, "one-bit", flip)
        self.wrong("one bit of a weight, export", self.export, label, bad, os.path.join(theirs, "hf_export"))

    def edited(self, unified, name, change):
        """A copy of an export; `change` works on its tensors."""
        out = self.path("damaged", name)
        shutil.copytree(unified, out)
        tensors = load_file(os.path.join(out, "model.safetensors"))
        change(tensors)
        save_file(tensors, os.path.join(out, "model.safetensors"))
        return out

    # ---- Transformer Engine and transformers
    def te(self, name, config, form, layouts):
        label, hf = f"{form} {name} {config.replace('_DEFAULT_CFG', '').removesuffix('_CFG')}", self.model(name)
        theirs, ours = os.path.join(self.work, "theirs", name, form, config), self.path("ours-" + form, name, config)
        if not self.check(f"modelopt {label}", lambda: self.reference(hf, name, config, form, "--export") and ""):
            return
        if name != "mtp":       # Megatron 0.16 has no MTP in hybrid models; its export takes it from the source folder
            self.check(f"theirs   {label}", self.theirs, name, hf, config, theirs)
        spec = {"te": ["--spec", "te"], "local": ["--spec", "local"], "local-fused": ["--spec", "local", "--norms", "fused"]}[form]

        unified = self.path("ours-hf-" + form, name, config)

        def write():
            try:
                self.quantize(hf, ours, config, *spec, "--also-hf", unified)
            except Failed as e:
                if "the local spec has no quantizers of keys and values" in str(e):
                    raise Skipped("`--kv-cache` is refused with the local spec") from e
                raise
        if not self.check(f"quantize {label}", write) or not os.path.exists(ours):
            return
        self.check(f"state    {label}", self.state, label, ours, theirs, None)
        self.check(f"export   {label}", self.export, label, unified, os.path.join(theirs, "hf_export"), float("inf"))
        self.check(f"again    {label}", self.again, name, hf, config, ours, unified)
        for layout in layouts:
            like = ["--like", theirs] if layout == ("--tp", 1) else []
            where = "".join(str(x).removeprefix("--") for x in layout)
            self.check(f"restore  {label} {where}", self.restore, ours, hf, form, *layout, *like)
        if name == "moe":
            self.check(f"listed   {label}", self.listed, hf, config, spec, theirs)
            self.check(f"recut    {label}", self.recut, label, hf, form, spec, theirs)
        if "KV" in config and form == "te":
            key = next(x for x in Checkpoint(ours).tensors if x.endswith("k_bmm_quantizer._amax"))
            bad = checks.damaged(ours, self.path("damaged", label.replace(" ", "-")), key, None)
            self.wrong(f"no amax of keys, {label}", self.restore, bad, hf, form)

    def listed(self, hf, config, spec, theirs):
        """The list that `--reference-output` prints against ModelOpt's. Observed magnitudes are compared elsewhere."""
        said = self.quantize(hf, self.path("listed", *theirs.split(os.sep)[-3:]), config, *spec, "--reference-output")
        shown = lambda line: re.sub(r"amax=\d\S*", "amax=…", line) if not "weight_quantizer" in line else line
        # The convolution is a module with quantizers, which are off, up to Megatron 0.16; MTP is not in its hybrid models.
        rows = lambda text, skip: {shown(line) for line in text.splitlines() if "Quantizer(" in line and skip not in line}
        mine = rows(said, "mtp.")
        if "compute" in theirs.split(os.sep):       # a core without quantizers
            mine = {line for line in mine if ".core_attention." not in line}
        want = rows(open(os.path.join(theirs, ".quant_summary.txt")).read(), ".conv1d.")
        if mine != want:
            raise Failed(f"{len(mine - want)} lines are surplus and {len(want - mine)} are missing: {sorted(mine - want)[:1]} {sorted(want - mine)[:1]}")
        return f"{len(mine)} lines equal"

    def recut(self, label, hf, form, spec, theirs):
        """What ModelOpt saved goes into the other spec, where ModelOpt restores it, and comes back as it was."""
        other = "local" if form == "te" else "te"
        there, back = (self.path("recut", label.replace(" ", "-"), way) for way in ("there", "back"))
        self.longshore("convert", theirs, there, "--to", "torch_dist", "--spec", other, "--tp", 2, "--base", hf)
        self.restore(there, hf, other, "--tp", 2)
        self.longshore("convert", there, back, "--to", "torch_dist", *spec)
        self.restore(back, hf, form, "--like", theirs)
        weights, inputs, _, objects = checks.states(Checkpoint(back), Checkpoint(theirs), 0.0)
        return f"{weights} weight amaxes, {inputs} inputs and {objects} extra states equal"

    def wide(self, form, config, layouts, refused, why):
        """Parallel sizes above 2, of a checkpoint that is cut for the largest; `refused` are layouts at which ModelOpt cannot save."""
        label, hf = f"{form} wide {config.replace('_DEFAULT_CFG', '').removesuffix('_CFG')}", self.model("wide")
        ours = self.path("ours-" + form, "wide", config)
        cut = ["--spec", form, "--tp", 4, "--pp", 2, "--ep", 4, "--etp", 1]
        if not self.check(f"quantize {label}", lambda: self.quantize(hf, ours, config, *cut) and ""):
            return
        where = lambda layout: "".join(str(x).removeprefix("--") for x in layout)
        for layout in layouts:
            self.check(f"restore  {label} {where(layout)}", self.restore, ours, hf, form, *layout)
        for layout in refused:
            argv = ["save", hf, self.path("theirs", "wide", form, config, where(layout)), "--config", config, "--form", form, *layout]
            self.refused(f"{label} {where(layout)}", why, argv, False, ranks(layout))

    def transformers(self, name, config):
        """Against the export of transformers. Of plain FP8 it keeps a scale for each of q, k and v, where Megatron has one for the
        three and so has Longshore; it has no MTP layers, nor amax values that depend on the router."""
        label, hf = f"{name} {config.removesuffix('_CFG')}", self.model(name)
        theirs, ours = self.path("theirs-hf", name, config), self.path("ours-unscaled", name, config)
        if not self.check(f"modelopt transformers {label}", lambda: self.ask("quantize_hf", [hf, theirs, config], True) and ""):
            return

        def compare(ours):
            own = lambda k: k.split(".")[-2] in ("q_proj", "k_proj", "v_proj") and k.endswith(("weight", "weight_scale"))
            differ = own if config.startswith("FP8_DEFAULT") else None
            # Behind experts a route that bfloat16 flips moves the largest activation.
            near = FLIPPED_NEAR if name == "latent" else BF16_NEAR
            packed, same, inputs, worst, excused = checks.exports(ours, theirs, near, differ, shapes=False)
            return f"{same} tensors, {packed} packed values equal, {inputs} input scales within {worst:.1e}" + (
                f"; {excused} of q, k, v differ, as they must" if differ else "")
        if self.check(f"quantize {label} for servers", lambda: self.quantize(hf, ours, config, "--to", "hf", "--fc2-amax", "unscaled") and ""):
            self.check(f"hf       {label}", compare, ours)
        if "KV" in config and os.path.exists(ours):
            self.wrong(f"k_scale and v_scale exchanged, {label}", compare, self.edited(ours, "exchanged", exchange))

    def run(self):
        a = self.a
        names = ["moe"] if a.quick else ["moe", "dense", "latent"]
        for name in [*names, "moe-f32", *([] if a.quick else ["mtp", "dense-f32", "wide"])]:
            self.model(name)
        jobs = [(self.pair, "moe", c) for c in (QUICK if a.quick else CONFIGS + MORE if a.full else CONFIGS)]
        jobs += [] if a.quick else [(self.pair, "dense", c) for c in QUICK]
        jobs += [] if a.quick else [(self.pair, "dense-f32", c) for c in QUICK]
        jobs += [(self.pair, "moe-f32", c) for c in (QUICK[:1] if a.quick else CONFIGS if a.full else QUICK)]
        # With etp below tp and ep above 1 ModelOpt 0.47 cannot load its own amax values of grouped experts: see `wide`.
        layouts = [TWO[0]] if a.quick else TWO
        jobs += [(self.te, "moe", "FP8_DEFAULT_CFG+FP8_KV_CFG", "te", layouts + ([("--pp", 2), ("--tp", 2, "--ep", 2, "--etp", 2)] if a.full else []))]
        if not a.quick:
            jobs += [(self.te, "moe", c, "te", TWO[:1]) for c in ("NVFP4_DEFAULT_CFG+FP8_KV_CFG", "MXFP8_DEFAULT_CFG", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG")]
            jobs += [(self.te, "moe", recipe, "te", TWO[:1]) for recipe in RECIPES]
            jobs += [(self.te, "dense", "FP8_DEFAULT_CFG+FP8_KV_CFG", "te", TWO[:2] + [("--pp", 2)]), (self.te, "latent", "FP8_DEFAULT_CFG", "te", TWO[::2])]
            jobs += [(self.te, "latent", "NVFP4_DEFAULT_CFG", "te", TWO[:1]), (self.te, "mtp", "FP8_DEFAULT_CFG+FP8_KV_CFG", "te", TWO[:1])]
            jobs += [(self.te, "moe", c, form, TWO) for form in ("local", "local-fused") for c in ("FP8_DEFAULT_CFG", "FP8_DEFAULT_CFG+FP8_KV_CFG")]
            jobs += self.wide_jobs()
            jobs += [(self.transformers, n, c) for n in names for c in QUICK]
            # Of squares ModelOpt's export through transformers leaves the names of the scales as they are in the module tree.
            whole = [c for c in NO_MEGATRON_EXPORT if c not in SQUARES]
            jobs += [(self.transformers, "moe", c) for c in ["FP8_DEFAULT_CFG+FP8_KV_CFG", *whole]]
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda job: job[0](*job[1:]), jobs))
        for pools in self.pools.values():
            pools.get().close()
        return self.report()

    def wide_jobs(self):
        layout = lambda tp, pp, ep, etp: ("--tp", tp, "--pp", pp, "--ep", ep, "--etp", etp)
        widest, cut = layout(4, 2, 4, 1), layout(4, 2, 1, 4)
        righted = (*widest, "--right-replicas")
        more = [layout(1, 2, 4, 1), layout(2, 2, 2, 2), layout(4, 1, 2, 4)] if self.a.full else []
        grouped, sequential = "Invalid access pattern", "TP+EP is not supported"     # experts in one module, or one by one
        jobs = [(self.wide, "te", "FP8_DEFAULT_CFG+FP8_KV_CFG", [cut, righted, *more], [widest], grouped)]
        jobs += [(self.wide, "local", "FP8_DEFAULT_CFG", [cut, *([layout(1, 1, 4, 1)] if self.a.full else [])], [widest], sequential)]
        if self.a.full:
            jobs += [(self.wide, "te", "NVFP4_DEFAULT_CFG", [cut, righted, *more], [widest], grouped)]
            # ModelOpt cuts a channel's magnitudes by tp, also where the experts are whole.
            jobs += [(self.wide, "te", "INT8_DEFAULT_CFG", [cut, *more], [widest, layout(4, 1, 1, 1)], grouped)]
        return jobs

    def report(self):
        count = lambda word: sum(w == word for _, w in self.results)
        failed = [name for name, word in self.results if word == "FAILED"]
        if self.a.table:
            with open(self.a.table, "w") as f:
                json.dump(self.table, f, indent=1)
        print(f"\n{time.time() - self.start:.0f} s" + "".join(f"\nFAILED {name}" for name in failed))
        print(f"{count('ok')} passed, {len(failed)} failed, {count('SKIPPED')} skipped", flush=True)
        return 1 if failed or not self.results else 0


if __name__ == "__main__":
    sys.exit(checking.main(
        __doc__, Checks,
        quick=checking.switch("one model, three configs"),
        full=checking.switch("more configs and layouts; what is skipped counts as failed"),
        only={"default": "", "help": "checks whose name contains this text (they may need what others write)"},
        table={"help": "file for the measured numbers, as JSON"}))
