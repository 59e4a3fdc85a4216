"""The models of logits.py: variants of the tiny random ones, the bundled and a published one, a few layers of a released shape."""
import contextlib
import dataclasses
import glob
import io
import json
import os
import shutil
import struct

import torch
from safetensors.torch import load_file, save_file

import make_hf

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NANO = "data/configs/nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16/config.json"


@dataclasses.dataclass(frozen=True)
class Model:
    """A make_hf model with config overrides, or a folder of the repository."""
    name: str
    base: str = ""
    config: dict = dataclasses.field(default_factory=dict, hash=False)
    folder: str = ""
    clamps: bool = False        # its time steps are below time_step_min: with and without the clamp it computes different things
    llama: bool = False         # no time steps, and not converted
    long: bool = False          # one more prompt, far into the rotary embedding

    def make(self, work):
        if self.folder:
            return os.path.join(ROOT, self.folder)      # which an absolute path replaces
        seed = sum(map(ord, self.name))
        with contextlib.redirect_stdout(io.StringIO()):
            make_hf.tiny(work, [self.base], seed, self.config, 0, False)
        out = os.path.join(work, self.name)
        shutil.rmtree(out, ignore_errors=True)
        os.rename(os.path.join(work, self.base), out)
        return out


# Sizes that no vector unit and no block likes, and one group, head or expert where there are usually several.
ODD = dict(hidden_size=72, vocab_size=250, ssm_state_size=20, mamba_num_heads=6, mamba_head_dim=24, n_groups=3, conv_kernel=3,
           num_attention_heads=3, num_key_value_heads=1, head_dim=24, intermediate_size=100, chunk_size=256)
LLAMA_ODD = dict(hidden_size=72, vocab_size=250, num_attention_heads=6, num_key_value_heads=2, head_dim=26, intermediate_size=100)
CHUNKS = dict(chunk_size=128)       # as released; the base models have 8

MODELS = [
    Model("dense", "nemotron_h_dense", CHUNKS),
    Model("dense-odd", "nemotron_h_dense", ODD),
    Model("dense-tied", "nemotron_h_dense", dict(tie_word_embeddings=True)),
    Model("dt-small", "nemotron_h_dtclamp", CHUNKS, clamps=True),
    Model("ssm-in-float32", "nemotron_h_fp32_ssm", CHUNKS),
    Model("moe", "nemotron_h_moe", CHUNKS),
    Model("moe-odd-tied", "nemotron_h_moe", dict(ODD, tie_word_embeddings=True, n_routed_experts=5, moe_intermediate_size=28,
                                                 moe_shared_expert_intermediate_size=44)),
    Model("moe-top1", "nemotron_h_moe", dict(CHUNKS, num_experts_per_tok=1, routed_scaling_factor=1.0)),
    Model("moe-groups2", "nemotron_h_moe_groups", dict(CHUNKS, n_group=2, topk_group=1)),
    Model("moe-groups4", "nemotron_h_moe_groups", dict(CHUNKS, norm_topk_prob=True, num_experts_per_tok=3)),
    Model("latent", "nemotron_h_latent_mtp", CHUNKS),
    Model("latent-odd", "nemotron_h_latent_mtp", dict(ODD, moe_latent_size=20, n_routed_experts=6, num_experts_per_tok=2)),
    Model("bundled", folder="models/nemotron-h-10m"),
    Model("llama-plain", "llama", dict(max_position_embeddings=8192), llama=True, long=True),
    Model("llama-odd", "llama", LLAMA_ODD, llama=True),
    Model("llama-mqa-tied", "llama", dict(num_key_value_heads=1, head_dim=32, tie_word_embeddings=True), llama=True),
    Model("llama-linear", "llama", dict(rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=3.0)), llama=True),
    Model("llama3-tied", "llama_tied", dict(max_position_embeddings=8192), llama=True, long=True),
    Model("llama3-odd", "llama", dict(LLAMA_ODD, rope_parameters=dict(rope_type="llama3", rope_theta=1000.0, factor=5.0, low_freq_factor=1.0,
                                                                      high_freq_factor=3.0, original_max_position_embeddings=100)), llama=True),
]


