#!/usr/bin/env python3
"""Writes search_reference.safetensors: what ModelOpt's smoothquant, awq_lite, awq_clip and awq_full find on the tiny
Nemotron-H in float32.

    search_reference.py BASE REFERENCE ORACLE OUT

BASE: the model (golden/quant/tiny_hf/nemotron_h/base of the shared data); REFERENCE: reference.safetensors beside it, for
its tokens; ORACLE: the folder of quant_common.py. Needs torch, transformers and nvidia-modelopt (CPU).

A prompt is a batch of its own, eight of 16 tokens; of PAIRS two prompts are. By Megatron's module names (q, k and v apart, as transformers has them):
`CONFIG/MODULE.pre_quant_scale`, `.input`, `.weight` (the amax as the quantizer has it), `.alpha`.
"""
import sys

import torch

base, reference, oracle, out = sys.argv[1:5]
sys.path.insert(0, oracle)
import modelopt.torch.quantization as mtq
import quant_common as Q
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

CONFIGS = ["INT8_SMOOTHQUANT_CFG", "INT4_AWQ_CFG", "W4A8_AWQ_BETA_CFG", "NVFP4_AWQ_LITE_CFG", "NVFP4_AWQ_CLIP_CFG", "NVFP4_AWQ_FULL_CFG",
           "INT4_CLIP", "INT4_FULL", "INT8_SMOOTHQUANT_HALF", "INT4_AWQ_CFG+FP8_KV_CFG", "INT4_FULL_PAIRS"]
VARIANTS = {"INT4_FULL_PAIRS": ("INT4_AWQ_CFG", {"method": "awq_full", "max_tokens_per_batch": 8}),
            "INT4_CLIP": ("INT4_AWQ_CFG", {"method": "awq_clip"}), "INT4_FULL": ("INT4_AWQ_CFG", {"method": "awq_full"}),
            "INT8_SMOOTHQUANT_HALF": ("INT8_SMOOTHQUANT_CFG", {"method": "smoothquant", "alpha": 0.5})}


def config(name):
    first, algorithm = VARIANTS.get(name, (name, None))
    cfg = Q.config(first)
    algorithm = algorithm or cfg["algorithm"]
    algorithm = {"method": algorithm} if isinstance(algorithm, str) else dict(algorithm)
    if algorithm["method"] in ("awq_lite", "awq_full", "awq_clip"):
        algorithm["debug"] = True
    cfg["algorithm"] = algorithm
    return cfg


def main():
    Q.patch_dynamic_block_quantize()
    tokens = load_file(reference)["tokens"].flatten()[:128].view(8, 1, 16)
    result = {"tokens": tokens.view(8, 16).int()}
    for name in CONFIGS:
        m = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()

        @torch.no_grad()
        def run(model):
            for t in tokens.view(4, 2, 16) if name.endswith("PAIRS") else tokens:
                model(t, use_cache=False)
        m = mtq.quantize(m, config(name), run)
        for path, module in m.named_modules():
            if hasattr(module, "awq_lite") and module.awq_lite.best_alpha is not None:
                result[f"{name}/{path}.alpha"] = torch.tensor(module.awq_lite.best_alpha)
                result[f"{name}/{path}.losses"] = torch.tensor([float(v) for v in module.awq_lite.loss.values()])
        for key, value in Q.quantizer_state(m).items():
            if "output_quantizer" not in key:
                result[f"{name}/{key}"] = value.float()
        print(name, len(result), flush=True)
    save_file({k: v.contiguous().clone() for k, v in result.items()}, out)


main()
