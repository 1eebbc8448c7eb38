"""Codes of 1, 2 or 4 bits in bytes, in planes.

Of `bits` bits a byte holds 8 / bits. With W bytes, byte j holds the channels j, j + W, j + 2 * W
and so on, the first in the lowest bits: the codes at one place of all bytes, a plane, are of
consecutive channels, so that unpacking is a shift and a mask of whole vectors. Channels are padded
with code 0 to a multiple of 8 / bits.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor


def packed_size(num_channels: int, bits: int) -> int:
    """Bytes that the codes of so many channels take."""
    return -(-num_channels * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [..., channels], all below 2**bits, to uint8 [..., bytes]."""
    size = packed_size(codes.shape[-1], bits)
    padded = torch.nn.functional.pad(codes, (0, size * (8 // bits) - codes.shape[-1]))
    packed = torch.zeros_like(padded[..., :size])
    for plane in range(8 // bits):
        packed |= padded[..., plane * size : (plane + 1) * size] << (plane * bits)
    return packed


def unpack(packed: Tensor, bits: int, num_channels: int) -> Tensor:
    """What `pack` was given: codes uint8 [..., channels]."""
    planes = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return torch.cat(planes, dim=-1)[..., :num_channels]


@njit(nogil=True, cache=True)
def pack_row(codes: Any, bits: Any, packed: Any) -> None:
    """`pack` of codes [channels] into `packed` [bytes] (Numba code only)."""
    size = packed.shape[0]
    for j in range(size):
        byte = np.int32(0)
        shift = np.int32(0)
        for channel in range(j, codes.shape[0], size):
            byte |= np.int32(codes[channel]) << shift
            shift += np.int32(bits)
        packed[j] = np.uint8(byte)
