"""Decoding on the CPU (Numba), bit-equal to the reference.

The codebooks of a call are widened once, then rows of a page are built in a scratch buffer that
stays in the cache, and rotated or rounded from there into their places. Large calls use several
threads. Encoding is in `cpu_store.py`. See `kernels/rope/cpu.py` for the cache of compiled code.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from torch import Tensor

from qvg_engine.kernels.codec.arrays import page_arrays, refinement_arrays
from qvg_engine.kernels.codec.cpu_trellis import load_words, unpack_row
from qvg_engine.kernels.codec.cpu_vectors import NO_KIND, fill_rows, find_kind
from qvg_engine.kernels.codec.elements import read
from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.gpu import runs_on_cpu
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
from qvg_engine.kernels.threads import for_heads

_ELEMENT_WORK = 64
"""Multiply-adds that take as long as decoding an element."""


class _Books(NamedTuple):
    """The codebooks that a call needs, in fp32.

    of_entry: int64 [entries], which of them each entry of the block table refers to.
    centroids: [books, heads, stages, most centroids, head_dim]; widths: [books, heads, head_dim].
    """

    of_entry: Any
    centroids: Any
    widths: Any


class _Scratch(NamedTuple):
    """What rows of a page are decoded in, and with.

    code: int32 [channels, padded]; planes: the same memory, [planes, bytes].
    group_scale: fp32 [page_size, groups]; scale: fp32, of channels.
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
        np.empty((page_size, pages.scales.shape[3]), np.float32),
        np.empty(head_dim, np.float32),
        np.empty((page_size, head_dim), np.float32),
    )


@njit(nogil=True, cache=True)
def _load_books(pages: Any, page_id: Any, first_head: Any, last_head: Any) -> Any:
    """The codebooks that pages refer to, for some of the heads."""
    slots = np.empty(page_id.shape[0], np.int64)
    of_entry = np.empty(page_id.shape[0], np.int64)
    num_books, most = 0, np.int64(0)
    for entry in range(page_id.shape[0]):
        slot = np.int64(pages.slot_of_page[page_id[entry]])
        book = 0
        while book < num_books and slots[book] != slot:
            book += 1
        if book == num_books:
            slots[book] = slot
            num_books += 1
            if pages.counts[slot] > most:
                most = np.int64(pages.counts[slot])
        of_entry[entry] = book
    num_heads, head_dim = pages.rows.shape[1:]
    num_stages = pages.ids.shape[2]
    centroids = np.empty((num_books, num_heads, num_stages, most, head_dim), np.float32)
    widths = np.ones((num_books, num_heads, head_dim), np.float32)
    for book in range(num_books):
        table, count = pages.row_table[slots[book]], pages.counts[slots[book]]
        for head in range(first_head, last_head):
            first = 0
            if pages.has_widths:
                _widen(pages.rows[table[0], head], widths[book, head])
                first = 1
            for stage in range(num_stages):
                for centroid in range(count):
                    source = pages.rows[table[first + stage * count + centroid], head]
                    _widen(source, centroids[book, head, stage, centroid])
    return _Books(of_entry, centroids, widths)


# What is small is inlined: Numba counts the references to all the arrays that a function is given.
@njit(inline="always")
def _widen(stored: Any, out: Any) -> None:
    for i in range(out.shape[0]):
        out[i] = read(stored[i])


@njit(nogil=True, cache=True)
def _fill_rows(
    pages: Any, books: Any, entry: Any, page: Any, head: Any, begin: Any, end: Any, scratch: Any
) -> None:
    """Decode the slots [begin, end) of a page into the first rows of the scratch."""
    # Views are made for all the rows at once: for each of them, they would take half of the time.
    book = books.of_entry[entry]
    packed, stored = pages.codes[page, head], pages.scales[page, head]
    centroids, width = books.centroids[book, head], books.widths[book, head]
    ids, rows = pages.ids[page, head], scratch.rows
    kind = NO_KIND
    if pages.plane_groups[0] >= 0:
        kind = find_kind(pages.bits, pages.trellis, ids.shape[0], packed.shape[1])
    if kind == NO_KIND:
        _fill_by_channel(pages, packed, stored, width, begin, end, scratch)
    else:
        _fill_by_vector(pages, kind, packed, stored, ids, centroids, width, begin, end, scratch)
    for stage in range(0 if kind == NO_KIND else 2, ids.shape[0]):
        _add_centroids(ids[stage], centroids[stage], begin, end, rows)


