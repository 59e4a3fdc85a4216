#!/usr/bin/env python3
"""Writes a Nemotron-H checkpoint (Hugging Face folder) as a GGUF file for llama.cpp, with the same values.

    gguf_from_hf.py HF OUT.gguf --type bf16|f32|q8

Linear weights, embedding, head and experts get the given type (q8 is Q8_0); norms, convolution, router and the scalars per head stay f32, as
llama.cpp wants them. What changes besides names: A = -exp(A_log); the convolution loses its axis of length 1; A and D get one;
the gated norm becomes [groups, channels per group]; experts are stacked. There is no tokenizer: prompts are token ids. For the
models of models.py: no biases except the convolution's, no latent experts, no MTP.
"""
import argparse
import glob
import json
import os
import re

import gguf
import torch
from safetensors import safe_open

LETTERS = {"linear_attention": "M", "full_attention": "*", "mlp": "-", "moe": "E"}
TOP = {"backbone.embeddings.weight": "token_embd.weight", "backbone.norm_f.weight": "output_norm.weight",
       "lm_head.weight": "output.weight"}
BLOCK = {
    "norm.weight": "attn_norm.weight",
    "mixer.in_proj.weight": "ssm_in.weight", "mixer.out_proj.weight": "ssm_out.weight",
    "mixer.conv1d.weight": "ssm_conv1d.weight", "mixer.conv1d.bias": "ssm_conv1d.bias", "mixer.dt_bias": "ssm_dt.bias",
    "mixer.A_log": "ssm_a", "mixer.D": "ssm_d", "mixer.norm.weight": "ssm_norm.weight",
    "mixer.q_proj.weight": "attn_q.weight", "mixer.k_proj.weight": "attn_k.weight", "mixer.v_proj.weight": "attn_v.weight",
    "mixer.o_proj.weight": "attn_output.weight",
    "mixer.up_proj.weight": "ffn_up.weight", "mixer.down_proj.weight": "ffn_down.weight",
    "mixer.gate.weight": "ffn_gate_inp.weight", "mixer.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mixer.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mixer.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
}
F32 = re.compile(r"norm\.weight$|\.bias$|ssm_(a|d|conv1d\.weight)$|ffn_gate_inp")


def read(folder):
    tensors = {}
    for path in sorted(glob.glob(os.path.join(folder, "*.safetensors"))):
        with safe_open(path, "pt") as f:
            tensors.update((name, f.get_tensor(name)) for name in f.keys())
    return tensors


def renamed(tensors, c):
    """Yields (GGUF name, tensor) with llama.cpp's shapes and values."""
    experts = {}
    for name, t in tensors.items():
        if name in TOP:
            yield TOP[name], t
            continue
        layer, rest = re.fullmatch(r"backbone\.layers\.(\d+)\.(.+)", name).groups()
        if expert := re.fullmatch(r"mixer\.experts\.(\d+)\.(up|down)_proj\.weight", rest):
            stack = experts.setdefault((layer, expert[2]), {})
            stack[int(expert[1])] = t
            if len(stack) == c["n_routed_experts"]:
                yield f"blk.{layer}.ffn_{expert[2]}_exps.weight", torch.stack([stack[i] for i in range(len(stack))])
            continue
        if rest == "mixer.A_log":
            t = -torch.exp(t.float())
        if rest in ("mixer.A_log", "mixer.D"):
            t = t.reshape(-1, 1)
        elif rest == "mixer.conv1d.weight":
            t = t.squeeze(1)
        elif rest == "mixer.norm.weight":
            t = t.reshape(c["n_groups"], -1)
        yield f"blk.{layer}.{BLOCK[rest]}", t


def metadata(w, c, kind):
    pattern = "".join(LETTERS[x] for x in c["layers_block_type"])
    moe = "E" in pattern
    w.add_name(os.path.basename(os.path.normpath(c["_folder"])))
    types = {"bf16": gguf.LlamaFileType.MOSTLY_BF16, "f32": gguf.LlamaFileType.ALL_F32, "q8": gguf.LlamaFileType.MOSTLY_Q8_0}
    w.add_file_type(types[kind])
    w.add_vocab_size(c["vocab_size"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_block_count(len(pattern))
    w.add_layer_norm_eps(c["layer_norm_epsilon"])          # one of the two, by version of llama.cpp
    w.add_layer_norm_rms_eps(c["layer_norm_epsilon"])
    # llama.cpp tells the kind of a layer from these two lists: both 0 is Mamba, only the first is attention
    w.add_head_count_kv([c["num_key_value_heads"] if x == "*" else 0 for x in pattern])
    w.add_feed_forward_length([(c["moe_intermediate_size"] if x == "E" else c["intermediate_size"]) if x in "E-" else 0
                               for x in pattern])
    w.add_head_count(c["num_attention_heads"])
    w.add_key_length(c["head_dim"])
    w.add_value_length(c["head_dim"])
    w.add_ssm_conv_kernel(c["conv_kernel"])
    w.add_ssm_inner_size(c["mamba_num_heads"] * c["mamba_head_dim"])
    w.add_ssm_state_size(c["ssm_state_size"])
    w.add_ssm_time_step_rank(c["mamba_num_heads"])
    w.add_ssm_group_count(c["n_groups"])
    if moe:
        w.add_expert_count(c["n_routed_experts"])
        w.add_expert_used_count(c["num_experts_per_tok"])
        w.add_expert_feed_forward_length(c["moe_intermediate_size"])
        w.add_expert_shared_count(c["n_shared_experts"])
        w.add_expert_shared_feed_forward_length(c["moe_shared_expert_intermediate_size"])
        w.add_expert_weights_norm(c["norm_topk_prob"])
        w.add_expert_weights_scale(float(c["routed_scaling_factor"]))
        w.add_expert_group_count(c["n_group"])
    w.add_tokenizer_model("no_vocab")


def convert(folder, out, kind):
    with open(os.path.join(folder, "config.json")) as f:
        c = json.load(f)
    c["_folder"] = folder
    moe = "moe" in c["layers_block_type"]
    w = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.NEMOTRON_H_MOE if moe else gguf.MODEL_ARCH.NEMOTRON_H])
    metadata(w, c, kind)
    count = 0
    for name, t in renamed(read(folder), c):
        if kind == "bf16" and not F32.search(name):
            assert t.dtype == torch.bfloat16, name
            w.add_tensor(name, t.contiguous().view(torch.uint8).numpy(), raw_dtype=gguf.GGMLQuantizationType.BF16)
        elif kind == "q8" and not F32.search(name):
            packed = gguf.quants.quantize(t.float().contiguous().numpy(), gguf.GGMLQuantizationType.Q8_0)
            w.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            w.add_tensor(name, t.float().contiguous().numpy())
        count += t.numel()
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    print(f"{out}: {count:,} values, {os.path.getsize(out):,} bytes")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("hf")
    ap.add_argument("out")
    ap.add_argument("--type", choices=["bf16", "f32", "q8"], required=True)
    a = ap.parse_args()
    convert(a.hf, a.out, a.type)


if __name__ == "__main__":
    main()
