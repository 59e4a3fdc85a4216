#!/usr/bin/env python3
"""What quantization costs the bundled trained model, in Longshore's hands and in NVIDIA ModelOpt's.

    quantize_quality.py [--longshore PATH] [--text FILE.gz] [--config NAME ...] [--side hf|megatron ...] [--windows N] [--controls N]
                        [--cache DIR] [--table FILE]

Everything is float32, weights included, so that only the quantization differs. Both calibrate on the same tokens: the text
that `longshore quantize` has for that, one sample at a time. The quantized models read the same held-out windows, which
are disjoint from it. Per config:

  hf        ModelOpt quantizes the model of transformers. Longshore's unified folder is put into that model (its packed weights as
            the values that they stand for, its scales of inputs in ModelOpt's quantizers), and runs in Longshore's engine
  megatron  ModelOpt quantizes the model of megatron-core. ModelOpt restores Longshore's torch_dist checkpoint into another,
            and Longshore's engine runs it

Printed are perplexity and the mean KL divergence of the unquantized model from the quantized. A check passes where Longshore's
loss and divergence are at most one standard error above ModelOpt's; the error is that of the differences window by window. "One step
off" is ModelOpt's own model with every magnitude one step of float32 larger, for the size of differences that mean nothing;
--controls adds models of ModelOpt's whose magnitudes of inputs are each one step larger, one smaller or as they were, at random.

--cache keeps what ModelOpt found for a model of transformers (its search for AWQ takes minutes) in a folder, for the next run with
the same model, samples, config and versions.
"""
import argparse
import contextlib
import gzip
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import types

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)

