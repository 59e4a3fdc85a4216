#!/usr/bin/env python3
"""Writes megatron_search_reference.safetensors: what ModelOpt's smoothquant, awq_lite and awq_full find on Megatron's modules of
the tiny Nemotron-H in float32, routed experts (SequentialMLP) included.

    megatron_search_reference.py BASE REFERENCE ORACLE OUT

BASE: the model (golden/quant/tiny_hf/nemotron_h/base of the shared data); REFERENCE: reference.safetensors beside it, for
its tokens; ORACLE: the folder of quant_megatron.py. Needs torch, megatron-core and nvidia-modelopt (CPU).

A prompt is a batch of its own, eight of 16 tokens. `CONFIG/MODULE.alpha`, `.losses`, `.pqs`, `.input` and `.weight` (amax).
"""
import os
import sys

import torch

base, reference, oracle, out = sys.argv[1:5]
sys.path.insert(0, oracle)
for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29771", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
    os.environ.setdefault(name, value)
import quant_megatron as QM
import modelopt.torch.quantization as mtq
from mapping import Mapping
from safetensors.torch import load_file, save_file

CONFIGS = ["INT8_SMOOTHQUANT_CFG", "INT8_SMOOTHQUANT_HALF", "INT4_AWQ_CFG", "NVFP4_AWQ_LITE_CFG", "NVFP4_AWQ_FULL_CFG"]


def config(name):
    cfg = QM.Q.config(name.replace("HALF", "CFG"))
    algorithm = cfg["algorithm"]
    cfg["algorithm"] = algorithm = {"method": algorithm} if isinstance(algorithm, str) else dict(algorithm)
    if algorithm["method"].startswith("awq"):
        algorithm["debug"] = True
    elif name.endswith("HALF"):
        algorithm["alpha"] = 0.5
    return cfg


def build(mapping):
    model = QM.build(mapping.c, 1, 1, None)
    QM.import_weights(model, mapping)
    for module in model.modules():
        own = getattr(module, "config", None)
        if own is not None:
            own.bf16, own.params_dtype, own.pipeline_dtype = False, torch.float32, torch.float32
        if hasattr(module, "input_in_float16"):
            module.input_in_bf16 = module.input_in_float16 = False
    return model.float()


def main():
    tokens = load_file(reference)["tokens"].flatten()[:128].view(8, 1, 16)
    QM.M.init(1, 1, 1, None)
    QM.Q.patch_dynamic_block_quantize()
    mapping = Mapping(base, fused=True)
    result = {"tokens": tokens.view(8, 16).int()}
    position, mask = torch.arange(16).unsqueeze(0), torch.triu(torch.ones(1, 1, 16, 16, dtype=torch.bool), 1)

    @torch.no_grad()
    def run(model):
        return torch.cat([model(t, position, mask) for t in tokens])
    for name in CONFIGS:
        model = mtq.quantize(build(mapping), config(name), run)
        for path, module in model.named_modules():
            key = f"{name}/{path}".replace(".local_experts.", ".experts.")
            if hasattr(module, "awq_lite") and module.awq_lite.best_alpha is not None:
                result[f"{key}.alpha"] = torch.tensor(module.awq_lite.best_alpha)
                result[f"{key}.losses"] = torch.tensor([float(v) for v in module.awq_lite.loss.values()])
            for part in ("input", "weight"):
                quantizer = getattr(module, f"{part}_quantizer", None)
                if getattr(quantizer, "_amax", None) is not None and (part == "input" or "INT4" not in name):
                    result[f"{key}.{part}"] = quantizer._amax.float()
            scale = getattr(getattr(module, "input_quantizer", None), "_pre_quant_scale", None)
            if scale is not None:
                result[f"{key}.pqs"] = scale.float()
        print(name, len(result), flush=True)
    save_file({k: v.contiguous().clone() for k, v in result.items()}, out)


main()
