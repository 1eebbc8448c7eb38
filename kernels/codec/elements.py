"""Stored scales and centroids as Numba code sees them.

Numba has no type for most of them, so they are told apart by an integer type of their size: uint8
is E4M3, int16 is float16, uint16 is bfloat16.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from numba.core import types
from numba.extending import overload
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.codec.e4m3 import decode_e4m3, encode_e4m3, round_bits
from qvg_engine.kernels.rope.cpu import widen

_BITS = {torch.float16: torch.int16, torch.bfloat16: torch.uint16}


def as_elements(x: Tensor) -> NDArray[Any]:
    """A CPU tensor of bytes, scales or centroids as an array over the same memory."""
    bits = _BITS.get(x.dtype)
    return (x if bits is None else x.view(bits)).numpy()


@njit(nogil=True, cache=True)
def encode_float16(value: Any) -> Any:
    """A float32, not NaN, as float16 bits, int16; saturates at 65,504 (Numba code only)."""
    code = round_bits(value, 10, 113, 0x7BFF, 0x7E00)
    return np.int16(np.int64(code) - (32768 if value < 0 else 0))


@njit(nogil=True, cache=True)
def decode_float16(code: Any) -> Any:
    """Float16 bits, int16, of a finite number as a float32 (Numba code only)."""
    # The sign, spread over the bits above the exponent, is cut down to one.
    bits = np.int32(np.int32(code) << np.int32(13)) & np.int32(-0x70000001)
    # Too small by the difference of the biases, also if subnormal.
    return np.int32(bits).view(np.float32) * np.float32(2.0**112)


def read(element: Any) -> Any:
    """An element of `as_elements` as float32 (Numba code only)."""
    raise TypeError("only callable from Numba code")


@overload(read)
def _read(element: Any) -> Any:
    def from_e4m3(element: Any) -> Any:
        return decode_e4m3(element)

    def from_float16(element: Any) -> Any:
        return decode_float16(element)

    def from_wider(element: Any) -> Any:
        return widen(element)

    return {
        types.uint8: from_e4m3,
        types.int16: from_float16,
        types.uint16: from_wider,
        types.float32: from_wider,
    }[element]


def write(value: Any, like: Any) -> Any:
    """A float32 as an element of the scales `like` (Numba code only)."""
    raise TypeError("only callable from Numba code")


@overload(write)
def _write(value: Any, like: Any) -> Any:
    def to_e4m3(value: Any, like: Any) -> Any:
        return encode_e4m3(value)

    def to_float16(value: Any, like: Any) -> Any:
        return encode_float16(value)

    return to_e4m3 if like.dtype == types.uint8 else to_float16
