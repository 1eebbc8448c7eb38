"""The rotation on the CPU (Numba), and the pieces that other kernels rotate rows with.

Numba has no bfloat16: bf16 tensors are seen as uint16 bits, widened by a shift and rounded to
nearest even. Compiled code is cached beside the source; Numba does not notice when an imported
helper changes, so delete `__pycache__` after editing one.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from numba.core import types
from numba.extending import overload
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.rope.grid import RopeGrid

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16)
"""What the Numba kernels read and write; other dtypes go through plain torch."""


def as_array(x: Tensor) -> NDArray[Any]:
    """A CPU tensor as an array over the same memory; bf16 as uint16 bits."""
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def widen(element: Any) -> Any:
    """An element of `as_array` as float32 (Numba code only)."""
    raise TypeError("only callable from Numba code")


@overload(widen)
def _widen(element: Any) -> Any:
    def from_bfloat16(element: Any) -> Any:
        return np.uint32(np.uint32(element) << np.uint32(16)).view(np.float32)

    def from_float32(element: Any) -> Any:
        return element

    return from_bfloat16 if element == types.uint16 else from_float32


def narrow(value: Any, like: Any) -> Any:
    """A float32 as an element of the array `like` (Numba code only)."""
    raise TypeError("only callable from Numba code")


@overload(narrow)
def _narrow(value: Any, like: Any) -> Any:
    def to_bfloat16(value: Any, like: Any) -> Any:
        bits = np.float32(value).view(np.uint32)
        odd = np.uint32((bits >> np.uint32(16)) & np.uint32(1))
        rounded = np.uint32(bits + np.uint32(np.uint32(0x7FFF) + odd))
        # The rounding would carry some NaNs over into zero.
        return np.uint16(0x7FC0) if np.isnan(value) else np.uint16(rounded >> np.uint32(16))

    def to_float32(value: Any, like: Any) -> Any:
        return value

    return to_bfloat16 if like.dtype == types.uint16 else to_float32


@njit(nogil=True, cache=True)
def fill_angles(
    position: Any, height: Any, width: Any, t: Any, h: Any, w: Any, cos: Any, sin: Any
) -> None:
    """Cosines and sines of the tokens from `position` on into `cos` and `sin` [tokens, pairs]."""
    frame = position // (height * width)
    row = position // width - frame * height
    column = position % width
    first_h = t.shape[2]
    first_w = first_h + h.shape[2]
    for token in range(cos.shape[0]):
        # Element by element: an assignment of slices takes twice as long in Numba.
        for i in range(t.shape[2]):
            cos[token, i] = t[frame, 0, i]
            sin[token, i] = t[frame, 1, i]
        for i in range(h.shape[2]):
            cos[token, first_h + i] = h[row, 0, i]
            sin[token, first_h + i] = h[row, 1, i]
        for i in range(w.shape[2]):
            cos[token, first_w + i] = w[column, 0, i]
            sin[token, first_w + i] = w[column, 1, i]
        column += 1
        if column == width:
            column = 0
            row += 1
            if row == height:
                row = 0
                frame += 1


@njit(inline="always")
def rotate_row(source: Any, cos: Any, sin: Any, target: Any) -> None:
    """Rotate one row [head_dim] of one head into `target` [head_dim], in fp64, rounded once."""
    half = cos.shape[0]
    # Two loops with one output each: LLVM vectorises them, but not one loop with both outputs.
    for i in range(half):
        value = np.float64(widen(source[i])) * cos[i] - np.float64(widen(source[half + i])) * sin[i]
        target[i] = narrow(np.float32(value), target)
    for i in range(half):
        value = np.float64(widen(source[i])) * sin[i] + np.float64(widen(source[half + i])) * cos[i]
        target[half + i] = narrow(np.float32(value), target)


@njit(nogil=True, cache=True, fastmath={"contract"})
def _rotate(
    x: Any, positions: Any, height: Any, width: Any, t: Any, h: Any, w: Any, out: Any
) -> None:
    cos = np.empty((1, x.shape[2] // 2), np.float64)
    sin = np.empty((1, x.shape[2] // 2), np.float64)
    for token in range(x.shape[0]):
        fill_angles(positions[token], height, width, t, h, w, cos, sin)
        for head in range(x.shape[1]):
            rotate_row(x[token, head], cos[0], sin[0], out[token, head])


def table_arrays(
    grid: RopeGrid, largest_position: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The tables of time, height and width, long enough for positions up to `largest_position`."""
    t, h, w = grid.axes(largest_position)
    return t.numpy(), h.numpy(), w.numpy()


def rotate(x: Tensor, grid: RopeGrid, positions: NDArray[np.int64]) -> Tensor:
    """Rotate x [tokens, heads, head_dim] (CPU, fp32 or bf16) to the positions [tokens].

    Returns a new tensor, equal to the reference up to the rounding of fused multiply-adds.
    """
    assert positions.shape == x.shape[:1], (positions.shape, x.shape)
    assert positions.min(initial=0) >= 0, positions.min()
    x = x.contiguous()
    out = torch.empty_like(x)
    t, h, w = table_arrays(grid, int(positions.max(initial=0)))
    _rotate(as_array(x), positions, grid.height, grid.width, t, h, w, as_array(out))
    return out
