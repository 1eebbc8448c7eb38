"""Floating-point numbers of a byte: E4M3, by integer arithmetic on the bits.

Sign, four bits of exponent (bias 7), three of mantissa; no infinity; 0x7F and 0xFF are NaN. The
largest number is 448, the smallest 2**-9. Rounding is to nearest even and saturates at 448, which
torch's own cast does not, and is the same on devices that have no such type.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

LARGEST = 448.0
SMALLEST_NORMAL = 2.0**-6
_LARGEST_CODE = 0x7E
_NAN_CODE = 0x7F
_MANTISSA_BITS = 3
# The fp32 exponent, as it is stored, of the smallest number that is not subnormal: 2**-6.
_LEAST_EXPONENT = 121
_DROPPED = 23 - _MANTISSA_BITS


def to_e4m3(x: Tensor) -> Tensor:
    """fp32 to E4M3 bits, uint8; infinity becomes 448, NaN stays NaN."""
    bits = x.view(torch.int32)
    magnitude = bits & 0x7FFFFFFF
    exponent = magnitude >> 23
    normal = _round_off(magnitude, torch.tensor(_DROPPED, dtype=torch.int32, device=x.device))
    normal = normal - ((_LEAST_EXPONENT - 1) << _MANTISSA_BITS)
    # More than 25 bits dropped of 24 leave 0 all the same.
    dropped = (_DROPPED + _LEAST_EXPONENT - exponent).clamp(1, 25)
    subnormal = _round_off((magnitude & 0x7FFFFF) | 0x800000, dropped)
    code = torch.where(exponent < _LEAST_EXPONENT, subnormal, normal).clamp(max=_LARGEST_CODE)
    code = torch.where(magnitude > 0x7F800000, _NAN_CODE, code)
    return (code | ((bits >> 24) & 0x80)).to(torch.uint8)


def from_e4m3(code: Tensor) -> Tensor:
    """E4M3 bits, uint8, to fp32."""
    bits = code.to(torch.int32)
    magnitude = bits & 0x7F
    # As fp32 bits the number is too small by the difference of the biases, also if subnormal.
    value = (magnitude << _DROPPED).view(torch.float32) * 2.0**120
    value = torch.where(magnitude == _NAN_CODE, torch.nan, value)
    return torch.where(bits > 0x7F, -value, value)


def _round_off(x: Tensor, count: Tensor) -> Tensor:
    """x >> count, rounded to nearest even."""
    return (x + ((1 << (count - 1)) - 1) + ((x >> count) & 1)) >> count


@njit(nogil=True, cache=True)
def round_bits(
    value: Any, mantissa_bits: Any, least_exponent: Any, largest_code: Any, nan_code: Any
) -> Any:
    """The code, int64 and without a sign, of the magnitude of a float32 in a smaller type.

    least_exponent: the fp32 exponent, as it is stored, of the smallest number not subnormal.
    """
    magnitude = np.int64(np.float32(value).view(np.uint32) & np.uint32(0x7FFFFFFF))
    if magnitude > 0x7F800000:
        return np.int64(nan_code)
    exponent = magnitude >> 23
    dropped = np.int64(23 - mantissa_bits)
    offset = np.int64((least_exponent - 1) << mantissa_bits)
    if exponent < least_exponent:
        dropped = min(dropped + least_exponent - exponent, np.int64(25))
        magnitude = (magnitude & 0x7FFFFF) | 0x800000
        offset = np.int64(0)
    half = (np.int64(1) << (dropped - 1)) - 1
    code = (magnitude + half + ((magnitude >> dropped) & 1)) >> dropped
    return min(code - offset, np.int64(largest_code))


@njit(nogil=True, cache=True)
def encode_e4m3(value: Any) -> Any:
    """A float32 as E4M3 bits, uint8 (Numba code only)."""
    sign = (np.float32(value).view(np.uint32) >> np.uint32(24)) & np.uint32(0x80)
    code = round_bits(value, _MANTISSA_BITS, _LEAST_EXPONENT, _LARGEST_CODE, _NAN_CODE)
    return np.uint8(code | np.int64(sign))


@njit(nogil=True, cache=True)
def decode_e4m3(code: Any) -> Any:
    """E4M3 bits as a float32 (Numba code only)."""
    magnitude = np.int32(np.int32(code) & np.int32(0x7F))
    offset = np.int32((_LEAST_EXPONENT - 1) << 23)
    value = np.int32((magnitude << np.int32(_DROPPED)) + offset).view(np.float32)
    # Not as in `from_e4m3`: processors are slow to multiply what is subnormal in fp32.
    if magnitude < 1 << _MANTISSA_BITS:
        value = np.float32(magnitude) * np.float32(2.0**-9)
    if magnitude == _NAN_CODE:
        value = np.float32(np.nan)
    return -value if code > 0x7F else value
