"""The small models of the quantization check: `quantize_models.py OUT NAME`, through make_hf.

Sizes are multiples of 128 where a static block of 128 must divide them (`moe`), and odd where nothing asks for that
(`dense`, `latent`, `mtp`); `wide` has four of everything that tensor parallelism divides. One input channel of every matrix is four times as large, so that scales are not all alike. A name
that ends in `-f32` is the same model in float32.
"""
import json
import os
import sys

SIZES = dict(hidden_size=128, intermediate_size=256, moe_intermediate_size=256, moe_shared_expert_intermediate_size=256,
             n_routed_experts=4, num_experts_per_tok=2, chunk_size=16, max_position_embeddings=256)
MODELS = {
    "moe": ("nemotron_h_moe", dict(hybrid_override_pattern="ME*-ME", mamba_num_heads=64, mamba_head_dim=4, head_dim=64)),
    "wide": ("nemotron_h_moe", dict(hybrid_override_pattern="ME*-ME", mamba_num_heads=64, mamba_head_dim=4, head_dim=32,
                                    num_attention_heads=8, num_key_value_heads=4, n_groups=4)),
    "dense": ("nemotron_h_dense", dict(hybrid_override_pattern="M-*M", mamba_num_heads=8, mamba_head_dim=32)),
    "latent": ("nemotron_h_latent_mtp", dict(hybrid_override_pattern="MEM*E", moe_latent_size=64, num_nextn_predict_layers=0)),
    "mtp": ("nemotron_h_latent_mtp", dict(hybrid_override_pattern="ME*", moe_latent_size=64)),
}


def make(out, name):
    import make_hf
    import torch
    from safetensors.torch import load_file, save_file
    plain = name.removesuffix("-f32")
    model, own = MODELS[plain]
    make_hf.tiny(out, [model], 0, {**SIZES, **own}, 0, False)
    os.rename(os.path.join(out, model), os.path.join(out, name))
    path, config = (os.path.join(out, name, f) for f in ("model.safetensors", "config.json"))
    tensors = load_file(path)
    for key, t in tensors.items():
        if t.dim() >= 2 and "conv1d" not in key and "embed" not in key and "gate" not in key:
            t[..., 0] *= 4
    if name != plain:
        tensors = {k: t.float() for k, t in tensors.items()}
        c = json.load(open(config))
        c["dtype"] = "float32"
        json.dump(c, open(config, "w"), indent=2)
    save_file({k: t.contiguous() for k, t in tensors.items()}, path, metadata={"format": "pt"})
    os.remove(os.path.join(out, name, "tensors.json"))


def main():
    make(*sys.argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