@njit(inline="always")
def _load_scales(stored: Any, begin: Any, end: Any, group_scale: Any) -> None:
    """Widen the scales of the slots [begin, end) into the first rows of `group_scale`."""
    # The compiler makes vectors of one loop over them all.
    num_groups = stored.shape[1]
    source = stored.reshape(-1)[begin * num_groups : end * num_groups]
    target = group_scale.reshape(-1)
    for i in range(source.shape[0]):
        target[i] = read(source[i])


@njit(inline="always")
def _fill_by_vector(
    pages: Any,
    kind: Any,
    packed: Any,
    stored: Any,
    ids: Any,
    centroids: Any,
    width: Any,
    begin: Any,
    end: Any,
    scratch: Any,
) -> None:
    """Levels times scales and widths, plus the first two centroids, or the one there is."""
    _load_scales(stored, begin, end, scratch.group_scale)
    second = min(1, ids.shape[0] - 1)
    fill_rows(
        kind,
        begin,
        end,
        packed,
        pages.levels,
        scratch.group_scale,
        pages.plane_groups,
        width,
        ids[0],
        centroids[0],
        ids[second],
        centroids[second],
        scratch.rows,
    )


@njit(nogil=True, cache=True)
def _fill_by_channel(
    pages: Any, packed: Any, stored: Any, width: Any, begin: Any, end: Any, scratch: Any
) -> None:
    """Levels times scales and widths, whatever the groups."""
    groups, levels = pages.channel_groups, pages.levels
    code, planes, group_scale, scale, rows = scratch
    head_dim, size = rows.shape[1], planes.shape[1]
    words, y1, y0 = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.int32)
    mask = np.int32((1 << pages.bits) - 1)
    _load_scales(stored, begin, end, group_scale)
    for slot in range(begin, end):
        row = slot - begin
        for i in range(head_dim):
            scale[i] = group_scale[row, groups[i]]
        if pages.trellis:
            load_words(packed[slot], pages.bits, words, y1, y0)
            unpack_row(words, y1, y0, pages.bits, planes)
        else:
            shift = np.int32(0)
            for plane in range(planes.shape[0]):
                for j in range(planes.shape[1]):
                    planes[plane, j] = (np.int32(packed[slot, j]) >> shift) & mask
                shift += np.int32(pages.bits)
        for i in range(head_dim):
            rows[row, i] = levels[code[i]] * scale[i] * width[i]


@njit(nogil=True, cache=True)
def _add_centroids(ids: Any, centroids: Any, begin: Any, end: Any, rows: Any) -> None:
    for slot in range(begin, end):
        row, centroid = slot - begin, np.int64(ids[slot])
        for i in range(rows.shape[1]):
            rows[row, i] += centroids[centroid, i]


@njit(nogil=True, cache=True)
def _refine_rows(
    refinement: Any,
    books: Any,
    entry: Any,
    page: Any,
    head: Any,
    begin: Any,
    end: Any,
    scratch: Any,
) -> None:
    """Add the slots [begin, end) of a page's refinement to the first rows of the scratch."""
    pages, refined = refinement.pages, np.int64(refinement.page_of[page])
    packed, stored = pages.codes[refined, head], pages.scales[refined, head]
    width, rows = books.widths[books.of_entry[entry], head], scratch.rows
    kind = find_kind(pages.bits, pages.trellis, 1, packed.shape[1])
    is_usual = kind != NO_KIND and pages.plane_groups[0] >= 0
    # Ids are bytes.
    if is_usual and packed.shape[0] <= 256 and stored.shape[1] == scratch.group_scale.shape[1]:
        _load_scales(stored, begin, end, scratch.group_scale)
        # What a row is by now takes the place of the centroid.
        place = (np.arange(packed.shape[0]) - begin).astype(np.uint8)
        fill_rows(
            kind,
            begin,
            end,
            packed,
            pages.levels,
            scratch.group_scale,
            pages.plane_groups,
            width,
            place,
            rows,
            place,
            rows,
            rows,
        )
        return
    own = _make_scratch(pages)
    _fill_by_channel(pages, packed, stored, width, begin, end, own)
    for row in range(end - begin):
        for i in range(rows.shape[1]):
            rows[row, i] += own.rows[row, i]


