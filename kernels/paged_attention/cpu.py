"""Decoding pages on the CPU (Numba): one pass over the pages, rotating on the way.

Memory-bound by design: a row goes from its page to its place in the workspace once, through
registers. See `kernels/rope/cpu.py` for bf16 and for the cache of compiled code.
"""

from typing import Any

import numpy as np
from numba import njit
from torch import Tensor

from qvg_engine.kernels.paged_attention.pages import PlainPages
from qvg_engine.kernels.paged_attention.segments import PageRuns
from qvg_engine.kernels.rope import RopeGrid
from qvg_engine.kernels.rope.cpu import (
    SUPPORTED_DTYPES,
    as_array,
    fill_angles,
    narrow,
    rotate_row,
    table_arrays,
    widen,
)


@njit(nogil=True, cache=True)
def _copy(pages: Any, page_id: Any, begin: Any, end: Any, out: Any, start: Any) -> None:
    for entry in range(page_id.shape[0]):
        for head in range(pages.shape[1]):
            for slot in range(begin[entry], end[entry]):
                source = pages[page_id[entry], head, slot]
                target = out[head, start + slot - begin[entry]]
                # Element by element: an assignment of slices takes twice as long in Numba.
                for i in range(source.shape[0]):
                    target[i] = source[i]
        start += end[entry] - begin[entry]


@njit(nogil=True, cache=True)
def _convert(pages: Any, page_id: Any, begin: Any, end: Any, out: Any, start: Any) -> None:
    for entry in range(page_id.shape[0]):
        for head in range(pages.shape[1]):
            for slot in range(begin[entry], end[entry]):
                source = pages[page_id[entry], head, slot]
                target = out[head, start + slot - begin[entry]]
                for i in range(source.shape[0]):
                    target[i] = narrow(widen(source[i]), target)
        start += end[entry] - begin[entry]


@njit(nogil=True, cache=True, fastmath={"contract"})
def _rotate(
    pages: Any,
    page_id: Any,
    first_token: Any,
    begin: Any,
    end: Any,
    height: Any,
    width: Any,
    t: Any,
    h: Any,
    w: Any,
    out: Any,
    start: Any,
) -> None:
    page_size = pages.shape[2]
    half = pages.shape[3] // 2
    cos = np.empty((page_size, half), np.float32)
    sin = np.empty((page_size, half), np.float32)
    for entry in range(page_id.shape[0]):
        first = begin[entry]
        count = end[entry] - first
        position = first_token[entry] + first
        fill_angles(position, height, width, t, h, w, cos[:count], sin[:count])
        for head in range(pages.shape[1]):
            for row in range(count):
                source = pages[page_id[entry], head, first + row]
                rotate_row(source, cos[row], sin[row], out[head, start + row])
        start += count


def supports(pages: PlainPages, out: Tensor) -> bool:
    """Whether `decode` can read these pages into this buffer."""
    return (
        out.device.type == "cpu"
        and pages.data.dtype in SUPPORTED_DTYPES
        and out.dtype in SUPPORTED_DTYPES
    )


def decode(
    pages: PlainPages, runs: PageRuns, out: Tensor, *, start: int, rope: RopeGrid | None
) -> None:
    """See `decode.decode`; fp32 and bf16 only."""
    source, target = as_array(pages.data), as_array(out)
    if rope is not None:
        _rotate(
            source,
            runs.page_id,
            runs.first_token,
            runs.begin,
            runs.end,
            rope.height,
            rope.width,
            *table_arrays(rope, runs.largest_position),
            target,
            start,
        )
    elif source.dtype == target.dtype:
        _copy(source, runs.page_id, runs.begin, runs.end, target, start)
    else:
        _convert(source, runs.page_id, runs.begin, runs.end, target, start)
