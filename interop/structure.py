#!/usr/bin/env python3
"""`longshore inspect --structure` against the modules that real megatron-core builds.

    structure.py [--longshore PATH]

Small Hugging Face models of every kind are converted for every spec. megatron-core builds the model of the same config, and its
modules are listed: names, classes, order, parameters and saved buffers with their shapes. Modules that hold nothing (`IdentityOp`,
activations, dropout) are left out on both sides. MTP is left out too: megatron-core 0.16.1 has none in hybrid models.

One line per check, then `N passed, N failed`; exit status 0 if nothing failed. Runs in the environment of setup.sh, which it makes
where there is none.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)

import checking

if __name__ == "__main__":
    checking.enter_environment()

import megatron_cpu as M
from checking import Checks, Failed

VARIANTS = {"dense": ("nemotron_h_dense",), "moe": ("nemotron_h_moe",), "latent": ("nemotron_h_latent_mtp",),
            "tied": ("nemotron_h_dense", "--set", "tie_word_embeddings=true")}
SPECS = {"te": ("te", []), "local": ("local", []), "local-te-names": ("local", ["--norms", "fused"])}


def real(module, path="", out=None):
    """Lines of a real model: path, class, names and shapes."""
    out = {} if out is None else out
    saved = {name: list(b.shape) for name, b in module.named_buffers(recurse=False)
             if name not in module._non_persistent_buffers_set and b is not None}
    tensors = {name: list(p.shape) for name, p in module.named_parameters(recurse=False)} | saved
    at, children = len(out), {}
    for name, child in module.named_children():
        real(child, f"{path}.{name}" if path else name, children)
    if tensors or children or path == "output_layer":
        out[path] = (type(module).__name__, tensors)
        out.update(children)
    return out


def ours(node, path="", out=None):
    """The same of the program's object."""
    out = {} if out is None else out
    tensors = {}
    for p in node["parameters"]:
        names = [p["name"]] if p["count"] is None else [f"{p['name']}{i}" for i in range(p["count"])]
        tensors.update((name, p["shape"]) for name in names)
    out[path] = (node["class"], tensors)
    children = [(name, child) for child in node["modules"] for name in child["names"]]
    if node["class"] == "ModuleList":       # modules that are alike come together
        children.sort(key=lambda child: int(child[0]))
    for name, child in children:
        if (path, name) != ("", "mtp"):
            ours(child, f"{path}.{name}" if path else name, out)
    return out


def compare(expected, found):
    for (a, b) in zip(expected.items(), found.items()):
        if a != b:
            raise Failed(f"Megatron has {a}, the program shows {b}")
    if len(expected) != len(found):
        raise Failed(f"Megatron has {len(expected)} modules, the program shows {len(found)}")
    return f"{len(found)} modules"


def show(longshore, source):
    run = subprocess.run([longshore, "inspect", source, "--structure", "--json", "-q"], stdout=subprocess.PIPE, text=True)
    if run.returncode:
        raise Failed(f"inspect ends with {run.returncode}")
    return ours(json.loads(run.stdout)["structure"])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--longshore", default=os.path.join(ROOT, "target", "release", "longshore"))
    a = ap.parse_args()
    M.init()
    checks = Checks()
    with tempfile.TemporaryDirectory() as work:
        for variant, (model, *more) in VARIANTS.items():
            out = os.path.join(work, variant)
            subprocess.run([sys.executable, "-W", "ignore", os.path.join(HERE, "make_hf.py"), out, "--model", model, *more],
                           check=True, stdout=subprocess.DEVNULL)
            hf = os.path.join(out, model)
            config = M.load_hf_config(hf)
            for name, (spec, options) in SPECS.items():
                mc = os.path.join(work, f"{variant}-{name}")
                subprocess.run([a.longshore, "convert", hf, mc, "--spec", spec, *options, "-q"], check=True)
                expected = real(M.build(config, spec, remap=name == "local-te-names", divisible=1))
                checks.check(f"{variant}, {name}", lambda: compare(expected, show(a.longshore, mc)))
                if name == "te":
                    checks.check(f"{variant}, folder", lambda: compare(expected, show(a.longshore, hf)))
                else:
                    checks.wrong(f"{variant}, {name}, as te", lambda: compare(expected, show(a.longshore, hf)))
    return checks.summary()


if __name__ == "__main__":
    sys.exit(main())
