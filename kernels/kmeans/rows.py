"""Short loops over rows, made so that the compiler turns them into vectors (Numba code only)."""

from typing import Any

import numpy as np
from numba import njit
from numba.extending import intrinsic

# No NaN, and 0 may be -0. Numba's own minimum does not say so of its choice, only of its
# comparison: then the compiler must take the numbers one by one.
_FLAGS = ("nnan", "nsz")
_COLUMNS = 8


@intrinsic
def lesser(typing_context: Any, one: Any, other: Any) -> Any:
    """The lesser of two fp32, neither of them NaN."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        is_less = builder.fcmp_ordered("<", *args, flags=_FLAGS)
        return builder.select(is_less, *args, flags=_FLAGS)

    return one(one, one), generate


@njit(nogil=True, cache=True)
def largest(rows: Any) -> Any:
    """The largest magnitude in rows, fp32 [., .], contiguous."""
    least = np.float32(0)
    for row in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            least = lesser(least, -abs(rows[row, i]))
    return -least


@njit(nogil=True, cache=True)
def transpose(rows: Any, first: Any, columns: Any) -> None:
    """columns[i, j] = rows[first + j, i]: as many rows as there are columns."""
    num_channels, num_rows = columns.shape
    whole = num_rows - num_rows % _COLUMNS
    for start in range(0, whole, _COLUMNS):
        for i in range(num_channels):
            for j in range(start, start + _COLUMNS):
                columns[i, j] = rows[first + j, i]
    for j in range(whole, num_rows):
        for i in range(num_channels):
            columns[i, j] = rows[first + j, i]
