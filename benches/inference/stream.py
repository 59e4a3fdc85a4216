#!/usr/bin/env python3
"""Layer by layer over a checkpoint several times larger than the budget: peak anonymous memory and bytes read.

    stream.py --longshore PATH --model DIR [--memory 108M] [--prompts 64] [--tokens 256] [--batch-tokens 256]
              [--precision bf16]

Runs `longshore logits DIR --memory M` on random prompts and reads RssAnon of the process 200 times a second. The last line
tells whether the peak stayed within the budget plus the largest layer, and how often each byte of the weights was read.
"""
import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longshore", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--memory", default="108M")
    parser.add_argument("--batch-tokens", default="256")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--precision", default="bf16")
    return parser.parse_args()


def weights(folder):
    """Bytes of the tensors by layer; other tensors by name. The embedding's rows are read one by one."""
    sizes = {}
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".safetensors"):
            continue
        with open(os.path.join(folder, name), "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for tensor, info in header.items():
            if tensor == "__metadata__" or "embeddings" in tensor:
                continue
            layer = re.match(r"(backbone\.layers\.\d+)\.", tensor)
            key = layer.group(1) if layer else tensor
            sizes[key] = sizes.get(key, 0) + info["data_offsets"][1] - info["data_offsets"][0]
    return sizes


def watch(pid, seen):
    """Keeps the largest RssAnon in `seen`."""
    while True:
        try:
            with open(f"/proc/{pid}/status") as file:
                found = re.search(r"RssAnon:\s+(\d+) kB", file.read())
        except OSError:
            return
        if not found:
            return
        seen[0] = max(seen[0], int(found.group(1)) * 1024)
        time.sleep(0.005)


def main():
    args = arguments()
    vocab = json.load(open(os.path.join(args.model, "config.json")))["vocab_size"]
    random.seed(1)
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", delete=False) as file:
        for _ in range(args.prompts):
            file.write(json.dumps({"input_ids": [random.randrange(vocab) for _ in range(args.tokens)]}) + "\n")
    command = [args.longshore, "logits", args.model, "--prompt-file", file.name, "--memory", args.memory,
               "--precision", args.precision, "--batch-tokens", args.batch_tokens, "--json", "-q"]
    began, seen = time.time(), [0]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    watcher = threading.Thread(target=watch, args=(process.pid, seen))
    watcher.start()
    out, _ = process.communicate()
    watcher.join()
    os.unlink(file.name)
    if process.returncode:
        return process.returncode
    result, sizes = json.loads(out), weights(args.model)
    budget = int(args.memory[:-1]) * UNITS[args.memory[-1]]
    total, largest, tokens = sum(sizes.values()), max(sizes.values()), args.prompts * args.tokens
    rows = tokens * json.load(open(os.path.join(args.model, "config.json")))["hidden_size"] * 2
    took = time.time() - began
    print(f"weights {total / 1e6:.1f} MB, {total / budget:.1f} x the budget of {budget / 1e6:.1f} MB; "
          f"largest layer {largest / 1e6:.1f} MB")
    print(f"{tokens} tokens in {took:.1f} s ({tokens / took:.0f} tokens/s); activations on disk "
          f"{result['spilled_bytes'] / 1e6:.1f} MB")
    read = result["weight_bytes_read"] / total
    print(f"peak anonymous memory {seen[0] / 1e6:.1f} MB; read {read:.3f} bytes for each byte of weights "
          f"(embedding rows at most {rows / 1e6:.1f} MB of it)")
    within = seen[0] <= budget + largest and result["weight_bytes_read"] <= total * 1.01 + rows
    print("within the budget plus one layer, every weight read once" if within else "NOT within the bound")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
