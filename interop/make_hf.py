#!/usr/bin/env python3
"""Writes Hugging Face checkpoints with random weights.

Tiny models (through transformers):
    make_hf.py OUT [--model NAME ...] [--seed N] [--set key=json ...] [--max-shard-size BYTES] [--release-config]
  writes OUT/NAME/{config.json, generation_config.json, model*.safetensors, tensors.json}; --list prints the names.
  --seed N shifts every seed; --set overrides config fields (only with exactly one --model).

Real shapes (no transformers; streamed, shard by shard):
    make_hf.py OUT --config config.json --layers K [--seed N] [--max-shard-size BYTES]
  takes a released config.json, keeps the first K layers and writes bfloat16 weights in release layout under OUT.
  Values come from one fixed block of N(0, 0.02^2) numbers (rolled per tensor), so writing runs at disk speed.
  Families: nemotron_h, llama, qwen2, qwen3, qwen3_moe.
"""
import argparse
import hashlib
import json
import os
import struct
import sys


def save_shards(tensors, out, limit):
    """tensors: dict of torch tensors. One file, or several plus an index when limit (bytes) is given."""
    from safetensors.torch import save_file
    groups, size = [{}], 0
    for k, v in tensors.items():
        n = v.numel() * v.element_size()
        if limit and groups[-1] and size + n > limit:
            groups.append({})
            size = 0
        groups[-1][k] = v
        size += n
    if len(groups) == 1:
        save_file(tensors, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
        return
    index = {"metadata": {"total_size": sum(v.numel() * v.element_size() for v in tensors.values())}, "weight_map": {}}
    for i, g in enumerate(groups):
        name = f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors"
        save_file(g, os.path.join(out, name), metadata={"format": "pt"})
        index["weight_map"].update({k: name for k in g})
    index["weight_map"] = dict(sorted(index["weight_map"].items()))
    json.dump(index, open(os.path.join(out, "model.safetensors.index.json"), "w"), indent=2)


def natural(key):
    """Sort key that orders numbers by value."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in key.split(".")]


def release_form(cfg):
    """config.json as released checkpoints write it (pattern string, bare Infinity)."""
    letters = {"linear_attention": "M", "mamba": "M", "full_attention": "*", "attention": "*", "mlp": "-", "moe": "E"}
    cfg["hybrid_override_pattern"] = "".join(letters[x] for x in cfg.pop("layers_block_type"))
    cfg["num_hidden_layers"] = len(cfg["hybrid_override_pattern"])
    if cfg.get("mtp_layers_block_type"):
        cfg["mtp_hybrid_override_pattern"] = "".join(letters[x] for x in cfg.pop("mtp_layers_block_type"))
    cfg["time_step_limit"] = [0.0, float("inf")]
    cfg["torch_dtype"] = cfg.pop("dtype", "bfloat16")
    return cfg


def tiny(out, names, seed, over, limit, release):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
    import tiny_models as T
    order = list(T.MODELS)
    for name in names:
        i, d = order.index(name), os.path.join(out, name)
        os.makedirs(d, exist_ok=True)
        cfg = T.MODELS[name](**over)
        cfg._attn_implementation = "eager"
        torch.manual_seed(1234 + i + seed)
        m = AutoModelForCausalLM.from_config(cfg, dtype=torch.float32).eval()
        m = T.randomize(m, name, 1000 + i + seed).to(torch.bfloat16)
        for n, b in m.named_buffers():
            if n.endswith("e_score_correction_bias"):
                b.data = b.data.float()
        for f in os.listdir(d):
            if f.startswith("model") and (f.endswith(".safetensors") or f.endswith(".index.json")):
                os.remove(os.path.join(d, f))
        m.save_pretrained(d)
        sd = load_file(os.path.join(d, "model.safetensors"))
        if cfg.tie_word_embeddings and name.startswith("nemotron"):     # transformers keeps a head of its own for this family
            sd.pop("lm_head.weight")
        if getattr(cfg, "num_nextn_predict_layers", 0) and name.startswith("nemotron"):
            sd.update(T.mtp_tensors(cfg, 77 + seed))
        if name.endswith("_fp32_ssm"):
            g = torch.Generator().manual_seed(55 + seed)
            for k in sorted(sd):
                if k.split(".")[-1] in ("A_log", "D", "dt_bias"):
                    sd[k] = sd[k].float() + torch.rand(sd[k].shape, generator=g) * 1e-3
        lim = limit or T.SHARDED.get(name)
        if lim:
            os.remove(os.path.join(d, "model.safetensors"))
            save_shards({k: sd[k] for k in sorted(sd, key=natural)}, d, lim)
        else:
            save_shards(sd, d, 0)
        if release or name in T.RELEASE_CONFIG:
            path = os.path.join(d, "config.json")
            json.dump(release_form(json.load(open(path))), open(path, "w"), indent=2)
        table = {k: [str(v.dtype).replace("torch.", ""), list(v.shape)] for k, v in sorted(sd.items())}
        json.dump(table, open(os.path.join(d, "tensors.json"), "w"), indent=0)
        print(name, len(sd), "tensors", sum(v.numel() * v.element_size() for v in sd.values()), "bytes", flush=True)


def release_tensors(c, pattern):
    """Yields (name, dtype, shape) of a released checkpoint with the given layers."""
    H, V = c["hidden_size"], c["vocab_size"]
    q, kv = c["num_attention_heads"], c["num_key_value_heads"]
    hd = c.get("head_dim") or c.get("attention_head_dim") or H // q
    if c["model_type"] == "nemotron_h":
        nh, p, g, n = c["mamba_num_heads"], c["mamba_head_dim"], c["n_groups"], c["ssm_state_size"]
        di, bc, L = nh * p, g * n, c.get("moe_latent_size") or H
        yield "backbone.embeddings.weight", "BF16", [V, H]
        for i, kind in enumerate(pattern):
            b, m = f"backbone.layers.{i}.", f"backbone.layers.{i}.mixer."
            yield b + "norm.weight", "BF16", [H]
            if kind == "M":
                for t, s in (("A_log", [nh]), ("D", [nh]), ("conv1d.bias", [di + 2 * bc]),
                             ("conv1d.weight", [di + 2 * bc, 1, c.get("conv_kernel", 4)]), ("dt_bias", [nh]),
                             ("in_proj.weight", [2 * di + 2 * bc + nh, H]), ("norm.weight", [di]), ("out_proj.weight", [H, di])):
                    yield m + t, "BF16", s
            elif kind == "*":
                for t, s in (("q", [q * hd, H]), ("k", [kv * hd, H]), ("v", [kv * hd, H]), ("o", [H, q * hd])):
                    yield m + t + "_proj.weight", "BF16", s
            elif kind == "-":
                yield m + "up_proj.weight", "BF16", [c["intermediate_size"], H]
                yield m + "down_proj.weight", "BF16", [H, c["intermediate_size"]]
            else:
                F, S = c["moe_intermediate_size"], c["moe_shared_expert_intermediate_size"]
                if c.get("moe_latent_size"):
                    yield m + "fc1_latent_proj.weight", "BF16", [L, H]
                    yield m + "fc2_latent_proj.weight", "BF16", [H, L]
                for e in range(c["n_routed_experts"]):
                    yield m + f"experts.{e}.down_proj.weight", "BF16", [L, F]
                    yield m + f"experts.{e}.up_proj.weight", "BF16", [F, L]
                yield m + "gate.e_score_correction_bias", "F32", [c["n_routed_experts"]]
                yield m + "gate.weight", "BF16", [c["n_routed_experts"], H]
                yield m + "shared_experts.down_proj.weight", "BF16", [H, S]
                yield m + "shared_experts.up_proj.weight", "BF16", [S, H]
        yield "backbone.norm_f.weight", "BF16", [H]
    else:
        yield "model.embed_tokens.weight", "BF16", [V, H]
        for i in range(len(pattern)):
            b, a = f"model.layers.{i}.", f"model.layers.{i}.self_attn."
            for t in ("input_layernorm", "post_attention_layernorm"):
                yield b + t + ".weight", "BF16", [H]
            for t, o in (("q", q * hd), ("k", kv * hd), ("v", kv * hd)):
                yield a + t + "_proj.weight", "BF16", [o, H]
                if c["model_type"] == "qwen2":
                    yield a + t + "_proj.bias", "BF16", [o]
            yield a + "o_proj.weight", "BF16", [H, q * hd]
            if c["model_type"].startswith("qwen3"):
                yield a + "q_norm.weight", "BF16", [hd]
                yield a + "k_norm.weight", "BF16", [hd]
            E = c.get("num_experts")
            F = c["moe_intermediate_size"] if E else c["intermediate_size"]
            if E:
                yield b + "mlp.gate.weight", "BF16", [E, H]
            for pre in ([f"mlp.experts.{e}." for e in range(E)] if E else ["mlp."]):
                for t, s in (("gate", [F, H]), ("up", [F, H]), ("down", [H, F])):
                    yield b + pre + t + "_proj.weight", "BF16", s
        yield "model.norm.weight", "BF16", [H]
    if not c.get("tie_word_embeddings"):
        yield "lm_head.weight", "BF16", [V, H]


def real(out, config, layers, seed, limit):
    import numpy as np
    c = json.load(open(config))
    letters = {"linear_attention": "M", "mamba": "M", "full_attention": "*", "attention": "*", "mlp": "-", "moe": "E"}
    pattern = c.get("hybrid_override_pattern") or "".join(letters[x] for x in c.get("layers_block_type", []))
    pattern = (pattern or "L" * c["num_hidden_layers"])[:layers]
    if c["model_type"] == "nemotron_h":
        c["hybrid_override_pattern"] = pattern
        c.pop("layers_block_type", None)
        c["num_nextn_predict_layers"] = 0
    c["num_hidden_layers"] = len(pattern)
    os.makedirs(out, exist_ok=True)
    json.dump(c, open(os.path.join(out, "config.json"), "w"), indent=2)
    rng = np.random.default_rng(seed)
    to_bf16 = lambda f: ((f.astype(np.float32).view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
    normal = rng.standard_normal(1 << 24, dtype=np.float32)
    block = memoryview(np.ascontiguousarray(to_bf16(normal * 0.02))).cast("B")              # 32 MiB
    around1 = memoryview(np.ascontiguousarray(to_bf16(1 + 0.1 * normal[:1 << 18]))).cast("B")
    float32 = memoryview((0.05 * normal[:1 << 16]).copy()).cast("B")
    groups, size = [[]], 0
    for name, dt, shape in release_tensors(c, pattern):
        n = (2 if dt == "BF16" else 4) * int(np.prod(shape))
        if groups[-1] and size + n > limit:
            groups.append([])
            size = 0
        groups[-1].append((name, dt, shape, n))
        size += n
    index, total = {}, 0
    for i, group in enumerate(groups):
        file = f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" if len(groups) > 1 else "model.safetensors"
        head, off = {"__metadata__": {"format": "pt"}}, 0
        for name, dt, shape, n in group:
            head[name] = {"dtype": dt, "shape": shape, "data_offsets": [off, off + n]}
            off += n
            index[name] = file
        text = json.dumps(head, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(os.path.join(out, file), "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            for name, dt, shape, n in group:
                src = float32 if dt == "F32" else around1 if name.endswith(("norm.weight", "layernorm.weight", "norm_f.weight", ".D")) else block
                start = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "little") % (len(src) // 8) * 4
                while n > 0:
                    k = min(n, len(src) - start)
                    f.write(src[start:start + k])
                    n, start = n - k, 0
        total += off
    if len(groups) > 1:
        json.dump({"metadata": {"total_size": total}, "weight_map": index},
                  open(os.path.join(out, "model.safetensors.index.json"), "w"), indent=2)
    print(f"{len(index)} tensors, {total} bytes, {len(groups)} files, pattern {pattern}")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out", nargs="?")
    ap.add_argument("--model", nargs="*")
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--set", nargs="*", default=[], help="config overrides, key=json")
    ap.add_argument("--config")
    ap.add_argument("--layers", type=int, default=4)
    ap.add_argument("--max-shard-size", type=int, default=0)
    ap.add_argument("--release-config", action="store_true")
    ap.add_argument("--list", action="store_true")
    a = ap.parse_args()
    if a.config:
        return real(a.out, a.config, a.layers, a.seed, a.max_shard_size or 10**9)
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from tiny_models import MODELS
    if a.list or not a.out:
        return print("\n".join(MODELS))
    over = {}
    for kv in a.set:
        k, v = kv.split("=", 1)
        try:
            over[k] = json.loads(v)
        except json.JSONDecodeError:
            over[k] = v
    names = a.model or list(MODELS)
    if over and len(names) != 1:
        ap.error("--set needs exactly one --model")
    tiny(a.out, names, a.seed, over, a.max_shard_size, a.release_config)


if __name__ == "__main__":
    main()
