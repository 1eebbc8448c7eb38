"""E4M3 in Triton by integer arithmetic: sm_80 has no such type, the interpreter no such cast."""

import triton
import triton.language as tl


@triton.jit
def narrow_e4m3(x: tl.tensor) -> tl.tensor:
    """fp32 as E4M3 bits, uint8; see `e4m3.to_e4m3`."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    normal = (magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20
    # Beside 2^14 the last bit of fp32 stands for 2^-9, the unit of what is subnormal in E4M3.
    beside = tl.abs(x) + 16384.0
    subnormal = beside.to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(magnitude < 0x3C800000, subnormal, tl.minimum(normal - 960, 0x7E))
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def widen_e4m3(code: tl.tensor) -> tl.tensor:
    """E4M3 bits, uint8, as fp32; see `e4m3.from_e4m3`."""
    code = code.to(tl.int32)
    magnitude = code & 0x7F
    value = ((magnitude << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    value = tl.where(magnitude < 8, magnitude.to(tl.float32) * 0.001953125, value)
    value = tl.where(magnitude == 0x7F, float("nan"), value)
    return tl.where(code > 0x7F, -value, value)
