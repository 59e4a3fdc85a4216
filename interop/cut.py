#!/usr/bin/env python3
"""`longshore cut` and `--mtp` against transformers and Megatron.

    cut.py [--longshore PATH] [--only TEXT] [--work DIR]

A model is cut in both formats. The cut must load in transformers with no weight missing or left over, and give the logits of the
whole model whose modules were taken out by hand, to the bit; megatron-core must load the cut torch_dist checkpoint, its key set
exact, and hold the values of the cut Hugging Face folder; `generate` must run both and say the same; and to cut and convert must
be to convert and cut. What `--mtp drop` wrote loads too. Runs in the environment of setup.sh; ends with `N passed, N failed`.
"""
import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)

import checking

if __name__ == "__main__":
    checking.enter_environment()

import torch
from transformers import AutoModelForCausalLM

import logits_reference as reference
import make_hf

from checking import Failed

PROMPTS = [[1, 17, 42, 99, 3, 250, 7], list(range(5, 45))]


@dataclasses.dataclass(frozen=True)
class Cut:
    """A model of make_hf or a folder of the repository, the layers that are kept, and what else is asked for."""
    name: str
    model: str
    kept: tuple
    layers: str
    experts: int = 0
    mtp: str = "keep"
    config: dict = dataclasses.field(default_factory=dict, hash=False)

    def options(self):
        return ["--layers", self.layers, "--mtp", self.mtp] + (["--experts", self.experts] if self.experts else [])


CUTS = [
    Cut("bundled", "models/nemotron-h-10m", (0, 1, 2, 3, 7, 8), "0..4,7,8", experts=3),
    Cut("dense", "nemotron_h_dense", (1, 2, 3), "1..4"),
    Cut("moe", "nemotron_h_moe", (0, 3, 4), "0,3..5", experts=2),
    Cut("groups", "nemotron_h_moe_groups", (0, 1), "0..2", experts=4),
    Cut("latent-mtp", "nemotron_h_latent_mtp", (1, 2, 3), "1..4", experts=5),
    Cut("latent-dropped", "nemotron_h_latent_mtp", (0, 1, 3), "0,1,3", mtp="drop"),
]


