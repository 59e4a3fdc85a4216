#!/usr/bin/env python3
"""Recipes against NVIDIA ModelOpt's own loader: what a name or a file stands for, entry by entry.

    recipes.py [--example PATH]

Every recipe for PTQ that the installed modelopt_recipes has is loaded by `load_recipe`; its config, the modes that mtq.quantize
would record and whether it needs calibration must be what Longshore makes of it:

  file      of the same file, with its imports
  built in  of its name alone, for those that are built in
  refused   the others' names are refused with a reason, and those of recipes that are not for PTQ
  wrong     another recipe's config and a changed number: each must be seen

One line per check; exit status 1 if one failed.
"""
import argparse
import ast
import contextlib
import io
import os
import subprocess
import sys

import checking

if __name__ == "__main__":
    checking.enter_environment()

import modelopt_recipes
import yaml
from modelopt.recipe import load_recipe
from modelopt.torch.quantization.config import need_calibration
from modelopt.torch.quantization.mode import CalibrateModeRegistry, get_modelike_from_algo_cfg

from checking import Failed

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PACKAGE = os.path.realpath(list(modelopt_recipes.__path__)[0])


def kinds():
    """Name without ending -> recipe_type, of every recipe of the package."""
    out = {}
    for folder, _, files in os.walk(PACKAGE):
        for f in files:
            stem, ending = os.path.splitext(os.path.join(folder, f))
            if ending in (".yaml", ".yml"):
                with open(stem + ending) as file:
                    content = list(yaml.safe_load_all(file))[-1]
                if isinstance(content, dict) and "recipe_type" in content.get("metadata", {}):
                    out[os.path.relpath(stem, PACKAGE)] = content["metadata"]["recipe_type"]
    return dict(sorted(out.items()))


def theirs(name):
    with contextlib.redirect_stdout(io.StringIO()):
        config = load_recipe(name).quantize
    modes = [(mode, CalibrateModeRegistry[mode].config_class(**cfg).model_dump()) for mode, cfg in get_modelike_from_algo_cfg(config.algorithm)]
    return config.model_dump(), modes, need_calibration(config)


def compare(ours, theirs):
    """Values, types and the order of keys."""
    if isinstance(ours, str):
        raise Failed(ours)
    for what, a, b in zip(("quant_cfg and algorithm", "modes", "need_calibration"), ours, theirs, strict=True):
        if repr(a) != repr(b):
            pairs = list(zip(a["quant_cfg"], b["quant_cfg"])) if isinstance(a, dict) else []
            first = next(((x, y) for x, y in pairs if repr(x) != repr(y)), (a, b))
            raise Failed(f"{what}: {str(first[0])[:300]} is not {str(first[1])[:300]}")
    return f"{len(ours[0]['quant_cfg'])} entries"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--example", default=os.path.join(ROOT, "target", "release", "examples", "recipe_python"), help="the program to check")
    program = os.path.abspath(ap.parse_args().example)
    if not os.access(program, os.X_OK):
        sys.exit(f"no program at {program}; build it with `cargo build --release --package longshore-quant --example recipe_python`")

    def longshore(names):
        """One value for each name, by a run in a folder where no recipe lies."""
        r = subprocess.run([program], input="".join(n + "\n" for n in names), capture_output=True, text=True, check=True, cwd="/")
        return [ast.literal_eval(line) for line in r.stdout.splitlines()]
    built_in, recipes = longshore([]), kinds()
    ptq = [name for name, kind in recipes.items() if kind == "ptq"]
    reference = {name: theirs(name) for name in ptq}
    checks = checking.Checks()
    checks.width = 100

    files = dict(zip(ptq, longshore(os.path.join(PACKAGE, name) for name in ptq), strict=True))
    for name in ptq:
        checks.check(f"file      {name}", compare, files[name], reference[name])
    names = [(name, alias) for name, older in built_in for alias in (name, *older)]
    ours = dict(zip((alias for _, alias in names), longshore(alias for _, alias in names), strict=True))
    for name, alias in names:
        checks.check(f"built in  {alias}", lambda n=name, a=alias: compare(ours[a], reference[n]))

    current = [name for name, _ in built_in]
    others = [name for name in recipes if name not in current]

    def refused(name, said):
        if not isinstance(said, str) or f"`{name}`: it " not in said:
            raise Failed(f"not refused with a reason: {str(said)[:200]}")
        return said.split(": ", 1)[1]
    for name, said in zip(others, longshore(others), strict=True):
        checks.check(f"refused   {name}", refused, name, said)

    def complete():
        missing = [n for n in ptq if (n.startswith("general/ptq/") or "Nemotron-3" in n) and n not in current]
        if missing or not current:
            raise Failed(f"not built in: {missing}")
        return f"{len(current)} of {len(ptq)} recipes for PTQ"
    checks.check("all general recipes and those of Nemotron-3 are built in", complete)

    one, other = "general/ptq/nvfp4_default-kv_fp8", "general/ptq/nvfp4_default-kv_fp8_cast"
    checks.wrong("keys and values of another recipe", compare, ours[one], reference[other])
    changed = ast.literal_eval(repr(ours[one]).replace("'effective_bits': 4.5", "'effective_bits': 4", 1))
    checks.wrong("one number of one entry", compare, changed, reference[one])
    checks.wrong("a recipe that is built in is refused", refused, one, ours[one])
    return checks.summary()


if __name__ == "__main__":
    sys.exit(main())
