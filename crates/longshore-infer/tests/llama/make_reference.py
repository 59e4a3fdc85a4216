#!/usr/bin/env python3
"""What transformers computes with a small Llama model, in float32: writes reference.json beside this file.

    make_reference.py          (transformers 5.23, torch 2.11; attention eager)

The model is config.json with the weights of a formula, which folder.rs repeats. Per prompt: token ids, the 24 greedy tokens after
it (prefill, then steps through the cache), and for every position the five largest logits with their ids. Also the frequencies of
the rotary embedding for some configs, as the bits of float32.
"""
import json
import pathlib
import shutil
import tempfile

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

HERE = pathlib.Path(__file__).parent
PROMPTS = [[1, 17, 5, 39], [(7 * i * i + 3 * i) % 40 for i in range(100)]]
LLAMA3 = dict(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0)
FREQUENCIES = [
    (16, dict(rope_type="default", rope_theta=10000.0)),
    (16, dict(rope_type="linear", rope_theta=10000.0, factor=3.0)),
    (32, dict(LLAMA3, rope_theta=500000.0, factor=8.0, original_max_position_embeddings=8192)),
    (10, dict(LLAMA3, rope_theta=1000.0, factor=4.0, original_max_position_embeddings=64)),
]


def tensors(c):
    """Names and shapes in the order that numbers them."""
    h, f, d = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    yield "model.embed_tokens.weight", [c["vocab_size"], h]
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", [h]
        yield from ((f"{p}self_attn.{n}_proj.weight", s) for n, s in (("q", [q, h]), ("k", [kv, h]), ("v", [kv, h]), ("o", [h, q])))
        yield p + "post_attention_layernorm.weight", [h]
        yield from ((f"{p}mlp.{n}_proj.weight", s) for n, s in (("gate", [f, h]), ("up", [f, h]), ("down", [h, f])))
    yield "model.norm.weight", [h]
    yield "lm_head.weight", [c["vocab_size"], h]


def values(number, shape):
    """Numbers with eight significant bits: norms from 1/2 to 3/2, others from -1/2 to 1/2."""
    i = torch.arange(int(torch.tensor(shape).prod()), dtype=torch.int64)
    x = (i + 7919 * number + 1) * 2654435761 % 2**32
    x = (x ^ (x >> 15)) * 2246822519 % 2**32
    x = (x ^ (x >> 13)) & 255
    v = 1 + (x // 2 - 64) / 128 if len(shape) == 1 else (x - 128) / 256
    return v.reshape(shape).to(torch.bfloat16)


def frequencies(dim, rope):
    config = LlamaConfig(hidden_size=2 * dim, num_attention_heads=2, head_dim=dim, rope_parameters=dict(rope), max_position_embeddings=1 << 17)
    return LlamaRotaryEmbedding(config).inv_freq.view(torch.int32).tolist()


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    config = json.load(open(HERE / "config.json"))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(HERE / "config.json", folder)
        state = {name: values(i, shape) for i, (name, shape) in enumerate(tensors(config))}
        save_file(state, folder + "/model.safetensors", metadata={"format": "pt"})
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    prompts = []
    for ids in PROMPTS:
        out = model(torch.tensor([ids]), use_cache=True)
        values_, indices = out.logits[0].topk(5)
        tops = [[[int(i), float(v)] for i, v in zip(*row)] for row in zip(indices, values_)]
        greedy, cache, logits = [], out.past_key_values, out.logits[0, -1]
        while len(greedy) < 24:
            greedy.append(int(logits.argmax()))
            step = model(torch.tensor([greedy[-1:]]), past_key_values=cache, use_cache=True)
            cache, logits = step.past_key_values, step.logits[0, -1]
        prompts.append({"ids": ids, "deviation": float(out.logits.std()), "tops": tops, "greedy": greedy})
    rotary = [{"head_dim": dim, **rope, "bits": frequencies(dim, rope)} for dim, rope in FREQUENCIES]
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    with open(HERE / "reference.json", "w") as file:
        json.dump({"versions": versions, "prompts": prompts, "rotary": rotary}, file)
        file.write("\n")


if __name__ == "__main__":
    main()
