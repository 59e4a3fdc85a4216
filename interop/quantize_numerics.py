"""Fake quantization where ModelOpt has GPU kernels only, in slow numpy: NVFP4 with dynamic blocks, and the MX formats.

float32 arithmetic, IEEE division, rounding to nearest even. Logits depend on it; amax values, scales and packed bytes do not.
"""
import numpy as np
import torch

E2M1 = np.array([0, .5, 1, 1.5, 2, 3, 4, 6], np.float32)
MX_MAX = {"e4m3": 448.0, "e2m1": 6.0, "e3m2": 28.0, "e2m3": 7.5, "int8": 127.0}
f32 = np.float32

def to_e4m3(x: np.ndarray) -> np.ndarray:
    """fp32 -> nearest e4m3fn value (RNE), saturating; NaN stays NaN."""
    t = torch.from_numpy(np.ascontiguousarray(x, np.float32)).clamp(-448.0, 448.0)
    return t.to(torch.float8_e4m3fn).to(torch.float32).numpy()


def e2m1_round(a: np.ndarray) -> np.ndarray:
    """|x|/scale -> E2M1 magnitude; ties to even code (0.25->0 .75->1 1.25->1 1.75->2 2.5->2 3.5->4 5->4)."""
    out = np.full(a.shape, 6.0, np.float32)
    for hi, val, incl in ((5.0, 4.0, True), (3.5, 3.0, False), (2.5, 2.0, True), (1.75, 1.5, False),
                          (1.25, 1.0, True), (0.75, .5, False), (0.25, 0., True)):
        m = (a <= f32(hi)) if incl else (a < f32(hi))
        out[m] = val
    return out


def nvfp4_fake_dynamic(x: np.ndarray, amax: float, block=16) -> tuple[np.ndarray, np.ndarray]:
    """Triton `fp4_fake_quant_block` semantics (GPU with cc>=8.9)."""
    x = x.astype(np.float32)
    g = f32(f32(amax) / f32(6.0 * 448.0))
    g = g if g > 0 else f32(1e-12)
    xb = x.reshape(*x.shape[:-1], -1, block)
    ax = np.abs(xb)
    bmax = ax.max(-1, keepdims=True)
    s = to_e4m3(np.minimum(bmax / f32(f32(6.0) * g), f32(448))) * g
    s = s.astype(np.float32)
    s_eff = np.where(s >= f32(1e-5), s, f32(1.0)).astype(np.float32)
    q = e2m1_round((ax / s_eff).astype(np.float32)) * s_eff
    y = np.where(xb >= 0, q, -q).astype(np.float32)
    return y.reshape(x.shape), s_eff[..., 0]


def _grid(fmt):
    if fmt == "e2m1":
        return E2M1
    e, m = (3, 2) if fmt == "e3m2" else (2, 3)
    bias = 2 ** (e - 1) - 1
    v = []
    for c in range(1 << (e + m)):
        ex, ma = c >> m, c & ((1 << m) - 1)
        v.append((ma / (1 << m)) * 2.0 ** (1 - bias) if ex == 0 else (1 + ma / (1 << m)) * 2.0 ** (ex - bias))
    return np.array(v, np.float32)


def _table_round(a, grid):
    bounds = ((grid[1:].astype(np.float64) + grid[:-1]) / 2).astype(np.float32)
    lo = np.searchsorted(bounds, a, side="left")          # bounds[lo-1] < a <= bounds[lo]
    lo_c = np.minimum(lo, len(bounds) - 1)
    tie = (lo < len(bounds)) & (a == bounds[lo_c])
    return grid[np.where(tie & (lo % 2 == 1), lo + 1, lo)]


def e8m0_ceil(ratio: np.ndarray) -> np.ndarray:
    """CUDA NV algorithm: unbiased exponent = clamp(ceil(log2 ratio)) by bit inspection."""
    b = ratio.astype(np.float32).view(np.uint32)
    ef, sf = (b >> 23) & 0xFF, b & 0x7FFFFF
    up = (sf > 0) & (ef != 0xFE) & ~((ef == 0) & (sf <= 0x400000))
    return np.where(up, ef.astype(np.int64) - 126, ef.astype(np.int64) - 127)


def mx_fake(x, fmt, block=32):
    """CUDA `fused_amax_convert`, E8M0 scales, no global amax. Last dim zero-padded to the block."""
    x = x.astype(np.float32)
    n = x.shape[-1]
    pad = (-n) % block
    xp = np.concatenate([x, np.zeros((*x.shape[:-1], pad), np.float32)], -1) if pad else x
    xb = xp.reshape(*xp.shape[:-1], -1, block)
    am = np.minimum(np.nan_to_num(np.abs(xb), nan=0.0, posinf=3.4028235e38), f32(3.4028235e38)).max(-1, keepdims=True)
    e = np.where(am == 0, 0, e8m0_ceil(am / f32(MX_MAX[fmt])))
    uns, sc = np.exp2(e.astype(np.float32)), np.exp2(-e.astype(np.float32))
    a = (np.abs(xb) * sc).astype(np.float32)
    if fmt == "e4m3":
        q = to_e4m3(a)
    elif fmt == "int8":
        q = np.minimum(np.rint(a), 127).astype(np.float32)
    else:
        q = _table_round(np.where(np.isfinite(a), a, f32(3e38)), _grid(fmt))
    y = (np.sign(xb) * (q * uns)).astype(np.float32)
    y = y.reshape(xp.shape)[..., :n]
    return y, e[..., 0].astype(np.int32)


def block_quantize(inputs, block_size, amax, num_bits, exponent_bits, scale_num_bits, scale_exponent_bits):
    """In place of `tensor_quant.dynamic_block_quantize_op`."""
    x = inputs.detach().float().numpy()
    if (scale_exponent_bits, scale_num_bits - scale_exponent_bits - 1) == (8, 0):
        fmt = {(4, 2): "e2m1", (8, 4): "e4m3", (6, 3): "e3m2", (6, 2): "e2m3", (8, 0): "int8"}[(num_bits, exponent_bits)]
        y, _ = mx_fake(x, fmt, block_size)
    else:
        n, pad = x.shape[-1], -x.shape[-1] % block_size
        x = np.concatenate([x, np.zeros((*x.shape[:-1], pad), np.float32)], -1)
        y = nvfp4_fake_dynamic(x, amax.float().max().item(), block_size)[0][..., :n]
    return torch.from_numpy(np.ascontiguousarray(y)).to(inputs.dtype)
