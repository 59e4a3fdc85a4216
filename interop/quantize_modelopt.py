"""What the ModelOpt side of the quantization check shares: tokens, configs, what a model's quantizers are."""
import copy
import json

import torch


def tokens(vocab=256):
    """Two batches of 2 x 32 ids: calibration, and the logits."""
    g = torch.Generator().manual_seed(7)
    return [torch.randint(3, vocab, (2, 32), generator=g) for _ in range(2)]


def write_tokens(path):
    """The same as a file of calibration samples. Returns its path."""
    with open(path, "w") as f:
        f.writelines(json.dumps({"input_ids": row}) + "\n" for t in tokens() for row in t.tolist())
    return path


def config(name):
    """NAME, or NAME+KV_NAME, of modelopt.torch.quantization, or a recipe's name."""
    if "/" in name:
        from modelopt.recipe import load_recipe
        return load_recipe(name).quantize.model_dump()
    import modelopt.torch.quantization as mtq
    first, *rest = name.split("+")
    cfg = copy.deepcopy(getattr(mtq, first))
    for r in rest:
        cfg["quant_cfg"] += copy.deepcopy(getattr(mtq, r))["quant_cfg"]
    return cfg


def stand_in_kernels():
    from modelopt.torch.quantization import tensor_quant
    import quantize_numerics
    tensor_quant.dynamic_block_quantize_op = quantize_numerics.block_quantize


def summary(model):
    """Per quantizer: whether it is on, and with which attributes."""
    from modelopt.torch.quantization.nn import TensorQuantizer
    out = {}
    for n, q in model.named_modules():
        if isinstance(q, TensorQuantizer):
            amax = getattr(q, "_amax", None)
            out[n] = dict(enabled=q.is_enabled, num_bits=str(q._num_bits), axis=str(q._axis), dynamic=q._dynamic, cls=type(q).__name__,
                          block_sizes={str(k): str(v) for k, v in (q._block_sizes or {}).items()},
                          amax=[list(amax.shape), str(amax.dtype)] if amax is not None else None)
    return out