def trained_llama():
    """The stories260K model among the shared data, where it is: at most one."""
    path = os.path.join(shared(), "data/models/stories260K/hf")
    return [Model("stories260k", folder=path, llama=True)] if os.path.exists(path) else []


def other_rope(folder, out):
    """A copy of a Llama folder, whose rotary embedding is stretched by a hundredth less."""
    shutil.copytree(folder, out)
    path = os.path.join(out, "config.json")
    config = json.load(open(path))
    config["rope_parameters"]["factor"] *= 0.99
    with open(path, "w") as f:
        json.dump(config, f)
    return out


def swapped(folder, out):
    """A copy of a Llama folder, where gate and up of layer 0 have changed places."""
    shutil.copytree(folder, out)
    path = os.path.join(out, "model.safetensors")
    tensors = load_file(path)
    gate, up = (f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up"))
    tensors[gate], tensors[up] = tensors[up], tensors[gate]
    save_file(tensors, path, metadata={"format": "pt"})
    return out


def changed(folder, out):
    """A copy of a tiny folder, where one weight of layer 0 differs by up to a half."""
    shutil.copytree(folder, out)
    path = os.path.join(out, "model.safetensors")
    tensors = load_file(path)
    name = "backbone.layers.0.mixer.in_proj.weight"
    assert tensors[name].dtype == torch.bfloat16
    tensors[name].view(torch.int16)[3, 5] ^= 0x40       # the first bit of the fraction
    save_file(tensors, path, metadata={"format": "pt"})
    return out


def shared():
    """The folder of the shared data, which need not be there."""
    return os.environ.get("LONGSHORE_DATA", os.path.join(os.path.dirname(ROOT), "shared"))


def released_config():
    """The config.json of Nemotron-3-Nano among the shared data, or None."""
    path = os.path.join(shared(), NANO)
    return path if os.path.exists(path) else None


def released_shape(config, pattern, out):
    """A released config with the layers of `pattern` and random weights. make_hf gives all tensors N(0, 0.02^2); the small tensors of
    Mamba get values like those of trained models here, or the scan would hide behind the skip term."""
    short = dict(json.load(open(config)), hybrid_override_pattern=pattern)
    with open(out + ".json", "w") as f:
        json.dump(short, f)
    with contextlib.redirect_stdout(io.StringIO()):
        make_hf.real(out, out + ".json", len(pattern), 0, 10**9)
    g = torch.Generator().manual_seed(5)
    values = {"A_log": lambda s: torch.log(torch.rand(s, generator=g) * 15 + 1), "dt_bias": lambda s: torch.randn(s, generator=g) - 3,
              "D": lambda s: 1 + torch.randn(s, generator=g) * 0.3, "conv1d.weight": lambda s: torch.randn(s, generator=g) * 0.4,
              "conv1d.bias": lambda s: torch.randn(s, generator=g) * 0.1}
    for path in sorted(glob.glob(os.path.join(out, "*.safetensors"))):
        with open(path, "r+b") as f:
            size, = struct.unpack("<Q", f.read(8))
            for name, t in json.loads(f.read(size)).items():
                make = values.get(name.split(".mixer.")[-1])
                if make:
                    f.seek(8 + size + t["data_offsets"][0])
                    f.write(make(t["shape"]).to(torch.bfloat16).view(torch.int16).numpy().tobytes())
    return out


def free_memory():
    """Bytes that a program can have without others being pushed out; 0 where the system does not say."""
    with contextlib.suppress(OSError), open("/proc/meminfo") as f:
        return next(int(line.split()[1]) << 10 for line in f if line.startswith("MemAvailable:"))
    return 0
