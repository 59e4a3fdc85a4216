"""What the comparisons with transformers share: the environment they run in, and checks of a line each."""
import argparse
import os
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)


class Failed(Exception):
    """A check that did not pass; the text says why."""


def last_line(reply):
    """The last line that a script of pool.py printed; Failed with the lines that say why when its status is not 0."""
    lines = reply["output"].strip().splitlines()
    if reply["status"]:
        told = [line for line in lines if any(word in line for word in ("MISMATCH", "FAIL", "Error"))] or lines
        raise Failed("; ".join(told[:4])[:600])
    return lines[-1] if lines else ""


def enter_environment():
    """Goes on in setup.sh's environment, which has torch."""
    python = subprocess.run([os.path.join(HERE, "setup.sh")], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    if os.path.realpath(sys.prefix) != os.path.realpath(os.path.dirname(os.path.dirname(python))):
        os.execv(python, [python, "-W", "ignore", *sys.argv])


class Checks:
    """Runs checks, one after the other."""
    width = 40      # of their names

    def __init__(self):
        self.results, self.start = [], time.time()

    def check(self, name, fn, *args):
        """Runs one check and prints its line."""
        begin, ok = time.time(), True
        try:
            detail = fn(*args) or ""
        except Exception as e:      # a broken check is a failed check
            ok, detail = False, str(e) if isinstance(e, Failed) else f"{type(e).__name__}: {e}"
        self.results.append((name, ok))
        print(f"{'ok    ' if ok else 'FAILED'} {name:<{self.width}} {time.time() - begin:6.1f}s  {detail}", flush=True)

    def wrong(self, name, fn, *args):
        """A check that passes where `fn` fails: what is wrong on purpose must be seen."""
        def refused():
            try:
                fn(*args)
            except Failed as e:
                return f"seen: {str(e)[:120]}"
            raise Failed("a wrong run was not seen")
        self.check(f"wrong   {name}", refused)

    def summary(self):
        """Says what failed; the exit status."""
        failed = [name for name, ok in self.results if not ok]
        print(f"\n{time.time() - self.start:.0f} s" + "".join(f"\nFAILED {name}" for name in failed))
        print(f"{len(self.results) - len(failed)} passed, {len(failed)} failed", flush=True)
        return 1 if failed or not self.results else 0


def main(doc, checks, **options):
    """Runs `checks(arguments, folder)`; the exit status. `options` are further arguments: a name and what argparse takes."""
    ap = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--longshore", default=os.path.join(ROOT, "target", "release", "longshore"), help="the program to check")
    for name, about in options.items():
        ap.add_argument(f"--{name}", **about)
    ap.add_argument("--work", help="folder for the files, kept afterwards (default: a temporary one)")
    a = ap.parse_args()
    a.longshore = os.path.abspath(a.longshore)
    if not os.access(a.longshore, os.X_OK):
        sys.exit(f"no program at {a.longshore}; build it with `cargo build --release` or pass --longshore")
    if a.work:
        os.makedirs(a.work, exist_ok=True)
        return checks(a, os.path.abspath(a.work)).run()
    with tempfile.TemporaryDirectory(prefix="longshore-check-") as work:
        return checks(a, work).run()


def switch(about):
    """An option that is there or not."""
    return {"action": "store_true", "help": about}