class Checks(checking.Checks):
    width = 46

    def __init__(self, a, work):
        super().__init__()
        self.a, self.work = a, work

    def longshore(self, *argv):
        r = subprocess.run([self.a.longshore, *map(str, argv)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if r.returncode:
            raise Failed(f"`longshore {' '.join(map(str, argv))[:200]}` ended with {r.returncode}: {(r.stderr or r.stdout).strip()[-300:]}")
        return r.stdout

    def path(self, *parts):
        return os.path.join(self.work, *parts)

    def source(self, cut):
        if os.path.isdir(os.path.join(ROOT, cut.model)):
            return os.path.join(ROOT, cut.model)
        folder = self.path(cut.name)
        with contextlib.redirect_stdout(io.StringIO()):
            make_hf.tiny(folder, [cut.model], sum(map(ord, cut.name)), cut.config, 0, False)
        return os.path.join(folder, cut.model)

    def loads(self, folder):
        """transformers takes the folder as it is: nothing is missing but what it has no module for."""
        _, said = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        wrong = {k: v for k, v in said.items() if v and k != "unexpected_keys"}
        wrong["unexpected_keys"] = [k for k in said["unexpected_keys"] if not k.startswith("mtp.")]
        if any(wrong.values()):
            raise Failed(f"transformers says {wrong}")
        return f"{len(said['unexpected_keys'])} MTP tensors without a module"

    @torch.no_grad()
    def by_hand(self, cut, source, folder):
        """The logits of the whole model without the other layers and experts."""
        model, config = reference.load(source, torch.float32), json.load(open(os.path.join(folder, "config.json")))
        model.model.layers = torch.nn.ModuleList(model.model.layers[i] for i in cut.kept)
        for layer in model.model.layers if cut.experts else []:
            if layer.block_type != "moe":
                continue
            gate, experts, n = layer.mixer.gate, layer.mixer.experts, cut.experts
            gate.weight, gate.e_score_correction_bias = torch.nn.Parameter(gate.weight[:n].clone()), gate.e_score_correction_bias[:n].clone()
            gate.num_experts = experts.num_experts = n
            gate.num_group, gate.topk_group, gate.top_k = (config[k] for k in ("n_group", "topk_group", "num_experts_per_tok"))
            experts.up_proj, experts.down_proj = (torch.nn.Parameter(p[:n].clone()) for p in (experts.up_proj, experts.down_proj))
        ours = reference.load(folder, torch.float32)
        for ids in PROMPTS:
            want, got = (m(torch.tensor([ids]), use_cache=False).logits for m in (model, ours))
            if not torch.equal(want, got):
                raise Failed(f"logits differ by {float((want - got).abs().max()):.1e}")
        return f"{sum(map(len, PROMPTS))} positions equal to the bit, {len(cut.kept)} layers"

    def megatron(self, ckpt, hf, spec, *layout):
        argv = [sys.executable, "-W", "ignore", os.path.join(HERE, "load_megatron.py"), ckpt, "--hf", hf, "--spec", spec, "--strict", "raise_all"]
        r = subprocess.run([*argv, *map(str, layout)], capture_output=True, text=True)
        said = r.stdout.strip().splitlines()
        if r.returncode or not said or not said[-1].startswith("OK"):
            raise Failed("; ".join(said[:3]) or r.stderr[-300:])
        return said[-1]

    def generated(self, *models):
        said = [json.loads(self.longshore("generate", m, "--prompt-ids", "1,17,42", "--max-new", 16, "--ignore-eos", "--json"))["ids"] for m in models]
        if any(ids != said[0] for ids in said) or not said[0]:
            raise Failed(f"not the same tokens: {said}")
        return f"{len(said[0])} tokens"

    def model(self, cut):
        source = self.source(cut)
        whole, hf, mc, other = (self.path(f"{cut.name}-{part}") for part in ("whole", "hf", "mc", "other"))

        def write():
            self.longshore("convert", source, whole, "--tp", 2)
            self.longshore("cut", source, hf, *cut.options())
            self.longshore("cut", whole, mc, *cut.options())
            self.longshore("convert", hf, other)
            for folder in (hf, mc):
                self.longshore("verify", folder)
        self.check(f"{cut.name}: cut in both formats", write)
        self.check(f"{cut.name}: transformers loads it", self.loads, hf)
        self.check(f"{cut.name}: as cut by hand", self.by_hand, cut, source, hf)
        self.check(f"{cut.name}: megatron-core loads it", self.megatron, mc, hf, "te")
        self.check(f"{cut.name}: megatron-core loads it, tp2", self.megatron, mc, hf, "te", "--tp", 2)
        self.check(f"{cut.name}: generate runs both", self.generated, hf, mc)
        self.check(f"{cut.name}: cut and converted either way", lambda: self.longshore("diff", other, mc) and "")

    def without_mtp(self):
        """Conversions that leave multi-token prediction out, and an export that takes it from the source again."""
        source = self.source(Cut("mtp", "nemotron_h_latent_mtp", (), ""))
        whole, mc, hf, back = (self.path(f"mtp-{part}") for part in ("whole", "mc", "hf", "back"))

        def write():
            self.longshore("convert", source, whole)
            self.longshore("export", whole, hf, "--mtp", "drop")
            self.longshore("convert", source, mc, "--mtp", "drop")
            self.longshore("export", mc, back, "--base", source, "--mtp-from-base")
            self.longshore("verify", mc, "--against", source)
            self.longshore("verify", back, "--against", mc)
            self.longshore("diff", back, source)
        self.check("mtp: dropped both ways, lent again", write)
        self.check("mtp: transformers loads what dropped it", self.loads, hf)
        self.check("mtp: megatron-core loads what dropped it", self.megatron, mc, hf, "te")

    def run(self):
        chosen = [cut for cut in CUTS if self.a.only in cut.name]
        for cut in chosen:
            self.model(cut)
        if self.a.only in "mtp":
            self.without_mtp()
        if chosen:      # what is wrong must be seen: another layer, another number of experts
            cut = chosen[0]
            source, hf = self.source(cut), self.path(f"{cut.name}-hf")
            self.wrong("a layer more by hand", self.by_hand, dataclasses.replace(cut, kept=(*cut.kept, 0)), source, hf)
            self.wrong("megatron-core with the whole source", self.megatron, self.path(f"{cut.name}-mc"), source, "te")
        return self.summary()


if __name__ == "__main__":
    sys.exit(checking.main(__doc__, Checks, only={"default": "", "help": "models whose name contains this text"}))
