"""pool.py for the quantization check: the same requests, with ModelOpt loaded too. quantize.py starts two of them.

With LONGSHORE_INTEROP_COMPUTE=1 models compute (local modules, no Transformer Engine); without it they have the modules of
the Transformer Engine, by parameters only. Scripts: quantize_models, quantize_hf (no ranks), quantize_megatron (one per rank).
"""
import pool


def preload():
    import quantize_megatron
    quantize_megatron.preload()
    import transformers                                                                         # noqa: F401
    if quantize_megatron.M.COMPUTE:
        from transformers import AutoModelForCausalLM                                           # noqa: F401
        import quantize_hf, quantize_models, tiny_models                                        # noqa: F401


if __name__ == "__main__":
    pool.preload = preload
    pool.main()
