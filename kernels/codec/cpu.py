"""Decoding on the CPU (Numba), bit-equal to the reference.

The rows of a page are built in a scratch buffer that stays in the cache, and rotated or rounded
from there into their places, in the calling thread. Encoding is in `cpu_store.py`. See
`kernels/rope/cpu.py` for the cache of compiled code.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from torch import Tensor

from qvg_engine.kernels.codec.elements import as_elements, read
from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.rope import RopeGrid
from qvg_engine.kernels.rope.cpu import (
    SUPPORTED_DTYPES,
    as_array,
    fill_angles,
    narrow,
    rotate_row,
    table_arrays,
)


class PageArrays(NamedTuple):
    """The arrays of `CodedPages`; `levels` has an entry for every possible code."""

    codes: Any
    ids: Any
    scales: Any
    channel_groups: Any
    levels: Any
    bits: Any


class BookArrays(NamedTuple):
    """The codebooks that a call needs, side by side in fp32, see `Codebooks.gather`."""

    centroids: Any
    widths: Any


class _Scratch(NamedTuple):
    """What rows of a page are decoded in, and with.

    code: int32 [channels, padded]; planes: the same memory, [planes, bytes].
    group_scale, scale: fp32, of groups, of channels.
    rows: fp32 [page_size, head_dim], the decoded rows.
    """

    code: Any
    planes: Any
    group_scale: Any
    scale: Any
    rows: Any


@njit(nogil=True, cache=True)
def _make_scratch(pages: Any) -> Any:
    head_dim = pages.channel_groups.shape[0]
    page_size, size = pages.codes.shape[2:]
    planes = np.empty((8 // pages.bits, size), np.int32)
    return _Scratch(
        planes.reshape(-1),
        planes,
        np.empty(pages.scales.shape[3], np.float32),
        np.empty(head_dim, np.float32),
        np.empty((page_size, head_dim), np.float32),
    )


@njit(nogil=True, cache=True)
def _fill_rows(
    pages: Any, books: Any, page: Any, book: Any, head: Any, begin: Any, end: Any, scratch: Any
) -> None:
    """Decode the slots [begin, end) of a page into the first rows of the scratch."""
    # Views are made for all the rows at once: for each of them, they would take half of the time.
    packed, stored = pages.codes[page, head], pages.scales[page, head]
    centroids, width = books.centroids[book, head], books.widths[book, head]
    ids = pages.ids[page, head]
    groups, levels = pages.channel_groups, pages.levels
    code, planes, group_scale, scale, rows = scratch
    head_dim = rows.shape[1]
    mask = np.int32((1 << pages.bits) - 1)
    level_0, level_1, level_2, level_3 = levels[0], levels[1], levels[2], levels[3]
    for slot in range(begin, end):
        row = slot - begin
        for group in range(stored.shape[1]):
            group_scale[group] = read(stored[slot, group])
        for i in range(head_dim):
            scale[i] = group_scale[groups[i]]
        shift = np.int32(0)
        for plane in range(planes.shape[0]):
            for j in range(planes.shape[1]):
                # Not as uint8: that would become int64, four times as wide.
                planes[plane, j] = (np.int32(packed[slot, j]) >> shift) & mask
            shift += np.int32(pages.bits)
        if pages.bits > 2:
            for i in range(head_dim):
                rows[row, i] = levels[code[i]] * scale[i] * width[i]
        else:
            # Choosing takes a third of the time of looking up.
            for i in range(head_dim):
                low = level_1 if code[i] & 1 else level_0
                high = level_3 if code[i] & 1 else level_2
                rows[row, i] = (high if code[i] & 2 else low) * scale[i] * width[i]
        for stage in range(ids.shape[0]):
            centroid = np.int64(ids[stage, slot])
            for i in range(head_dim):
                rows[row, i] += centroids[stage, centroid, i]


@njit(nogil=True, cache=True)
def _decode(
    pages: Any,
    books: Any,
    page_id: Any,
    book: Any,
    begin: Any,
    end: Any,
    out: Any,
    start: Any,
) -> None:
    scratch = _make_scratch(pages)
    rows = scratch.rows
    for entry in range(page_id.shape[0]):
        count = end[entry] - begin[entry]
        for head in range(out.shape[0]):
            _fill_rows(
                pages, books, page_id[entry], book[entry], head, begin[entry], end[entry], scratch
            )
            for row in range(count):
                for i in range(rows.shape[1]):
                    out[head, start + row, i] = narrow(rows[row, i], out)
        start += count


@njit(nogil=True, cache=True)
def _decode_rotated(
    pages: Any,
    books: Any,
    page_id: Any,
    book: Any,
    first_token: Any,
    begin: Any,
    end: Any,
    height: Any,
    grid_width: Any,
    t: Any,
    h: Any,
    w: Any,
    out: Any,
    start: Any,
) -> None:
    scratch = _make_scratch(pages)
    rows = scratch.rows
    cos = np.empty((rows.shape[0], rows.shape[1] // 2), np.float64)
    sin = np.empty((rows.shape[0], rows.shape[1] // 2), np.float64)
    for entry in range(page_id.shape[0]):
        count = end[entry] - begin[entry]
        position = first_token[entry] + begin[entry]
        fill_angles(position, height, grid_width, t, h, w, cos[:count], sin[:count])
        for head in range(out.shape[0]):
            _fill_rows(
                pages, books, page_id[entry], book[entry], head, begin[entry], end[entry], scratch
            )
            for row in range(count):
                rotate_row(rows[row], cos[row], sin[row], out[head, start + row])
        start += count


def supports(*tensors: Tensor) -> bool:
    """Whether the kernels here can read and write these pages."""
    return all(x.device.type == "cpu" for x in tensors)


def writes(out: Tensor) -> bool:
    """Whether `decode` can write to such a tensor."""
    return out.device.type == "cpu" and out.dtype in SUPPORTED_DTYPES


def page_arrays(pages: CodedPages) -> PageArrays:
    """What Numba code sees of pages."""
    levels = pages.spec.levels
    return PageArrays(
        codes=as_elements(pages.codes),
        ids=as_elements(pages.ids),
        scales=as_elements(pages.scales),
        channel_groups=pages.channel_groups,
        levels=np.array(levels + (16 - len(levels)) * (0.0,), np.float32),
        bits=np.int64(pages.spec.bits),
    )


def decode(
    pages: CodedPages, runs: PageRuns, out: Tensor, *, start: int, rope: RopeGrid | None
) -> None:
    """See `decode.decode`; `out` in fp32 or bf16 only."""
    stored, target = page_arrays(pages), as_array(out)
    used, book = np.unique(pages.slot_of_page[runs.page_id], return_inverse=True)
    books = BookArrays(*(x.numpy() for x in pages.codebooks.gather(used)))
    if rope is None:
        _decode(stored, books, runs.page_id, book, runs.begin, runs.end, target, start)
        return
    _decode_rotated(
        stored,
        books,
        runs.page_id,
        book,
        runs.first_token,
        runs.begin,
        runs.end,
        rope.height,
        rope.width,
        *table_arrays(rope, runs.largest_position),
        target,
        start,
    )
