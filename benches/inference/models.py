#!/usr/bin/env python3
"""Writes the two Nemotron-H models of the inference benchmark as Hugging Face folders with random weights.

    models.py OUT [--only dense|moe] [--seed N]

writes OUT/dense and OUT/moe: config.json as transformers 5.23 saves it, generation_config.json, model.safetensors in bfloat16.
Values are like those of transformers' initialisation (normal with std 0.02, A = 1..heads, dt between 0.001 and 0.1, norms and D
near 1, the router's bias near 0); the same seed gives the same bytes. `time_step_min` is 1e-9 so that the clamp of dt that
transformers alone applies at prefill does nothing: all programs then compute the same function.
"""
import argparse
import math
import os

TRUNK = dict(vocab_size=32000, hidden_size=1024, mamba_num_heads=32, mamba_head_dim=64, ssm_state_size=128, n_groups=8,
             conv_kernel=4, chunk_size=128, num_attention_heads=16, head_dim=64, layer_norm_epsilon=1e-5,
             max_position_embeddings=4096, time_step_min=1e-9, time_step_max=0.1, pad_token_id=0, bos_token_id=1,
             eos_token_id=2, num_nextn_predict_layers=0)
MODELS = {
    "dense": dict(pattern="M-M-M-M*-M-M-M*-M-M-M*-M-", num_key_value_heads=4, intermediate_size=4096),
    "moe": dict(pattern="MEMEM*EMEMEM*E", num_key_value_heads=2, n_routed_experts=32, num_experts_per_tok=6,
                moe_intermediate_size=512, moe_shared_expert_intermediate_size=1024, n_shared_experts=1, n_group=1,
                topk_group=1, norm_topk_prob=True, routed_scaling_factor=2.5, intermediate_size=1024),
}


def config(name):
    from transformers import NemotronHConfig
    own = dict(MODELS[name])
    c = NemotronHConfig(hybrid_override_pattern=own.pop("pattern"), **TRUNK, **own)
    c.architectures, c.dtype = ["NemotronHForCausalLM"], "bfloat16"
    return c


def tensors(c, seed):
    """The tensors of a checkpoint by name, in file order."""
    import torch
    g = torch.Generator().manual_seed(seed)
    hidden, heads, groups = c.hidden_size, c.mamba_num_heads, c.n_groups
    inner = heads * c.mamba_head_dim
    conv = inner + 2 * groups * c.ssm_state_size
    normal = lambda *shape, std=0.02: (torch.randn(shape, generator=g) * std).to(torch.bfloat16)
    uniform = lambda *shape, bound: ((torch.rand(shape, generator=g) * 2 - 1) * bound).to(torch.bfloat16)
    near_one = lambda n: (1 + torch.randn(n, generator=g) * 0.1).to(torch.bfloat16)
    t = {"backbone.embeddings.weight": normal(c.vocab_size, hidden)}
    for i, kind in enumerate(c.hybrid_override_pattern):
        m = f"backbone.layers.{i}.mixer."
        t[f"backbone.layers.{i}.norm.weight"] = near_one(hidden)
        if kind == "M":
            dt = torch.exp(torch.rand(heads, generator=g) * (math.log(0.1) - math.log(1e-3)) + math.log(1e-3))
            t[m + "A_log"] = torch.log(torch.arange(1, heads + 1)).to(torch.bfloat16)
            t[m + "D"] = near_one(heads)
            t[m + "dt_bias"] = (dt + torch.log(-torch.expm1(-dt))).to(torch.bfloat16)       # the inverse of softplus
            t[m + "conv1d.weight"] = uniform(conv, 1, c.conv_kernel, bound=c.conv_kernel ** -0.5)
            t[m + "conv1d.bias"] = uniform(conv, bound=c.conv_kernel ** -0.5)
            t[m + "in_proj.weight"] = normal(inner + conv + heads, hidden)
            t[m + "norm.weight"] = near_one(inner)
            t[m + "out_proj.weight"] = normal(hidden, inner)
        elif kind == "*":
            q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
            for proj, out, inp in (("q", q, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, q)):
                t[m + proj + "_proj.weight"] = normal(out, inp)
        elif kind == "-":
            t[m + "up_proj.weight"] = normal(c.intermediate_size, hidden)
            t[m + "down_proj.weight"] = normal(hidden, c.intermediate_size)
        else:
            for e in range(c.n_routed_experts):
                t[m + f"experts.{e}.up_proj.weight"] = normal(c.moe_intermediate_size, hidden)
                t[m + f"experts.{e}.down_proj.weight"] = normal(hidden, c.moe_intermediate_size)
            t[m + "gate.weight"] = normal(c.n_routed_experts, hidden)
            t[m + "gate.e_score_correction_bias"] = torch.randn(c.n_routed_experts, generator=g) * 0.01
            t[m + "shared_experts.up_proj.weight"] = normal(c.moe_shared_expert_intermediate_size, hidden)
            t[m + "shared_experts.down_proj.weight"] = normal(hidden, c.moe_shared_expert_intermediate_size)
    t["backbone.norm_f.weight"] = near_one(hidden)
    t["lm_head.weight"] = normal(c.vocab_size, hidden)
    return t


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out")
    ap.add_argument("--only", choices=MODELS)
    ap.add_argument("--seed", type=int, default=1)
    a = ap.parse_args()
    from safetensors.torch import save_file
    from transformers import GenerationConfig
    for name in [a.only] if a.only else MODELS:
        folder = os.path.join(a.out, name)
        os.makedirs(folder, exist_ok=True)
        c = config(name)
        c.save_pretrained(folder)
        GenerationConfig.from_model_config(c).save_pretrained(folder)
        t = tensors(c, a.seed)
        save_file(t, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
        print(f"{name}: {sum(x.numel() for x in t.values()):,} parameters, {len(t)} tensors, "
              f"{os.path.getsize(os.path.join(folder, 'model.safetensors')):,} bytes, {len(c.layers_block_type)} layers")


if __name__ == "__main__":
    main()
