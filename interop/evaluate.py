#!/usr/bin/env python3
"""Evaluation against transformers: MMLU question by question, perplexity and divergence.

    evaluate.py [--quick] [--full] [--longshore PATH] [--work DIR]

Data, prompts, token windows and scores are computed here once more, from the definitions, over transformers in float32 and on whole
sequences; nothing is taken from Longshore but what it reports. Per model and style:

  mmlu    every prompt has the same SHA-256; the four logits agree; every choice is the same, but where the two best logits are closer
          than 1e-4: such differences are counted; accuracies and averages follow from the choices
  reuse   with what prompts share computed once and with everything computed anew the lines are the same, byte by byte
  ppl     perplexities under three windowings are within 1e-5
  kl      both divergences of two models and their agreement

All 14,042 questions go through one small model (--full: through the bundled model too), a fraction through the others. Runs that are wrong on
purpose must be seen. Without the published questions (LONGSHORE_DATA) the project's own take their place, and the run says so.
One line per check, then `N passed, N failed`; exit status 0 if nothing failed. Runs in the environment of setup.sh.
"""
import collections
import gzip
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
BUNDLED = os.path.join(ROOT, "models", "nemotron-h-10m")
OWN = os.path.join(ROOT, "crates", "longshore-eval", "data")
LETTERS = "ABCD"
CLOSE = 1e-4        # logits closer than this may change places
BATCH = 8192        # tokens of prompts of one length at a time

import checking

if __name__ == "__main__":
    checking.enter_environment()

import torch
from transformers import AutoTokenizer

import logits_models
import logits_reference as reference
from checking import Failed


# ---- MMLU, from its definitions
def rows_of(folder, split):
    path = os.path.join(folder, f"mmlu_{split}.jsonl")
    opened = open(path, encoding="utf-8") if os.path.exists(path) else gzip.open(path + ".gz", "rt", encoding="utf-8")
    with opened as lines:
        return [json.loads(line) for line in lines]


def block(style, row):
    question = row["question"].strip() if style == "lm-eval" else row["question"]
    return question + "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=True))


def prompt(style, shots, dev, row):
    text = f"The following are multiple choice questions (with answers) about {row['subject'].replace('_', ' ')}.\n\n"
    for example in [r for r in dev if r["subject"] == row["subject"]][:shots]:
        line_end = "" if style == "modelopt-exact" else "\n"
        text += f"{block(style, example)}{line_end}Answer: {LETTERS[example['answer']]}\n\n"
    return text + block(style, row) + "\nAnswer:"


def chosen_rows(test, fraction):
    """(row, its number in its subject) while that is below fraction * rows of the subject."""
    counts, seen, out = collections.Counter(r["subject"] for r in test), collections.Counter(), []
    for row in test:
        index = seen[row["subject"]]
        seen[row["subject"]] += 1
        if index < fraction * counts[row["subject"]]:
            out.append((row, index))
    return out


def last_logits(model, prompts, wanted):
    """Logits of `wanted` tokens after each prompt; prompts of one length go together, so that none is padded."""
    by_length, out = collections.defaultdict(list), [None] * len(prompts)
    for i, ids in enumerate(prompts):
        by_length[len(ids)].append(i)
    for length, members in sorted(by_length.items()):
        step = max(1, BATCH // length)
        for at in range(0, len(members), step):
            group = members[at:at + step]
            ids = torch.tensor([prompts[i] for i in group])
            with torch.no_grad():
                logits = model(ids, use_cache=False, logits_to_keep=1).logits[:, -1]
            for i, row in zip(group, logits[:, wanted]):
                out[i] = row.tolist()
    return out


# ---- perplexity and divergence
def windows(tokens, kind, ctx):
    """(ids, first scored position) of each window: of side-by-side windows all but the first token, of strided ones what no window
    before has scored, of llama.cpp's the second half."""
    if kind == "whole":
        return [(tokens[i:i + ctx], 1) for i in range(0, len(tokens) - ctx + 1, ctx)]
    if kind == "llama.cpp":
        return [(tokens[i:i + ctx], ctx // 2) for i in range(0, len(tokens) - ctx + 1, ctx)]
    found, end = [], 0
    for begin in range(0, len(tokens), ctx // 2):
        last = min(begin + ctx, len(tokens))
        found.append((tokens[begin:last], max(end - begin, 1)))
        end = last
        if last == len(tokens):
            return found
    return found


def log_probs(model, ids):
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids]), use_cache=False).logits[0].double(), -1)