if __name__ == "__main__":      # torch is in setup.sh's environment: go on there
    python = subprocess.run([os.path.join(HERE, "setup.sh")], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    if os.path.realpath(sys.prefix) != os.path.realpath(os.path.dirname(os.path.dirname(python))):
        os.execv(python, [python, "-W", "ignore", *sys.argv])

sys.dont_write_bytecode = True
os.environ.update(LONGSHORE_INTEROP_COMPUTE="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
import logits_reference
import quantize_megatron as mcore       # its stand-ins, before modelopt
import quantize_modelopt as Q
import torch
from quantize_numerics import E2M1
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

MODEL = os.path.join(ROOT, "models", "nemotron-h-10m")
CALIBRATION = os.path.join(ROOT, "crates", "longshore", "src", "calibration", "default.jsonl")
CONFIGS = ["FP8_DEFAULT_CFG", "NVFP4_DEFAULT_CFG", "INT4_AWQ_CFG"]
LENGTH, AT_ONCE = 512, 8                # tokens of a window or a sample at most; windows computed together
SAME = 1e-9                             # KL divergence of two float32 forward passes of one model: none but their rounding


def float32(folder, out):
    """The same model in float32: amax values and weights are then not rounded to bfloat16 on either side."""
    shutil.copytree(folder, out)
    path, config = (os.path.join(out, f) for f in ("model.safetensors", "config.json"))
    save_file({k: t.float() for k, t in load_file(path).items()}, path, metadata={"format": "pt"})
    c = json.load(open(config))
    c["dtype"] = "float32"
    json.dump(c, open(config, "w"), indent=2)
    return out


def calibration(tokenizer):
    """Token ids of the text that comes with the program, a row for each sample."""
    rows = []
    for line in open(CALIBRATION):
        sample = json.loads(line)
        text = sample["text"] if "text" in sample else "\n\n".join(m["content"] for m in sample["messages"])
        rows.append(tokenizer(text, add_special_tokens=False).input_ids[:LENGTH])
    return rows


def write_ids(path, rows):
    with open(path, "w") as f:
        f.writelines(json.dumps({"input_ids": list(map(int, row))}) + "\n" for row in rows)


class Windows:
    """Held-out windows, and what the unquantized model says of them."""

    def __init__(self, ids, logits):
        self.ids = ids
        self.source = list(self.each(logits))

    def each(self, logits):
        """Log probabilities [T, V] of every window; `logits` takes some windows [n, T]."""
        with torch.no_grad():
            for at in range(0, len(self.ids), AT_ONCE):
                yield from logits(self.ids[at:at + AT_ONCE]).float().log_softmax(-1)

    def measure(self, logits):
        """Per window: mean KL divergence from the source, and loss per token."""
        kl, nll = [], []
        for i, (p, q) in enumerate(zip(self.source, self.each(logits))):
            kl.append(float((p.double().exp() * (p.double() - q.double())).sum(-1).mean()))
            nll.append(float(-q[:-1].gather(1, self.ids[i][1:, None]).double().mean()))
        return {"kl": torch.tensor(kl, dtype=torch.float64), "nll": torch.tensor(nll, dtype=torch.float64)}


# ---- transformers
def hf_model(source):
    """Without transformers' bound on time steps, which Megatron and Longshore do not have."""
    return logits_reference.load(source, torch.float32, clamp=False)


def hf_logits(model):
    return lambda ids: model(ids, use_cache=False).logits


def hf_quantized(source, config, rows, cache=None):
    import modelopt.torch.opt as mto
    import modelopt.torch.quantization as mtq

    def forward(model):
        with torch.no_grad():
            for row in rows:
                model(torch.tensor([row]), use_cache=False)
    path = cache and os.path.join(cache, cache_name(source, config, rows))
    if path and os.path.exists(path):
        return hf_restored(source, path)
    model = mtq.quantize(hf_model(source), Q.config(config), forward)
    if path:
        os.makedirs(cache, exist_ok=True)
        torch.save({"modelopt_state": mto.modelopt_state(model), "model": model.state_dict()}, path + ".part")
        ids = torch.tensor([rows[0]])
        with torch.no_grad():
            same = torch.equal(hf_logits(model)(ids), hf_logits(hf_restored(source, path + ".part"))(ids))
        assert same, "ModelOpt restores another model than it saved"
        os.replace(path + ".part", path)
    return model


def hf_restored(source, path):
    import modelopt.torch.opt as mto
    saved = torch.load(path, weights_only=False)
    model = mto.restore_from_modelopt_state(hf_model(source), saved["modelopt_state"])
    model.load_state_dict(saved["model"])
    return model


def cache_name(source, config, rows):
    """A file name of everything that the result depends on."""
    import modelopt
    import transformers
    about = hashlib.sha256(json.dumps([Q.config(config), rows, modelopt.__version__, torch.__version__, transformers.__version__],
                                      default=str).encode())
    for name in ("config.json", "model.safetensors"):
        with open(os.path.join(source, name), "rb") as f:
            about.update(hashlib.file_digest(f, "sha256").digest())
    return f"{config}-{about.hexdigest()[:16]}.pt"


def values(tensors, module):
    """A packed weight as the values that it stands for."""
    packed, scale = tensors[f"{module}.weight"], tensors[f"{module}.weight_scale"].float()
    if packed.dtype == torch.float8_e4m3fn:
        return packed.float() * scale
    low, high = packed & 15, packed >> 4
    if f"{module}.weight_scale_2" in tensors:               # E2M1, pairs along a row
        codes = torch.stack([low, high], -1).flatten(1).long()
        magnitude = torch.from_numpy(E2M1)[codes & 7]
        numbers, scale = torch.where(codes > 7, -magnitude, magnitude), scale * tensors[f"{module}.weight_scale_2"]
    else:                                                   # INT4, pairs of rows
        codes = torch.stack([low, high], 1).flatten(0, 1).float()
        numbers = torch.where(codes > 7, codes - 16, codes)
    return (numbers.unflatten(1, (scale.shape[1], -1)) * scale[..., None]).flatten(1)


@torch.no_grad()
def put_in(model, folder):
    """Puts Longshore's unified folder into a model that ModelOpt quantized: weights, and what the inputs are quantized with.

    Both must have quantized the same linears, scaled the same channels and left the same weights alone.
    """
    from modelopt.torch.quantization.nn import TensorQuantizer
    tensors, used = load_file(os.path.join(folder, "model.safetensors")), set()

    def take(name):
        used.add(name)
        return tensors[name]

    def of(linear, weight, weights, inputs):
        if not weights.is_enabled:
            assert torch.equal(take(f"{linear}.weight"), weight), f"`{linear}` differs from the source"
            return
        used.update(k for k in tensors if k.rpartition(".")[0] == linear and k.rpartition(".")[2].startswith("weight"))
        weight.copy_(values(tensors, linear))
        weights.disable()
        if inputs.is_enabled:
            most = 448.0 if inputs.num_bits == (4, 3) else 6.0 * 448.0
            inputs.amax = take(f"{linear}.input_scale").reshape(inputs.amax.shape) * most
        if inputs.pre_quant_scale is not None:
            inputs.pre_quant_scale = take(f"{linear}.pre_quant_scale")
    for name, module in model.named_modules():
        linear = name.replace("model.", "backbone.", 1)
        if isinstance(getattr(module, "weight_quantizer", None), TensorQuantizer) and module.weight.dim() == 2:
            of(linear, module.weight, module.weight_quantizer, module.input_quantizer)
        for part in ("up_proj", "down_proj") if hasattr(module, "up_proj_weight_quantizers") else ():
            for e, weights in enumerate(getattr(module, part + "_weight_quantizers")):
                of(f"{linear}.{e}.{part}", getattr(module, part)[e], weights, getattr(module, part + "_input_quantizer"))
    quantized = [k for k in tensors if k not in used and k.endswith(("_scale", "_scale_2"))]
    assert not quantized, f"only Longshore has {quantized[:3]}"
    return model


def magnitudes(model):
    """{name: quantizer} of those that are on and have a magnitude."""
    from modelopt.torch.quantization.nn import TensorQuantizer
    return {n: q for n, q in model.named_modules() if isinstance(q, TensorQuantizer) and q.is_enabled and hasattr(q, "_amax")}


def is_input(name):
    return name.endswith("input_quantizer")


def nudge(model):
    """Moves every magnitude by one step of float32, to see what rounding alone changes."""
    for q in magnitudes(model).values():
        q._amax.copy_(torch.nextafter(q._amax, torch.full_like(q._amax, torch.inf)))


def scatter(model, found, seed):
    """Puts the magnitudes `found` into the model, those of inputs one step of float32 up, down or as they were, at random."""
    g = torch.Generator().manual_seed(seed)
    for name, q in magnitudes(model).items():
        q._amax.copy_(found[name])
        if is_input(name):
            way = torch.randint(-1, 2, q._amax.shape, generator=g)
            towards = torch.where(way > 0, torch.inf, -torch.inf)
            q._amax.copy_(torch.where(way == 0, q._amax, torch.nextafter(q._amax, towards)))


def pre_quant_scales(model):
    from modelopt.torch.quantization.nn import TensorQuantizer
    quantizers = {n: q for n, q in model.named_modules() if isinstance(q, TensorQuantizer)}
    return {n: q.pre_quant_scale.clone() for n, q in quantizers.items() if q.pre_quant_scale is not None}


def one_scale(model):
    """Gives q, k and v, which ModelOpt searches one by one, the scale that its export gives all three."""
    from modelopt.torch.export.quant_utils import preprocess_linear_fusion
    with torch.no_grad():
        for m in model.modules():
            if hasattr(m, "q_proj"):
                preprocess_linear_fusion([m.q_proj, m.k_proj, m.v_proj])


# ---- Megatron
def megatron_logits(model):
    def logits(ids):
        n, t = ids.shape
        mask = torch.triu(torch.ones(1, 1, t, t, dtype=torch.bool), 1)
        return model(ids, torch.arange(t).expand(n, t), mask)
    return logits


def megatron_model(source):
    """The form that computes; its weights are those of the folder."""
    from mapping import Mapping
    mapping = Mapping(source, fused=True)
    model = mcore.build(mapping.c, types.SimpleNamespace(form="compute", tp=1, pp=1, ep=1, etp=None))
    with torch.no_grad():
        for shard in mcore.M.flat_sharded(model):
            if isinstance(shard, mcore.ShardedTensor):
                shard.data.copy_(mapping.local(shard))
    return model


def megatron_quantized(source, config, rows, cache=None):
    import modelopt.torch.quantization as mtq

    def forward(model):
        with torch.no_grad():
            for row in rows:
                megatron_logits(model)(torch.tensor([row]))
    return mtq.quantize(megatron_model(source), Q.config(config), forward)


def megatron_restored(source, checkpoint):
    from modelopt.torch.opt.plugins.mcore_dist_checkpointing import restore_sharded_modelopt_state
    from quantize_checks import compare
    model, folder, dc = megatron_model(source), compare.inner_folder(checkpoint), mcore.M.dc
    restore_sharded_modelopt_state([model], folder)
    stored = dc.load_content_metadata(preloaded_state_dict=dc.load_common_state_dict(folder))
    state = dc.load({"model": mcore.sharded(model, mcore.metadata(stored))}, folder, strict="assume_ok_unexpected")
    missing = [k for k in model.load_state_dict(state["model"], strict=False).missing_keys if "_extra_state" not in k]
    assert not missing, f"not loaded: {missing[:3]}"
    return model


SIDES = {"hf": (hf_quantized, hf_logits), "megatron": (megatron_quantized, megatron_logits)}
WRITTEN = {"hf": ["--to", "hf"], "megatron": ["--spec", "local", "--norms", "fused", "--fc2-amax", "megatron"]}


class Quality:
    def __init__(self, a, work):
        self.a, self.work, self.failed, self.table = a, work, 0, {}
        self.source = float32(MODEL, os.path.join(work, "source"))
        tokenizer = AutoTokenizer.from_pretrained(MODEL)
        self.rows = calibration(tokenizer)
        self.samples = os.path.join(work, "calibration.jsonl")
        write_ids(self.samples, self.rows)
        text = gzip.open(a.text, "rt", encoding="utf-8").read()
        ids = tokenizer(text, add_special_tokens=False).input_ids
        if len(ids) < a.windows * LENGTH:
            sys.exit(f"`{a.text}` has {len(ids) // LENGTH} windows of {LENGTH} tokens, and {a.windows} are wanted")
        # Spread over the whole text, which has several books.
        starts = [i * (len(ids) - LENGTH) // max(1, a.windows - 1) for i in range(a.windows)]
        held_out = torch.tensor([ids[s:s + LENGTH] for s in starts])
        assert not {tuple(w[:32]) for w in held_out.tolist()} & {tuple(r[i:i + 32]) for r in self.rows for i in range(len(r))}
        self.windows = Windows(held_out, hf_logits(hf_model(self.source)))
        print(f"calibration: {len(self.rows)} samples, {sum(map(len, self.rows))} tokens; held out: {a.windows} windows of {LENGTH}; "
              "float32", flush=True)

    def longshore(self, *argv):
        subprocess.run([self.a.longshore, *argv, "--quiet"], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def engine(self, model):
        """The logits that Longshore computes itself."""
        asked, out = os.path.join(self.work, "ids.jsonl"), os.path.join(self.work, "logits.safetensors")

        def logits(ids):
            write_ids(asked, ids)
            if os.path.exists(out):
                os.remove(out)
            self.longshore("logits", model, "--base", self.source, "--precision", "f32", "--prompt-file", asked, "--save", out)
            found = load_file(out)
            return torch.stack([found[f"p{p}.logits"] for p in range(len(ids))])
        return logits

    def show(self, label, found, theirs=None, checked=True):
        """One line; with `theirs`, the comparison and, where it is `checked`, whether it passed."""
        line = f"perplexity {math.exp(found['nll'].mean()):.4f}  KL {found['kl'].mean():.3e}"
        self.table[label] = {"perplexity": math.exp(found["nll"].mean()), "kl": float(found["kl"].mean())}
        word = "      "
        if theirs is not None:
            word = "ok    " if checked else "      "
            for metric in ("kl", "nll"):
                difference = found[metric] - theirs[metric]
                mean, error = float(difference.mean()), float(difference.std() / math.sqrt(len(difference)))
                line += f"  {metric} {mean:+.2e} ± {error:.1e}"
                self.table[label][metric + " difference"] = [mean, error]
                if checked and not mean <= error:
                    word = "FAILED"
            self.failed += word == "FAILED"
        print(f"{word} {label:<48} {line}", flush=True)

    def same(self, label, logits):
        """That a forward pass is that of transformers, before anything is quantized."""
        found = self.windows.measure(logits)
        self.show(label, found)
        if not found["kl"].mean().abs() <= SAME:
            sys.exit(f"{label}: not the function of transformers")

    def run(self):
        Q.stand_in_kernels()
        self.same("source, longshore's engine", self.engine(self.source))
        if "megatron" in self.a.side:
            mcore.M.init()
            self.same("source, megatron-core", megatron_logits(megatron_model(self.source)))
        for side in self.a.side:
            for config in self.a.config:
                self.compare(side, config)
        print(f"{self.failed} failed")
        return 1 if self.failed else 0

    def calibrated(self, label, model, amaxes, scales):
        """Says how far the magnitudes and scales of inputs are from ModelOpt's; those of weights only where the model still has them."""
        def far(ours, theirs):
            return float(((ours.double() - theirs.double()).abs() / theirs.double().abs()).max())
        ours, theirs = pre_quant_scales(model), scales
        if not ours:
            ours = {n: q._amax for n, q in magnitudes(model).items() if is_input(n)}
            theirs = {n: t for n, t in amaxes.items() if is_input(n)}
        assert ours.keys() == theirs.keys(), f"{label}: not the same inputs are quantized"
        apart = sorted((far(t.reshape(-1), theirs[n].reshape(-1)), n) for n, t in ours.items())
        weights = {n: q._amax for n, q in magnitudes(model).items() if not is_input(n)}
        same = sum(torch.equal(t.reshape(-1), amaxes[n].reshape(-1)) for n, t in weights.items())
        line = f"{len(apart)} inputs {'scaled' if scales else 'calibrated'}, {sum(d == 0 for d, _ in apart)} to the bit"
        if apart:
            line += f", the others up to {apart[-1][0]:.1e} apart (`{apart[-1][1]}`; median of all {apart[len(apart) // 2][0]:.1e})"
        print(f"       {line}" + f"; {same} of {len(weights)} weight magnitudes equal" * bool(weights), flush=True)
        self.table[label] = {"inputs": {n: d for d, n in apart}, "weight magnitudes": [same, len(weights)]}

    def compare(self, side, config):
        label, times = f"{side} {config}", [time.time()]
        out = os.path.join(self.work, f"{side}-{config}")
        self.longshore("quantize", self.source, out, "--quant-cfg", config, "--calib", self.samples, "--skip-generate",
                       "--skip-report", *WRITTEN[side])
        times.append(time.time())
        quantized, logits = SIDES[side]
        with contextlib.redirect_stdout(sys.stderr):
            model = quantized(self.source, config, self.rows, self.a.cache)
        times.append(time.time())
        found = {n: q._amax.clone() for n, q in magnitudes(model).items()}, pre_quant_scales(model)
        theirs = self.windows.measure(logits(model))
        self.show(f"{label}, modelopt", theirs)
        nudge(model)
        self.show(f"{label}, modelopt, one step off", self.windows.measure(logits(model)), theirs, checked=False)
        for i in range(self.a.controls):
            scatter(model, found[0], i)
            self.show(f"{label}, modelopt, control {i + 1}", self.windows.measure(logits(model)), theirs, checked=False)
        if side == "hf" and found[1]:
            for name, q in magnitudes(model).items():
                q._amax.copy_(found[0][name])
            one_scale(model)
            self.show(f"{label}, modelopt, exported q, k, v", self.windows.measure(logits(model)), theirs, checked=False)
        with contextlib.redirect_stdout(sys.stderr):
            model = put_in(model, out) if side == "hf" else megatron_restored(self.source, out)
        self.calibrated(label, model, *found)
        self.show(f"{label}, longshore in modelopt", self.windows.measure(logits(model)), theirs)
        self.show(f"{label}, longshore's engine", self.windows.measure(self.engine(out)), theirs)
        print(f"       longshore quantized in {times[1] - times[0]:.0f} s, modelopt in {times[2] - times[1]:.0f} s", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = os.environ.get("LONGSHORE_DATA", os.path.join(os.path.dirname(ROOT), "shared"))
    ap.add_argument("--longshore", default=os.path.join(ROOT, "target", "release", "longshore"), help="the program to check")
    ap.add_argument("--text", default=os.path.join(shared, "data", "text", "books-heldout.txt.gz"), help="held-out text, gzipped")
    ap.add_argument("--config", nargs="+", default=CONFIGS, metavar="NAME")
    ap.add_argument("--side", nargs="+", default=list(SIDES), choices=list(SIDES))
    ap.add_argument("--windows", type=int, default=64)
    ap.add_argument("--controls", type=int, default=0, metavar="N", help="models of ModelOpt's with inputs moved at random")
    ap.add_argument("--cache", metavar="DIR", help="folder that keeps what ModelOpt found in transformers' model")
    ap.add_argument("--table", help="file for the measured numbers, as JSON")
    ap.add_argument("--work", help="folder for the files, kept afterwards (default: a temporary one)")
    a = ap.parse_args()
    a.longshore = os.path.abspath(a.longshore)
    with tempfile.TemporaryDirectory(prefix="longshore-quality-") as temporary:
        if a.work:
            os.makedirs(a.work)
        quality = Quality(a, a.work or temporary)
        status = quality.run()
    if a.table:
        json.dump(quality.table, open(a.table, "w"), indent=1)
    return status


if __name__ == "__main__":
    sys.exit(main())
