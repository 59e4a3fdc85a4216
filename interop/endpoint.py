#!/usr/bin/env python3
"""`longshore eval --endpoint` against a server over transformers: the same answers as the engine's.

    endpoint.py [--longshore PATH] [--questions N]

The bundled model runs in `endpoint_server.py`, in float32, and in the engine, in float32.

  all      with every token named: the same choices, and log-probabilities that differ as the logits do
  top20    with the 20 most likely tokens: the letters that are there have the same, the choice is the engine's or none
  lowered  a server that allows 5 gets asked for 5
  text, ids  the perplexity of a text and of token ids is the engine's within 1e-5
  least    a server that refuses to add no token is asked for one
  seen     with a wrong model the choices differ

One line per check, then `N passed, N failed`; exit status 0 if nothing failed. Runs in the environment of setup.sh, which it makes
where there is none.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
MODEL = os.path.join(ROOT, "models", "nemotron-h-10m")

import checking

if __name__ == "__main__":
    checking.enter_environment()

import torch

from checking import Failed
from endpoint_server import Engine, serve


def require(ok, text):
    if not ok:
        raise Failed(text)


class Checks:
    def __init__(self, longshore, questions, work):
        self.longshore, self.questions, self.work, self.results = longshore, questions, work, []
        self.engine = Engine(MODEL)
        server = serve(self.engine, "bundled")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}/v1"

    def check(self, name, fn):
        try:
            ok, detail = True, fn() or ""
        except Exception as e:      # a broken check is a failed check
            ok, detail = False, str(e) if isinstance(e, Failed) else f"{type(e).__name__}: {e}"
        self.results.append(ok)
        print(f"{'ok    ' if ok else 'FAILED'} {name:<10} {detail}", flush=True)

    def run(self, *args):
        done = subprocess.run([self.longshore, "eval", *args, "--json", "-q", "--scratch", self.work], capture_output=True, text=True)
        require(done.returncode == 0, done.stderr.strip() or done.stdout)
        return json.loads(done.stdout)

    def mmlu(self, *args):
        """The report and the line of every question."""
        lines = os.path.join(self.work, "lines.jsonl")
        report = self.run("mmlu", "--data", "bundled", "--few-shots", "1", "--limit", str(self.questions), "--per-question", lines, *args)
        return report, [json.loads(line) for line in open(lines)]

    def local(self):
        self.local_report, self.local_lines = self.mmlu(MODEL, "--precision", "f32")

    def served(self, top, max_logprobs):
        self.engine.max_logprobs = max_logprobs
        return self.mmlu("--endpoint", self.url, "--top-logprobs", str(top))

    def all_tokens(self):
        vocab = self.engine.model.config.vocab_size
        report, lines = self.served(vocab, vocab)
        worst = 0.0
        for ours, theirs in zip(self.local_lines, lines, strict=True):
            require(ours["prompt_hash"] == theirs["prompt_hash"], "other prompts")
            require(ours["choice"] == theirs["choice"], f"{ours['subject']} {ours['index']}: {ours['choice']}, {theirs['choice']}")
            gaps = [x - y for x, y in zip(ours["logits"], theirs["logprobs"])]
            worst = max(worst, max(gaps) - min(gaps))
        require(worst < 1e-4, f"log-probabilities differ by {worst:.1e} more or less than logits do")
        require(report["scores"]["all"] == self.local_report["scores"]["all"], "other scores")
        require(report["endpoint"]["absent_letters"] == 0, "letters are absent")
        score = report["scores"]["all"]
        return f"{len(lines)} questions, {score['correct']} right in both, differences within {worst:.1e}"

    def most_likely(self, top=20, max_logprobs=20):
        report, lines = self.served(top, max_logprobs)
        present = same = 0
        for ours, theirs in zip(self.local_lines, lines, strict=True):
            there = [x for x in theirs["logprobs"] if x is not None]
            present, same = present + len(there), same + (ours["choice"] == theirs["choice"])
            require(theirs["choice"] == (ours["choice"] if there else None), f"{ours['subject']} {ours['index']} is chosen differently")
        told = report["endpoint"]
        require(told["absent_letters"] == 4 * len(lines) - present, f"{told} and {present} letters present")
        require(told["questions_without_letter"] == len(lines) - same, f"{told} and {same} of {len(lines)} choices")
        require(told["top_logprobs"] == max_logprobs, f"{told['top_logprobs']} tokens were asked for")
        return f"{present} of {4 * len(lines)} letters, {same} of {len(lines)} choices, all the engine's"

    def perplexity(self, data, least_tokens=0):
        self.engine.least_tokens = least_tokens
        args = ["ppl", "--data", data, "--ctx", "128", "--limit", "8"]
        ours = self.run(*args, MODEL, "--precision", "f32")["figures"]
        report = self.run(*args, "--endpoint", self.url, "--tokenizer", MODEL)
        theirs, off = report["figures"], abs(report["figures"]["nll"] - ours["nll"])
        self.engine.least_tokens = 0
        require(theirs["tokens"] == ours["tokens"], "other tokens")
        require(off < 1e-5 and abs(theirs["perplexity"] / ours["perplexity"] - 1) < 1e-5, f"{ours} {theirs}")
        require(theirs.get("bits_per_byte") is None or abs(theirs["bits_per_byte"] - ours["bits_per_byte"]) < 1e-5, "other bytes")
        require(report["endpoint"]["new_tokens"] == least_tokens, f"{report['endpoint']}")
        return f"{ours['tokens']} tokens, perplexity {ours['perplexity']:.4f}, nats a token differ by {off:.1e}"

    def seen(self):
        """A model with two columns of its head exchanged must not pass."""
        head = self.engine.model.lm_head.weight
        a, b = (self.engine.tokenizer(f" {letter}", add_special_tokens=False)["input_ids"][-1] for letter in "AB")
        with torch.no_grad():
            head[[a, b]] = head[[b, a]]
        try:
            self.all_tokens()
        except Failed as e:
            return str(e)
        finally:
            with torch.no_grad():
                head[[a, b]] = head[[b, a]]
        raise Failed("exchanged letters were not seen")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--longshore", default=os.path.join(ROOT, "target", "release", "longshore"))
    p.add_argument("--questions", type=int, default=60)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as work:
        c = Checks(a.longshore, a.questions, work)
        c.local()
        text, ids = os.path.join(ROOT, "docs", "engine.md"), os.path.join(work, "ids.jsonl")
        with open(ids, "w") as f:
            for begin in (0, 3000):
                found = c.engine.tokenizer(open(text).read()[begin:begin + 900])["input_ids"]
                f.write(json.dumps({"input_ids": found}) + "\n")
        c.check("all", c.all_tokens)
        c.check("top20", c.most_likely)
        c.check("lowered", lambda: c.most_likely(top=20, max_logprobs=5))
        c.check("text", lambda: c.perplexity(text))
        c.check("ids", lambda: c.perplexity(ids))
        c.check("least", lambda: c.perplexity(ids, least_tokens=1))
        c.check("seen", c.seen)
        c.check("left", lambda: require(not [n for n in os.listdir(work) if "answers" in n], "saved answers are left"))
    failed = c.results.count(False)
    print(f"{len(c.results) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
