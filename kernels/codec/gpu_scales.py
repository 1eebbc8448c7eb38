"""Scales in Triton: rounding to how they are stored, and what the rules of `CodecSpec` have in
common.
"""

import triton
import triton.language as tl

from qvg_engine.kernels.codec.gpu_rows import widen_e4m3


@triton.jit
def _round_off(x: tl.tensor, count: tl.tensor) -> tl.tensor:
    """x >> count, rounded to nearest even; see `e4m3._round_off`."""
    return (x + ((1 << (count - 1)) - 1) + ((x >> count) & 1)) >> count


@triton.jit
def narrow_e4m3(value: tl.tensor) -> tl.tensor:
    """fp32 to E4M3 bits, uint8; see `e4m3.to_e4m3`."""
    bits = value.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    exponent = magnitude >> 23
    twenty = tl.zeros_like(magnitude) + 20
    normal = _round_off(magnitude, twenty) - (120 << 3)
    dropped = tl.minimum(tl.maximum(141 - exponent, 1), 25)
    subnormal = _round_off((magnitude & 0x7FFFFF) | 0x800000, dropped)
    code = tl.minimum(tl.where(exponent < 121, subnormal, normal), 0x7E)
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def narrow(value: tl.tensor, scales: tl.tensor) -> tl.tensor:
    """fp32 as `scales` points to: E4M3 bits, or fp16 up to its largest number."""
    if scales.dtype.element_ty == tl.uint8:
        stored = narrow_e4m3(value)
    else:
        stored = tl.where(value > 65504.0, 65504.0, value).to(tl.float16)
    return stored


@triton.jit
def as_stored(value: tl.tensor, scales: tl.tensor) -> tl.tensor:
    """fp32 rounded as `scales` stores it."""
    stored = narrow(value, scales)
    return widen_e4m3(stored) if scales.dtype.element_ty == tl.uint8 else stored.to(tl.float32)


@triton.jit
def unit_of(largest: tl.tensor) -> tl.tensor:
    """The power of two that brings numbers up to `largest` near 1, so that squares stay in range.

    It may be too small for fp32 where they are tiny, or too large; the nearest one does then.
    """
    exponent = largest.to(tl.int32, bitcast=True) >> 23
    bits = (254 - tl.minimum(tl.maximum(exponent, 1), 253)) << 23
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def inverse_of(unit: tl.tensor) -> tl.tensor:
    """1 / unit of a power of two of `unit_of`, fp64."""
    bits = (254 << 23) - unit.to(tl.int32, bitcast=True)
    return bits.to(tl.float32, bitcast=True).to(tl.float64)