@njit(nogil=True, cache=True)
def _decode(
    pages: Any,
    refinement: Any,
    page_id: Any,
    begin: Any,
    end: Any,
    out: Any,
    start: Any,
    first_head: Any,
    last_head: Any,
) -> None:
    books = _load_books(pages, page_id, first_head, last_head)
    scratch = _make_scratch(pages)
    rows = scratch.rows
    for entry in range(page_id.shape[0]):
        page, count = page_id[entry], end[entry] - begin[entry]
        for head in range(first_head, last_head):
            first, last = begin[entry], end[entry]
            _fill_rows(pages, books, entry, page, head, first, last, scratch)
            if refinement is not None and refinement.page_of[page] >= 0:
                _refine_rows(refinement, books, entry, page, head, first, last, scratch)
            for row in range(count):
                for i in range(rows.shape[1]):
                    out[head, start + row, i] = narrow(rows[row, i], out)
        start += count


@njit(nogil=True, cache=True)
def _decode_rotated(
    pages: Any,
    refinement: Any,
    page_id: Any,
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
    first_head: Any,
    last_head: Any,
) -> None:
    books = _load_books(pages, page_id, first_head, last_head)
    scratch = _make_scratch(pages)
    rows = scratch.rows
    cos = np.empty((rows.shape[0], rows.shape[1] // 2), np.float64)
    sin = np.empty((rows.shape[0], rows.shape[1] // 2), np.float64)
    for entry in range(page_id.shape[0]):
        page, count = page_id[entry], end[entry] - begin[entry]
        position = first_token[entry] + begin[entry]
        fill_angles(position, height, grid_width, t, h, w, cos[:count], sin[:count])
        for head in range(first_head, last_head):
            first, last = begin[entry], end[entry]
            _fill_rows(pages, books, entry, page, head, first, last, scratch)
            if refinement is not None and refinement.page_of[page] >= 0:
                _refine_rows(refinement, books, entry, page, head, first, last, scratch)
            for row in range(count):
                rotate_row(rows[row], cos[row], sin[row], out[head, start + row])
        start += count


def supports(*tensors: Tensor) -> bool:
    """Whether the kernels here can read and write these pages."""
    return all(runs_on_cpu(x.device) for x in tensors)


def writes(out: Tensor) -> bool:
    """Whether `decode` can write to such a tensor."""
    return runs_on_cpu(out.device) and out.dtype in SUPPORTED_DTYPES


def decode(
    pages: CodedPages, runs: PageRuns, out: Tensor, *, start: int, rope: RopeGrid | None
) -> None:
    """See `decode.decode`; `out` in fp32 or bf16 only."""
    stored, refinement, target = page_arrays(pages), refinement_arrays(pages), as_array(out)
    if rope is None:
        ends = (runs.page_id, runs.begin, runs.end, target, start)
        _for_heads(pages, runs, lambda *heads: _decode(stored, refinement, *ends, *heads))
        return
    turned = (
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
    _for_heads(pages, runs, lambda *heads: _decode_rotated(stored, refinement, *turned, *heads))


def _for_heads(pages: CodedPages, runs: PageRuns, task: Callable[[int, int], None]) -> None:
    work = _ELEMENT_WORK * runs.num_tokens * pages.num_heads * pages.head_dim
    for_heads(task, pages.num_heads, work, is_even=True)