class Checks(checking.Checks):
    def __init__(self, a, work):
        super().__init__()
        self.a, self.work = a, work
        data = os.path.join(os.environ.get("LONGSHORE_DATA", os.path.join(os.path.dirname(ROOT), "shared")), "data")
        published = os.path.join(data, "mmlu")
        self.has_published = os.path.exists(os.path.join(published, "mmlu_test.jsonl.gz"))
        self.data = published if self.has_published else OWN
        self.dev, self.test = rows_of(self.data, "dev"), rows_of(self.data, "test")
        text = os.path.join(data, "text", "wikitext-2-raw-test.txt.gz")
        self.text = gzip.open(text, "rt", encoding="utf-8").read() if os.path.exists(text) else open(os.path.join(ROOT, "README.md")).read()

    def longshore(self, *argv):
        """The JSON that it prints."""
        argv = ["eval", *map(str, argv), "--precision", "f32", "--json", "--quiet"]
        r = subprocess.run([self.a.longshore, *argv], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if r.returncode:
            raise RuntimeError(f"`longshore {' '.join(argv)[:200]}` ended with {r.returncode}: {r.stderr.strip()[-300:]}")
        return json.loads(r.stdout)

    # ---- models
    def model(self, base):
        """A tiny random model with the bundled model's tokenizer, or that model."""
        if base == "bundled":
            return BUNDLED
        name = f"{base}-4096"
        out = os.path.join(self.work, name)
        if not os.path.exists(out):
            logits_models.Model(name, base, dict(vocab_size=4096)).make(self.work)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(os.path.join(BUNDLED, name), out)
        return out

    def clamp(self, folder, wanted):
        """The flag for the lower bound of time steps that transformers has, of models that have time steps."""
        config = json.load(open(os.path.join(folder, "config.json")))
        return ["--dt-min", "config"] if wanted and "time_step_min" in config else []

    # ---- MMLU
    def mmlu(self, base, style, shots, fraction, **options):
        folder, rows = self.model(base), chosen_rows(self.test, fraction)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        texts = [prompt(style, shots, self.dev, row) for row, _ in rows]
        wanted = [tokenizer.encode(f" {letter}", add_special_tokens=False)[-1] for letter in LETTERS]
        theirs = last_logits(reference.load(folder, torch.float32), [tokenizer.encode(text) for text in texts], wanted)
        ours, scores = self.lines(folder, style, shots, fraction, **options)
        return self.same(rows, texts, theirs, ours, scores)

    def lines(self, folder, style, shots, fraction, *more, clamp=True):
        """What Longshore says of each question, and its scores."""
        out = os.path.join(self.work, "questions.jsonl")
        said = self.longshore("mmlu", folder, "--data", self.data, "--style", style, "--few-shots", shots, "--fraction", fraction,
                              *self.clamp(folder, clamp), "--per-question", out, *more)
        with open(out) as f:
            return [json.loads(line) for line in f], said["scores"]

    def same(self, rows, texts, theirs, ours, scores):
        if len(ours) != len(rows):
            raise Failed(f"{len(ours)} questions, expected {len(rows)}")
        worst, far, close, used, right, wrong = 0.0, 0, 0, collections.Counter(), collections.Counter(), []
        for (row, index), text, want, got in zip(rows, texts, theirs, ours):
            where = f"{row['subject']} {index}"
            if [got["subject"], got["index"], got["answer"]] != [row["subject"], index, LETTERS[row["answer"]]]:
                raise Failed(f"{where}: found {got}")
            if got["prompt_hash"] != hashlib.sha256(text.encode()).hexdigest():
                raise Failed(f"{where}: another prompt")
            off = max(abs(a - b) for a, b in zip(got["logits"], want, strict=True))
            worst, far = max(worst, off), far + (not off <= CLOSE)
            choice, (second, first) = LETTERS[want.index(max(want))], sorted(want)[-2:]
            if choice != got["choice"]:
                close += first - second < CLOSE
                wrong += [] if first - second < CLOSE else [f"{where}: {got['choice']} instead of {choice} by {first - second:.1e}"]
            used[got["choice"]] += 1
            right[row["subject"]] += got["choice"] == got["answer"]
        # Where two experts' scores are a rounding apart, a token takes another way.
        if far * 1000 > len(rows):
            raise Failed(f"logits of {far} questions differ by up to {worst:.1e}")
        if wrong:
            raise Failed(f"{len(wrong)} other choices: {wrong[0]}; logits differ by {worst:.1e}")
        counts = collections.Counter(row["subject"] for row, _ in rows)
        micro = sum(right.values()) / len(rows)
        macro = sum(right[s] / n for s, n in counts.items()) / len(counts)
        for name, a, b in (("micro", scores["micro"], micro), ("macro", scores["macro_average"], macro)):
            if not math.isclose(a, b, rel_tol=1e-12):
                raise Failed(f"the {name} average is {a}, expected {b}")
        letters = " ".join(f"{letter} {used[letter]}" for letter in LETTERS)
        return f"{len(rows)} questions, {close} close calls; logits {worst:.1e}, {far} beyond {CLOSE:.0e}; accuracy {micro:.4f}; chose {letters}"

    def reuse(self, base, style, shots, fraction):
        folder = self.model(base)
        (a, _), (b, _) = (self.lines(folder, style, shots, fraction, *more) for more in ((), ("--no-prefix-reuse", "--batch-tokens", "100")))
        if a != b:
            raise Failed(f"{sum(x != y for x, y in zip(a, b))} of {len(a)} lines differ")
        return f"{len(a)} lines the same"

    # ---- perplexity, divergence
    def text_file(self, characters):
        path = os.path.join(self.work, "text.txt")
        with open(path, "w", encoding="utf-8") as f:
            f.write(self.text[:characters])
        return path

    def perplexity(self, base, kind, ctx, characters, clamp=True):
        folder, text = self.model(base), self.text_file(characters)
        tokenizer, model = AutoTokenizer.from_pretrained(folder), reference.load(folder, torch.float32)
        tokens, begin = tokenizer.encode(self.text[:characters]), tokenizer.encode("")
        total = count = 0
        for ids, first in windows(tokens, kind, ctx):
            if kind == "llama.cpp" and begin:
                ids = [begin[0], *ids[1:]]
            lp = log_probs(model, ids)
            # llama.cpp scores what the positions from the middle on say, so one token later.
            scored = range(first + (kind == "llama.cpp"), len(ids))
            total -= sum(float(lp[i - 1, ids[i]]) for i in scored)
            count += len(scored)
        how = {"whole": [], "strided": ["--stride", ctx // 2], "llama.cpp": ["--llama-cpp"]}[kind]
        found = self.longshore("ppl", folder, "--data", text, "--ctx", ctx, *how, *self.clamp(folder, clamp))["figures"]
        want = math.exp(total / count)
        if found["tokens"] != count:
            raise Failed(f"{found['tokens']} tokens are scored, expected {count}")
        off = abs(found["perplexity"] / want - 1)
        if not off <= 1e-5:
            raise Failed(f"{found['perplexity']:.6f}, expected {want:.6f}")
        return f"{count} tokens: {found['perplexity']:.6f}, off by {off:.1e}"

    def divergence(self, base, ctx, characters):
        a = self.model(base)
        b = os.path.join(self.work, "changed")
        shutil.rmtree(b, ignore_errors=True)
        logits_models.changed(a, b)
        tokenizer = AutoTokenizer.from_pretrained(a)
        tokens = tokenizer.encode(self.text[:characters])
        models = [reference.load(folder, torch.float32) for folder in (a, b)]
        forward = backward = same = count = 0
        for ids, _ in windows(tokens, "whole", ctx):
            p, q = (log_probs(model, ids)[:-1] for model in models)
            forward += float((p.exp() * (p - q)).sum())
            backward += float((q.exp() * (q - p)).sum())
            same += int((p.argmax(-1) == q.argmax(-1)).sum())
            count += len(p)
        found = self.longshore("kl", a, b, "--data", self.text_file(characters), "--ctx", ctx, "--dt-min", "config")["summary"]
        for name, want in (("kl", forward / count), ("reverse_kl", backward / count)):
            if not math.isclose(found[name]["mean"], want, rel_tol=1e-3, abs_tol=1e-9):
                raise Failed(f"{name} is {found[name]['mean']:.6e}, expected {want:.6e}")
        if found["positions"] != count or abs(found["same_top"]["mean"] - same / count) > 2 / count:
            raise Failed(f"{found['same_top']['mean']} of {found['positions']} agree, expected {same / count} of {count}")
        return f"{count} positions: {forward / count:.3e} and {backward / count:.3e} nats, {same / count:.4f} agree"

    def run(self):
        torch.set_num_threads(1)        # for work this small, more are slower
        if not self.has_published:
            print(f"the published MMLU is not at hand (LONGSHORE_DATA): {len(self.test)} questions of the project's own take its place")
        some = (0.002 if self.a.quick else 0.02) if self.has_published else 1
        all_of = (0.02 if self.a.quick else 1) if self.has_published else 1
        mmlu = lambda name, *args, **kw: self.check(f"mmlu    {name}", lambda: self.mmlu(*args, **kw))
        mmlu("dense, lm-eval, all questions", "nemotron_h_dense", "lm-eval", 0, all_of)
        mmlu("moe, modelopt", "nemotron_h_moe", "modelopt", 0, some)
        mmlu("moe, lm-eval, 5 shots", "nemotron_h_moe", "lm-eval", 5, some / 4)
        mmlu("dense, modelopt-exact, 5 shots", "nemotron_h_dense", "modelopt-exact", 5, some / 4)
        mmlu("llama, lm-eval", "llama", "lm-eval", 0, some)
        mmlu("llama, tied, modelopt, 5 shots", "llama_tied", "modelopt", 5, some / 4)
        mmlu("bundled, lm-eval", "bundled", "lm-eval", 0, all_of if self.a.full else some)
        mmlu("bundled, lm-eval, 5 shots", "bundled", "lm-eval", 5, some / 4)
        self.check("reuse   moe, lm-eval, 5 shots", self.reuse, "nemotron_h_moe", "lm-eval", 5, some)
        self.check("reuse   bundled, modelopt", self.reuse, "bundled", "modelopt", 0, some)
        for base, characters in (("nemotron_h_moe", 20_000), ("llama", 20_000), ("bundled", 60_000)):
            for kind in ("whole", "strided", "llama.cpp"):
                self.check(f"ppl     {base}, {kind}", self.perplexity, base, kind, 256, characters)
        self.check("kl      moe", self.divergence, "nemotron_h_moe", 256, 20_000)
        self.wrong("another style", lambda: self.same(*self.crossed("nemotron_h_dense", some)))
        self.wrong("without --dt-min", lambda: self.mmlu("nemotron_h_dtclamp", "lm-eval", 0, some, clamp=False))
        return self.summary()

    def crossed(self, base, fraction):
        """What `same` gets where Longshore was asked for another style."""
        folder, rows = self.model(base), chosen_rows(self.test, fraction)
        texts = [prompt("lm-eval", 0, self.dev, row) for row, _ in rows]
        ours, scores = self.lines(folder, "modelopt", 1, fraction)
        return rows, texts, [line["logits"] for line in ours], ours, scores


if __name__ == "__main__":
    sys.exit(checking.main(
        __doc__, Checks, quick=checking.switch("a fiftieth of the questions"),
        full=checking.switch("all questions through the bundled model too: half an hour on two cores")))
