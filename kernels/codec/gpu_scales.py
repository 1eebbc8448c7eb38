"""Scales in Triton: rounding to how they are stored, and what the rules of `CodecSpec` have in
common.
"""

import triton
import triton.language as tl

from qvg_engine.kernels.codec.gpu_e4m3 import narrow_e4m3, widen_e4m3


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
