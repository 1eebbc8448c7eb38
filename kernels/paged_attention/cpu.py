"""Encoding and decoding pages on the CPU (Numba): one pass over the rows, rotating on the way.

Memory-bound by design: a row goes from its page to its place in the workspace once, through
registers, in the calling thread. See `kernels/rope/cpu.py` for bf16 and the cache of compiled code.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.gpu import runs_on_cpu
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.paged_attention.pages import PlainPages
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
    cos = np.empty((page_size, half), np.float64)
    sin = np.empty((page_size, half), np.float64)
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


@njit(nogil=True, cache=True)
def _encode(rows: Any, page_ids: Any, pages: Any) -> None:
    page_size = pages.shape[2]
    for token in range(rows.shape[0]):
        page, slot = page_ids[token // page_size], token % page_size
        for head in range(rows.shape[1]):
            source = rows[token, head]
            target = pages[page, head, slot]
            for i in range(source.shape[0]):
                target[i] = narrow(widen(source[i]), target)


@njit(nogil=True, cache=True)
def _place(rows: Any, out: Any, start: Any) -> None:
    for head in range(rows.shape[1]):
        for token in range(rows.shape[0]):
            source = rows[token, head]
            target = out[head, start + token]
            for i in range(source.shape[0]):
                target[i] = narrow(widen(source[i]), target)


@njit(nogil=True, cache=True, fastmath={"contract"})
def _place_rotated(
    rows: Any,
    positions: Any,
    height: Any,
    width: Any,
    t: Any,
    h: Any,
    w: Any,
    out: Any,
    start: Any,
) -> None:
    half = rows.shape[2] // 2
    cos = np.empty((1, half), np.float64)
    sin = np.empty((1, half), np.float64)
    for token in range(rows.shape[0]):
        fill_angles(positions[token], height, width, t, h, w, cos, sin)
        for head in range(rows.shape[1]):
            rotate_row(rows[token, head], cos[0], sin[0], out[head, start + token])


def supports(*tensors: Tensor) -> bool:
    """Whether the kernels here can read and write these tensors."""
    return all(runs_on_cpu(x.device) and x.dtype in SUPPORTED_DTYPES for x in tensors)


def encode(pages: PlainPages, page_ids: NDArray[np.integer], rows: Tensor) -> None:
    """See `encode.encode`; fp32 and bf16 only."""
    ids = np.ascontiguousarray(page_ids, dtype=np.int64)
    _encode(as_array(rows.contiguous()), ids, as_array(pages.data))


def place(
    rows: Tensor,
    positions: NDArray[np.int64] | None,
    out: Tensor,
    *,
    start: int,
    rope: RopeGrid | None,
) -> None:
    """See `decode.place`; fp32 and bf16 only."""
    source, target = as_array(rows.contiguous()), as_array(out)
    if rope is None:
        _place(source, target, start)
        return
    assert positions is not None
    _place_rotated(
        source,
        positions,
        rope.height,
        rope.width,
        *table_arrays(rope, int(positions.max(initial=0))),
        target,
        start,
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
