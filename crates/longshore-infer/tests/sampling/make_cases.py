"""Writes cases.json and draws.json: which tokens transformers' logits processors leave, and a sequence of draws.

Run with transformers 5.23 and torch 2.11:  python make_cases.py
"""

import json
import math
import pathlib
import random
import struct

import torch
from transformers.generation import logits_process as lp

HERE = pathlib.Path(__file__).parent


def case(rng, options):
    vocab = rng.choice([5, 17, 40])
    logits = [round(rng.gauss(0, 3), 2) for _ in range(vocab)]
    if rng.random() < 0.4:  # ties
        for _ in range(vocab // 2):
            logits[rng.randrange(vocab)] = logits[rng.randrange(vocab)]
    if rng.random() < 0.2:
        logits[rng.randrange(vocab)] = -math.inf
    history = [rng.randrange(vocab) for _ in range(rng.randrange(8))]
    scores = torch.tensor([logits], dtype=torch.float32)
    ids = torch.tensor([history], dtype=torch.long)
    processors = []
    if options["repetition_penalty"] != 1.0:
        processors.append(lp.RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    if options["temperature"] != 1.0:
        processors.append(lp.TemperatureLogitsWarper(options["temperature"]))
    if options["top_k"]:
        processors.append(lp.TopKLogitsWarper(options["top_k"]))
    if options["top_p"] < 1.0:
        processors.append(lp.TopPLogitsWarper(options["top_p"]))
    if options["min_p"]:
        processors.append(lp.MinPLogitsWarper(options["min_p"]))
    for processor in processors:
        scores = processor(ids, scores)
    kept = [i for i, x in enumerate(scores[0].tolist()) if x > -math.inf]
    # An infinity is null in JSON.
    finite = [None if math.isinf(x) else x for x in torch.tensor(logits).tolist()]
    return {
        "logits": finite,
        "history": history,
        **options,
        "kept": kept,
        "scores": [scores[0, i].item() for i in kept],
    }


def all_cases():
    rng = random.Random(1)
    cases = []
    for index in range(120):
        options = {
            "temperature": rng.choice([1.0, 0.5, 0.7, 2.0]),
            "top_k": rng.choice([0, 0, 1, 3, 10, 100]),
            "top_p": rng.choice([1.0, 0.9, 0.5, 0.2, 0.95, 0.0]),
            "min_p": rng.choice([0.0, 0.0, 0.05, 0.3, 1.0]),
            "repetition_penalty": rng.choice([1.0, 1.0, 1.3, 0.7]),
        }
        if index % 3 == 0:  # one at a time, too
            keep = rng.choice(["top_k", "top_p", "min_p", "repetition_penalty"])
            off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
            options.update({name: value for name, value in off.items() if name != keep})
        cases.append(case(rng, options))
    return cases


def chacha20_block(key, counter):
    """RFC 8439, written from the standard's pseudo-code; the nonce is zero."""

    def quarter(s, a, b, c, d):
        def step(x, y, z, n):
            s[x] = (s[x] + s[y]) & 0xFFFFFFFF
            s[z] ^= s[x]
            s[z] = ((s[z] << n) | (s[z] >> (32 - n))) & 0xFFFFFFFF

        step(a, b, d, 16)
        step(c, d, b, 12)
        step(a, b, d, 8)
        step(c, d, b, 7)

    start = list(struct.unpack("<4I", b"expand 32-byte k")) + list(struct.unpack("<8I", key)) + [counter, 0, 0, 0]
    s = list(start)
    for _ in range(10):
        quarter(s, 0, 4, 8, 12)
        quarter(s, 1, 5, 9, 13)
        quarter(s, 2, 6, 10, 14)
        quarter(s, 3, 7, 11, 15)
        quarter(s, 0, 5, 10, 15)
        quarter(s, 1, 6, 11, 12)
        quarter(s, 2, 7, 8, 13)
        quarter(s, 3, 4, 9, 14)
    return struct.pack("<16I", *((x + y) & 0xFFFFFFFF for x, y in zip(s, start)))


def draws(seed, n):
    logits = [((i * 37) % 50) / 10 for i in range(50)]
    weights = [math.exp(x - max(logits)) for x in logits]
    stream = b"".join(chacha20_block(seed.to_bytes(8, "little") + bytes(24), counter) for counter in range(n))
    ids = []
    for i in range(n):
        unit = (struct.unpack_from("<Q", stream, 8 * i)[0] >> 11) / 2**53
        wanted, total = unit * sum(weights), 0.0
        for index, weight in enumerate(weights):
            total += weight
            if total > wanted:
                ids.append(index)
                break
    return ids


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(c) for c in all_cases())
    (HERE / "cases.json").write_text(f"[\n{lines}\n]\n")
    (HERE / "draws.json").write_text(json.dumps({"ids": draws(20_261_122, 12)}) + "\n")
