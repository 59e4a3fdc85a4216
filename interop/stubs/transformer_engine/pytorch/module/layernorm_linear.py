from .._impl import LayerNormLinear  # noqa
class _LayerNormLinear: pass
def general_gemm(*a, **k): raise NotImplementedError
