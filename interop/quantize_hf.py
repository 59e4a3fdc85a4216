"""Quantizes a Hugging Face model with NVIDIA ModelOpt through transformers and exports it: `quantize_hf.py HF OUT CONFIG`."""
import sys


def main():
    hf, out, name = sys.argv[1:]
    import megatron_cpu                                                     # noqa: F401  (its stand-ins, before modelopt)
    import modelopt.torch.quantization as mtq
    import quantize_modelopt as Q
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM
    Q.stand_in_kernels()
    model = AutoModelForCausalLM.from_pretrained(hf, dtype="auto", attn_implementation="eager").eval()

    def forward(m):
        with torch.no_grad():
            for t in Q.tokens(m.config.vocab_size):
                m(t, use_cache=False)
    model = mtq.quantize(model, Q.config(name), forward)
    export_hf_checkpoint(model, export_dir=out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
