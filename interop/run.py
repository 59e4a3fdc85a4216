#!/usr/bin/env python3
"""The interop check: Longshore's checkpoints through real megatron-core, and megatron-core's checkpoints through Longshore.

    run.py [--quick | --full] [--longshore PATH] [--work DIR] [--only TEXT] [--jobs N] [--table FILE] [--list]
    run.py --real-shape CONFIG.json --layers K [--work DIR] [--layouts tp1,tp2ep2]
    run.py --writer handmade                      tests this harness itself, without Longshore

Needs Python's standard library; torch and megatron-core run in the environment that setup.sh makes (once, two minutes,
5 GB). One line per check, then `N passed, N failed`; exit status 0 if nothing failed. The matrix is in matrix.py.
"""
import argparse
import contextlib
import json
import math
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

sys.dont_write_bytecode = True
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

import compare
import matrix
from checking import Failed, last_line

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)


class Server:
    """One pool.py process. `lock` is held while a request runs."""

    def __init__(self, python):
        env = dict(os.environ, PYTHONWARNINGS="ignore")
        self.process = subprocess.Popen([python, "-W", "ignore", os.path.join(HERE, "pool.py")], env=env, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def ask(self, script, argv, ranks=0):
        self.process.stdin.write(json.dumps({"script": script, "argv": [str(a) for a in argv], "ranks": ranks}) + "\n")
        self.process.stdin.flush()
        return self.reply()

    def reply(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("pool.py ended; run it by hand to see why")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Interop:
    def __init__(self, a, python, work):
        self.a, self.work, self.results, self.lock = a, work, [], threading.Lock()
        self.start, self.servers = time.time(), queue.Queue()
        started = [Server(python) for _ in range(a.jobs)]
        for s in started:
            s.reply()
            self.servers.put(s)
        self.handmade = a.writer == "handmade"
        self.families = {}      # (direction, key family) -> {"layouts": set, "variants": set, "checks": int, "failed": int}

    # ---- running things
    def megatron(self, script, argv, ranks=0):
        """The last line that the script printed; Failed with its output when its status is not 0."""
        server = self.servers.get()
        try:
            r = server.ask(script, argv, ranks)
        finally:
            self.servers.put(server)
        return last_line(r)

    def longshore(self, *argv, expect=0):
        """stdout of Longshore; Failed when its exit status is not the expected one."""
        env = {k: v for k, v in os.environ.items() if k not in matrix.SCRIPT_VARIABLES}
        r = subprocess.run([self.a.longshore, *map(str, argv)], capture_output=True, text=True, stdin=subprocess.DEVNULL, env=env)
        if r.returncode != expect:
            said = (r.stderr or r.stdout).strip()[-400:]
            raise Failed(f"`longshore {' '.join(map(str, argv))}` ended with {r.returncode}, expected {expect}: {said}")
        return r.stdout

    def check(self, name, fn, *args):
        """Runs one check and prints its line. Returns True when it passed."""
        begin, detail, ok = time.time(), "", True
        try:
            detail = fn(*args) or ""
        except Failed as e:
            ok, detail = False, str(e)
        except Exception as e:      # a broken check is a failed check
            ok, detail = False, f"{type(e).__name__}: {e}"
        with self.lock:
            self.results.append((name, ok, detail))
            print(f"{'ok    ' if ok else 'FAILED'} {name:<64} {time.time() - begin:5.1f}s  {detail}", flush=True)
        return ok

    def fail(self, why):
        raise Failed(why)

    def path(self, *parts):
        p = os.path.join(self.work, *parts)
        os.makedirs(os.path.dirname(p), exist_ok=True)
        return p

    def fresh(self, *parts):
        p = self.path(*parts)
        shutil.rmtree(p, ignore_errors=True)
        return p

    def drop(self, path):
        if not self.a.work:
            shutil.rmtree(path, ignore_errors=True)

    # ---- steps
    def source(self, v):
        """The Hugging Face folder of a variant."""
        if v.folder:
            return os.path.join(ROOT, v.folder)
        out = self.fresh("hf", v.name)
        tmp = self.fresh("hf-new", v.name)
        argv = [tmp, "--model", v.model] + (["--seed", v.seed] if v.seed else [])
        self.megatron("make_hf", argv + (["--set", *v.config] if v.config else []))
        os.rename(os.path.join(tmp, v.model), out)
        if v.edit:
            path = os.path.join(out, "config.json")
            config = json.load(open(path))
            config.update(v.edit)
            json.dump(config, open(path, "w"), indent=2)
        return out

    def convert(self, hf, ckpt, spec, options=()):
        shutil.rmtree(ckpt, ignore_errors=True)
        if self.handmade:
            r = subprocess.run([sys.executable, os.path.join(HERE, "handmade.py"), hf, ckpt, *matrix.SPECS[spec].handmade],
                               capture_output=True, text=True)
            if r.returncode:
                raise Failed(r.stderr[-300:])
        else:
            self.longshore("convert", hf, ckpt, *matrix.SPECS[spec].convert, *options)

    def load(self, ckpt, hf, spec, layout, strict, options=()):
        tp, pp, ep, etp = layout
        ranks = pp * math.lcm(tp, ep * (etp or tp))
        argv = [ckpt, "--hf", hf, *matrix.SPECS[spec].load, "--tp", tp, "--pp", pp, "--ep", ep, "--strict", strict, *options]
        said = self.megatron("load_megatron", argv + (["--etp", etp] if etp else []), ranks)
        if not said.startswith("OK"):
            raise Failed(said)
        return said

    def loads(self, v, hf, ckpt, spec, layouts, label, strict=None, options=()):
        for layout in layouts:
            name = f"load   {v.name} {spec}{label} {matrix.layout_name(layout)}"
            mode = strict or "raise_all"
            ok = self.check(name, self.load, ckpt, hf, spec, layout, mode, options)
            self.note("load", compare.keys(ckpt)[0], f"{spec} {matrix.layout_name(layout)}", v.name, ok)

    def note(self, direction, names, where, variant, ok):
        with self.lock:
            for family in {matrix.family(k) for k in names}:
                row = self.families.setdefault((direction, family), {"layouts": set(), "variants": set(), "checks": 0, "failed": 0})
                row["layouts"].add(where)
                row["variants"].add(variant)
                row["checks"] += 1
                row["failed"] += not ok

    # ---- one variant, Hugging Face -> Megatron
    def import_side(self, v, hf):
        for spec in self.pick(matrix.SPECS, "te"):
            ckpt = self.fresh("ckpt", v.name, spec)
            if not self.check(f"write  {v.name} {spec}", self.convert, hf, ckpt, spec):
                continue
            self.check(f"zip    {v.name} {spec}", self.zips, ckpt)
            self.check(f"common {v.name} {spec}", self.common, ckpt, hf)
            if not self.handmade:
                self.check(f"verify {v.name} {spec}", lambda: self.longshore("verify", ckpt) and "")
                self.check(f"verify {v.name} {spec} --against source", lambda: self.longshore("verify", ckpt, "--against", hf) and "")
                self.check(f"back   {v.name} {spec}", self.back, hf, ckpt, v, spec)
            self.loads(v, hf, ckpt, spec, matrix.load_layouts(v, self.a), "")
            if self.handmade:
                continue
            if matrix.SPECS[spec].also:
                other = matrix.SPECS[spec].also
                self.loads(v, hf, ckpt, other, [(1, 1, 1, None)], f" (written as {spec})", "assume_ok_unexpected")
            for options, layouts in [] if self.a.quick else matrix.written_otherwise(v):
                other = ckpt + "".join(options)
                if self.check(f"write  {v.name} {spec} {' '.join(options)}", self.convert, hf, other, spec, options):
                    self.loads(v, hf, other, spec, layouts, " " + "".join(options))
            self.drop(ckpt)
        if v.special and not self.handmade and not self.a.quick:
            self.specials(v, hf)

    def zips(self, ckpt):
        n, bad = compare.zip_items(ckpt)
        if bad:
            raise Failed("; ".join(bad[:3]))
        return f"{n} items"

    def common(self, ckpt, hf):
        state = json.loads(self.megatron("common_state", [os.path.join(compare.inner_folder(ckpt), "common.pt")]))
        want = matrix.stored_arguments(json.load(open(os.path.join(hf, "config.json"))), minimal=self.handmade)
        have = dict(state["args"])
        have["hybrid_layer_pattern"] = str(have.get("hybrid_layer_pattern")).split("/")[0].replace("|", "")    # without MTP and stage cuts
        bad = [f"{k} is {have.get(k)!r}, expected {v!r}" for k, v in want.items() if have.get(k) != v]
        bad += [f"{k} is absent" for k in ("checkpoint_version", "iteration", "content_metadata") if k not in state["rest"]]
        if bad:
            raise Failed("; ".join(bad[:6]))
        return f"{len(state['args'])} arguments"

    def back(self, hf, ckpt, v, spec):
        """export(convert(x)) == x, bit for bit, and `diff` agrees."""
        out = self.fresh("back", v.name, spec)
        self.longshore("export", ckpt, out)
        said = self.same(hf, out)
        for name in sorted(os.listdir(hf)):
            if name.endswith((".json", ".jinja")) and name not in ("tensors.json", "model.safetensors.index.json", "golden.json"):
                a, b = (os.path.join(d, name) for d in (hf, out))
                if not os.path.exists(b):
                    raise Failed(f"{name} did not travel with the checkpoint")
                same = open(a).read() == open(b).read() if not name.endswith(".json") else json.load(open(a)) == json.load(open(b))
                if not same:
                    raise Failed(f"{name} differs from the source")
        self.longshore("diff", hf, out)
        self.drop(out)
        return said

    def same(self, want, got, rounded=()):
        equal, lossy, bad = compare.folders(want, got, rounded)
        if bad:
            raise Failed(f"{len(bad)} differences: " + "; ".join(bad[:3]))
        return f"{equal} tensors equal bit for bit" + (f", {lossy} equal the rounded values that the reference stored" if lossy else "")

    def specials(self, v, hf):
        """Options that change what is stored, and damage that must be seen."""
        for spec, options, loaded_as, layouts in matrix.SPECIALS[v.special]:
            label = " ".join(options)
            ckpt = self.fresh("ckpt", v.name, label.replace(" ", "_"))
            if self.check(f"write  {v.name} {spec} {label}", self.convert, hf, ckpt, spec, options):
                self.loads(v, hf, ckpt, loaded_as, layouts, " " + label, "assume_ok_unexpected")
                self.check(f"back   {v.name} {spec} {label}", self.back, hf, ckpt, v, label.replace(" ", "_"))
        ckpt = self.fresh("ckpt", v.name, "damaged")
        if self.check(f"write  {v.name} te (to be damaged)", self.convert, hf, ckpt, "te"):
            self.check(f"damage {v.name} inspect --json", lambda: json.loads(self.longshore("inspect", ckpt, "--json")) and "")
            self.check(f"damage {v.name} one flipped bit is seen", self.damage, ckpt, hf)

    def damage(self, ckpt, hf):
        name, offset, length, key = max(compare.items(ckpt), key=lambda r: r[2])
        with open(os.path.join(compare.inner_folder(ckpt), name), "r+b") as f:
            f.seek(offset + length // 2)
            byte = f.read(1)[0]
            f.seek(offset + length // 2)
            f.write(bytes([byte ^ 0x10]))
        self.longshore("verify", ckpt, expect=1)
        self.longshore("verify", ckpt, "--against", hf, expect=1)
        self.longshore("diff", hf, ckpt, expect=1)
        return f"in `{key}`"

    # ---- one variant, Megatron -> Hugging Face
    def export_side(self, v, hf):
        for spec in self.pick(matrix.SAVE_SPECS, "te"):
            for layout in matrix.save_layouts(v, self.a):
                tp, pp, ep, etp = layout
                name = f"{v.name} {spec} {matrix.layout_name(layout)}"
                ckpt = self.fresh("saved", name.replace(" ", "_"))
                argv = [hf, ckpt, *matrix.SPECS[spec].load, "--tp", tp, "--pp", pp, "--ep", ep] + (["--etp", etp] if etp else [])
                argv += ["--iteration", 5] if layout in matrix.SAVED_AS_ITERATION else []
                if self.check(f"save   {name}", self.megatron, "save_megatron", argv, pp * math.lcm(tp, ep * (etp or tp))):
                    self.export(v, hf, ckpt, spec, f"{name}", matrix.ROUNDED_BY_MEGATRON, ["--base", hf])
                    if layout == (1, 1, 1, None) and not self.handmade:
                        self.export(v, hf, ckpt, spec, f"{name} without --base", matrix.ROUNDED_BY_MEGATRON,
                                    ["--vocab-size", json.load(open(os.path.join(hf, "config.json")))["vocab_size"]])
                self.drop(ckpt)
        for options in [] if self.a.quick else matrix.handmade_oddities(v):
            ckpt = self.fresh("handmade", v.name + "".join(options))
            r = subprocess.run([sys.executable, os.path.join(HERE, "handmade.py"), hf, ckpt, *options], capture_output=True, text=True)
            name = f"{v.name} handmade {' '.join(options)}"
            if r.returncode:
                self.check(f"save   {name}", self.fail, r.stderr[-300:])
            elif not self.handmade:
                self.export(v, hf, ckpt, "handmade", name, (), ["--base", hf])
            self.drop(ckpt)

    def export(self, v, hf, ckpt, spec, name, rounded, options):
        if self.handmade:           # without Longshore: the saved checkpoint itself must be right
            return self.check(f"reload {name}", self.load, ckpt, hf, spec, (1, 1, 1, None), "assume_ok_unexpected", ["--allow-lossy"])
        out = self.fresh("exported", name.replace(" ", "_"))

        def run():
            self.longshore("export", ckpt, out, *options)
            return self.same(hf, out, rounded)
        ok = self.check(f"export {name}", run)
        self.note("export", compare.keys(ckpt)[0], name[len(v.name) + 1:], v.name, ok)
        self.drop(out)

    # ---- all
    def pick(self, choices, quick):
        return [quick] if self.a.quick else list(choices)

    def variant(self, v):
        try:
            hf = self.source(v)
        except Failed as e:
            self.check(f"source {v.name}", self.fail, str(e))
            return
        self.import_side(v, hf)
        self.export_side(v, hf)

    def run(self):
        chosen = [v for v in matrix.VARIANTS if (self.a.only or "") in v.name and (v.quick or not self.a.quick)]
        with ThreadPoolExecutor(self.a.jobs) as pool:
            for f in [pool.submit(self.variant, v) for v in chosen]:
                f.result()
        return self.summary()

    def summary(self):
        while not self.servers.empty():
            self.servers.get().close()
        failed = [r for r in self.results if not r[1]]
        print(f"\n{time.time() - self.start:.0f} s" + "".join(f"\nFAILED {name}: {why}" for name, _, why in failed))
        if self.a.table:
            with open(self.a.table, "w") as f:
                f.write(matrix.table(self.families))
        print(f"{len(self.results) - len(failed)} passed, {len(failed)} failed", flush=True)
        return 1 if failed or not self.results else 0

    # ---- real shapes, by hand
    def real_shape(self):
        """A released config cut to a few layers: every step timed, with peak memory. Several gigabytes."""
        hf, ckpt, out = self.fresh("real-hf"), self.fresh("real-ckpt"), self.fresh("real-out")
        self.check("source", self.megatron, "make_hf", [hf, "--config", os.path.abspath(self.a.real_shape), "--layers", self.a.layers])
        for name, argv in (("convert", ["convert", hf, ckpt, "--tp", "2", "--ep", "2"]), ("verify", ["verify", ckpt]),
                           ("verify --against", ["verify", ckpt, "--against", hf])):
            self.check(name, self.timed, argv)
        for layout in matrix.parse_layouts(self.a.layouts):
            self.check(f"load {matrix.layout_name(layout)}", self.load, ckpt, hf, "te", layout, "raise_all")
        self.check("export", self.timed, ["export", ckpt, out])
        self.check("compare", self.same, hf, out)
        self.check("diff", self.timed, ["diff", hf, out])
        saved = self.fresh("real-saved")
        if self.check("save tp2", self.megatron, "save_megatron", [hf, saved, "--spec", "te", "--tp", 2], 2):
            shutil.rmtree(out)
            self.check("export of Megatron's tp2", self.timed, ["export", saved, out, "--base", hf])
            self.check("compare", self.same, hf, out)
        return self.summary()

    def timed(self, argv):
        start = time.time()
        p = subprocess.Popen([self.a.longshore, *map(str, argv)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        text = p.stdout.read()
        _, status, usage = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(status)
        if p.returncode:
            raise Failed(f"status {p.returncode}: {text.strip()[-400:]}")
        return f"{time.time() - start:.1f} s, peak {usage.ru_maxrss / 1024:.0f} MiB"


def arguments():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--longshore", default=os.path.join(ROOT, "target", "release", "longshore"), help="the program to check")
    ap.add_argument("--writer", choices=("longshore", "handmade"), default="longshore")
    size = ap.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few variants, te spec, two layouts")
    size.add_argument("--full", action="store_true", help="every layout in {1,2}^4")
    ap.add_argument("--work", help="folder for the files, kept afterwards (default: a temporary one)")
    ap.add_argument("--only", help="variants whose name contains this text")
    ap.add_argument("--jobs", type=int, default=2, help="variants at a time")
    ap.add_argument("--venv", help="folder of the Python environment (default: as setup.sh says)")
    ap.add_argument("--table", help="write the table of docs/correctness.md to this file")
    ap.add_argument("--list", action="store_true", help="print the matrix and stop")
    ap.add_argument("--real-shape", metavar="CONFIG", help="a released config.json")
    ap.add_argument("--layers", type=int, default=4)
    ap.add_argument("--layouts", default="tp1,tp2ep2")
    return ap.parse_args()


def main():
    a = arguments()
    if a.list:
        print(matrix.describe(a))
        return 0
    a.longshore = os.path.abspath(a.longshore)
    if a.writer == "longshore" and not os.access(a.longshore, os.X_OK):
        sys.exit(f"no program at {a.longshore}; build it with `cargo build --release` or pass --longshore")
    setup = [os.path.join(HERE, "setup.sh")] + ([a.venv] if a.venv else [])
    python = subprocess.run(setup, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    if a.work:
        os.makedirs(a.work, exist_ok=True)
    with contextlib.nullcontext(os.path.abspath(a.work)) if a.work else tempfile.TemporaryDirectory(prefix="longshore-interop-") as work:
        interop = Interop(a, python, work)
        return interop.real_shape() if a.real_shape else interop.run()


if __name__ == "__main__":
    sys.exit(main())
