#!/usr/bin/env python3
"""Writes modelopt_reference.safetensors: what ModelOpt calibrates and computes on the tiny Nemotron-H in float32.

    modelopt_reference.py BASE REFERENCE ORACLE OUT

BASE: the model (golden/quant/tiny_hf/nemotron_h/base of the shared data); REFERENCE: reference.safetensors beside it, for
its tokens; ORACLE: the folder of quant_common.py. Needs torch, transformers and nvidia-modelopt (CPU).

Tensors: `CONFIG/MODULE.input`, `.weight`, `.pre_quant_scale` (amax by Megatron's module names; q, k and v share the largest
scalar amax of their weights, as one fused linear has it), `CONFIG/logits` at every eighth position of each prompt.
"""
import os
import sys

import torch

base, reference, oracle, out = sys.argv[1:5]
sys.path.insert(0, oracle)
import modelopt.torch.quantization as mtq
import quant_common as Q
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

CONFIGS = ["FP8_DEFAULT_CFG+FP8_KV_CFG", "NVFP4_DEFAULT_CFG", "INT8_DEFAULT_CFG", "INT8_SMOOTHQUANT_CFG",
           "FP8_PER_CHANNEL_PER_TOKEN_CFG", "MXFP8_DEFAULT_CFG", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG"]
KINDS = {"linear_attention": "mamba", "mamba": "mamba", "moe": "moe", "full_attention": "attention", "attention": "attention", "mlp": "mlp"}


def megatron(name, kinds):
    """`model.layers.3.mixer.up_proj.input_quantizer._amax` -> (`decoder.layers.3.mlp.linear_fc1`, `input`)."""
    parts = name.split(".")
    layer, rest = parts[2], ".".join(parts[4:])
    kind, prefix = kinds[int(layer)], f"decoder.layers.{layer}."
    what = "pre_quant_scale" if rest.endswith("_pre_quant_scale") else "weight" if "weight_quantizer" in rest else "input"
    if "output_quantizer" in rest or "conv1d" in rest:
        return None
    for kv in "kv":
        if rest.startswith(f"{kv}_bmm_quantizer"):
            return prefix + f"self_attention.core_attention.{kv}_bmm_quantizer", "input"
    fc = "linear_fc1" if "up_proj" in rest else "linear_fc2"
    if kind == "mamba":
        return prefix + "mixer." + rest.split(".")[0], what
    if kind == "attention":
        return prefix + "self_attention." + ("linear_proj" if rest.startswith("o_proj") else "linear_qkv"), what
    if kind == "mlp":
        return prefix + "mlp." + fc, what
    if rest.startswith("shared_experts"):
        return prefix + "mlp.shared_experts." + fc, what
    expert = [p for p in rest.split(".") if p.isdigit()]
    return prefix + "mlp.experts." + fc + (f".{expert[0]}" if expert and what == "weight" else ""), what


def share_qkv(model):
    """One scalar weight amax for q, k and v."""
    for module in model.modules():
        if hasattr(module, "q_proj"):
            quantizers = [getattr(module, f"{p}_proj").weight_quantizer for p in "qkv"]
            amaxes = [getattr(q, "_amax", None) for q in quantizers]
            if all(a is not None and a.dim() == 0 for a in amaxes):
                for q in quantizers:
                    q._amax.copy_(torch.stack(amaxes).max())


def main():
    Q.patch_dynamic_block_quantize()
    tokens = load_file(reference)["tokens"]
    result = {}
    for config in CONFIGS:
        m = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
        kinds = [KINDS[k] for k in m.config.layers_block_type]

        @torch.no_grad()
        def run(model):
            return torch.cat([model(t, use_cache=False).logits for t in tokens.split(2)]).float()
        if not result:
            result["plain/logits"] = run(m)[:, 7::8].contiguous()
        m = mtq.quantize(m, Q.config(config), run)
        share_qkv(m)
        rows = {}
        for name, value in Q.quantizer_state(m).items():
            named = megatron(name, kinds)
            if named is None:
                continue
            key = f"{config}/{named[0]}.{named[1]}"
            value = value.float()
            # Amax values of rows and blocks follow from the weights.
            if value.dim() and named[1] == "weight":
                continue
            if key in rows:
                assert torch.equal(rows[key], value), key
            rows[key] = value
        result.update(rows)
        result[f"{config}/logits"] = run(m)[:, 7::8].contiguous()
        print(config, len(rows), "amaxes; logit change", (result[f"{config}/logits"] - result["plain/logits"]).abs().max().item(), flush=True)
    save_file({k: v.contiguous().clone() for k, v in result.items()}, out)


main()
