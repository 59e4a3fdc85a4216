#!/usr/bin/env python3
"""What transformers computes with the bundled model, in float32: writes reference.json beside this file.

    make_reference.py          (transformers 5.23, torch 2.11; attention eager)

Per prompt: token ids, the 32 greedy tokens after it (prefill, then steps through the cache), and for every position of the
prompt the five largest logits with their ids. transformers clamps the time steps of prompts to `time_step_min`.
"""
import json
import pathlib

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = pathlib.Path(__file__).parent
MODEL = HERE / "../../../../models/nemotron-h-10m"
TEXTS = ["It was a bright cold day in April", "“My dear Watson,” said he, “the", "ACT I. SCENE II.\n"]


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager").eval()
    prompts = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        out = model(torch.tensor([ids]), use_cache=True)
        values, indices = out.logits[0].topk(5)
        tops = [[[int(i), float(v)] for i, v in zip(*row)] for row in zip(indices, values)]
        greedy, cache, logits = [], out.past_key_values, out.logits[0, -1]
        while len(greedy) < 32:
            greedy.append(int(logits.argmax()))
            step = model(torch.tensor([greedy[-1:]]), past_key_values=cache, use_cache=True)
            cache, logits = step.past_key_values, step.logits[0, -1]
        prompts.append({"text": text, "ids": ids, "tops": tops, "greedy": greedy})
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    with open(HERE / "reference.json", "w") as file:
        json.dump({"versions": versions, "prompts": prompts}, file, ensure_ascii=False)
        file.write("\n")


if __name__ == "__main__":
    main()
