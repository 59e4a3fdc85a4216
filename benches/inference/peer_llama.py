#!/usr/bin/env python3
"""llama.cpp (as llama-cpp-python builds it) on one GGUF model: one prefill, then decode steps. Started by run.py and agree.py.

    peer_llama.py MODEL.gguf < JOB        JOB and the answer: see peer.py

The prompt goes through one llama_decode with logits for its last token only, each step through one more; n_ctx, n_batch and
n_ubatch are the same. What is timed are llama.cpp's defaults; with `exact` the KV cache is f32 and flash attention, which computes
in f16, is off.
"""
import ctypes
import sys

import llama_cpp as L
import numpy as np

import peer

ERROR = 4       # GGML_LOG_LEVEL_ERROR


class Llama:
    def __init__(self, path, threads, context, exact):
        self.log = L.llama_log_callback(lambda level, text, data: level == ERROR and sys.stderr.write(text.decode()))
        L.llama_log_set(self.log, ctypes.c_void_p(0))
        L.llama_backend_init()
        self.model = L.llama_model_load_from_file(path.encode(), L.llama_model_default_params())
        if not self.model:
            sys.exit(f"{path}: llama.cpp cannot load it")
        p = L.llama_context_default_params()
        p.n_ctx = p.n_batch = p.n_ubatch = context
        p.n_threads = p.n_threads_batch = threads
        if exact:
            p.type_k = p.type_v = L.GGML_TYPE_F32
            p.flash_attn_type = L.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.ctx = L.llama_init_from_model(self.model, p)
        self.vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(self.model))
        self.name = f"llama.cpp (llama-cpp-python {L.__version__})"

    def reset(self):
        L.llama_memory_clear(L.llama_get_memory(self.ctx), True)

    def forward(self, ids):
        """Feeds the ids after what was fed before; the logits of the last one."""
        tokens = (L.llama_token * len(ids))(*ids)
        if L.llama_decode(self.ctx, L.llama_batch_get_one(tokens, len(ids))):
            sys.exit("llama_decode failed")
        return np.ctypeslib.as_array(L.llama_get_logits_ith(self.ctx, -1), (self.vocab,))


if __name__ == "__main__":
    peer.serve(lambda job: Llama(sys.argv[1], job["threads"], job["context"], job.get("exact")))
