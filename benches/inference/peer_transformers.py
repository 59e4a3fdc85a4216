#!/usr/bin/env python3
"""transformers on one Hugging Face folder: one prefill, then cached decode steps. Started by run.py and agree.py.

    peer_transformers.py MODEL bf16|f32 [--attention sdpa|eager] [--experts NAME] < JOB        JOB and the answer: see peer.py

The f32 model is the bf16 checkpoint loaded as f32. No mamba kernels are installed: the torch path of the Mamba layers runs.
"""
import argparse
import sys

import torch
import transformers

import peer


class Transformers:
    def __init__(self, a, threads):
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[a.dtype]
        how = {"experts_implementation": a.experts} if a.experts else {}
        self.model = transformers.AutoModelForCausalLM.from_pretrained(a.model, dtype=dtype, attn_implementation=a.attention, **how)
        self.model.eval()
        self.name = f"transformers {transformers.__version__} (torch {torch.__version__})"
        self.reset()

    def reset(self):
        self.cache = None

    def forward(self, ids):
        """Feeds the ids after what was fed before; the logits of the last one."""
        out = self.model(input_ids=torch.tensor([ids]), past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        return out.logits[0, -1].numpy()


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("dtype", choices=["bf16", "f32"])
    ap.add_argument("--attention", default="sdpa")
    ap.add_argument("--experts")
    arguments = ap.parse_args()
    peer.serve(lambda job: Transformers(arguments, job["threads"]))
