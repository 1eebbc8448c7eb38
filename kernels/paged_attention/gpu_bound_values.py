"""What V can be at most, channel by channel, from what pages and codebooks hold (Triton).

See `decode_eight_bit.bound_pages`. Codes and ids are not read: of coded pages the scales, and of
each codebook in use all of it, once.
"""

from typing import Any, Final

import numpy as np
import torch
import triton
import triton.language as tl

from qvg_engine.kernels.codec.gpu_pages import (
    NUM_COLUMNS,
    Format,
    format_of,
    page_tables,
    pointer_types,
    pointers,
    sample_pages,
)
from qvg_engine.kernels.codec.gpu_rows import locate, read
from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.codec.spec import PRESETS
from qvg_engine.kernels.device_table import to_device
from qvg_engine.kernels.gpu import Variant
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.paged_attention.eight_bit import EightBitWorkspace
from qvg_engine.kernels.paged_attention.gpu_quantise import largest_magnitude
from qvg_engine.kernels.paged_attention.pages import Pages, PlainPages

_COLUMNS = tl.constexpr(NUM_COLUMNS)
_BLOCK: Final = 64
"""Tokens, or centroids, that are looked at at a time."""
_NUM_WARPS: Final = 4


@triton.jit
def _raise(scale_bits: tl.tensor, largest: tl.tensor) -> None:
    """Raise scales to what magnitudes, none negative, need: numbers are in the order of bits."""
    scales = tl.div_rn(largest, 448.0)
    tl.atomic_max(scale_bits, scales.to(tl.int32, bitcast=True) & 0x7FFFFFFF)


@triton.jit
def _bound_books(
    table: tl.tensor,
    rows: tl.tensor,
    largest: tl.tensor,
    num_heads: tl.tensor,
    row_length: tl.tensor,
    counts_at: tl.tensor,
    HEAD_DIM: tl.constexpr,
    STAGES: tl.constexpr,
    WIDTHS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One codebook, one head: the largest magnitudes of the stages, added up.

    table: int32, the rows of each codebook, and from `counts_at` on its centroids a stage.
    largest: fp32 [codebooks, heads, head_dim].
    """
    book, head = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, HEAD_DIM)
    listed = table + book * row_length + WIDTHS
    count = tl.load(table + counts_at + book)
    total = tl.zeros((HEAD_DIM,), tl.float32)
    for stage in tl.static_range(STAGES):
        most = tl.zeros((HEAD_DIM,), tl.float32)
        for first in range(0, count, BLOCK):
            number = first + tl.arange(0, BLOCK)
            exists = number < count
            row = tl.load(listed + stage * count + number, mask=exists, other=0).to(tl.int64)
            place = rows + ((row * num_heads + head) * HEAD_DIM)[:, None] + channel[None, :]
            most = tl.maximum(most, largest_magnitude(read(place, exists[:, None]), 0))
        total += most
    tl.store(largest + (book * num_heads + head) * HEAD_DIM + channel, total)


@triton.jit
def _largest_scales(
    scales: tl.tensor,
    row: tl.tensor,
    groups: tl.tensor,
    levels: tl.tensor,
    is_read: tl.tensor,
    HEAD_DIM: tl.constexpr,
    GROUPS: tl.constexpr,
) -> tl.tensor:
    """The largest level times the largest scale of each channel's group: fp32 [head_dim]."""
    group = tl.load(groups + tl.arange(0, HEAD_DIM))
    largest = tl.zeros((HEAD_DIM,), tl.float32)
    for number in tl.static_range(GROUPS):
        most = largest_magnitude(read(scales + row * GROUPS + number, is_read), 0)
        largest = tl.where(group == number, most, largest)
    return largest * largest_magnitude(tl.load(levels + tl.arange(0, 32)), 0)


@triton.jit(do_not_specialize=["num_heads", "row_length"])
def _bound_codes(
    entries: tl.tensor,
    scales: tl.tensor,
    levels: tl.tensor,
    groups: tl.tensor,
    rows: tl.tensor,
    row_table: tl.tensor,
    refined_scales: tl.tensor,
    refined_levels: tl.tensor,
    refined_groups: tl.tensor,
    books: tl.tensor,
    scale_bits: tl.tensor,
    num_heads: tl.tensor,
    row_length: tl.tensor,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """All slots of one entry, one head. books: what `_bound_books` found."""
    head = tl.program_id(1)
    entry = entries + tl.program_id(0) * _COLUMNS
    count = tl.load(entry + 3)
    if count > 0:
        channel = tl.arange(0, F.head_dim)
        token = tl.arange(0, BLOCK)
        is_read = token < count
        row, refined_row, _, listed, _, is_refined, _, _ = locate(entry, token, num_heads, head, F)
        most = _largest_scales(scales, row, groups, levels, is_read, F.head_dim, F.groups)
        if F.widths:
            width_row = tl.load(row_table + listed).to(tl.int64) * num_heads + head
            width = read(rows + width_row * F.head_dim + channel, channel >= 0)
            most *= width
        of_book = (listed // row_length * num_heads + head) * F.head_dim
        most += tl.load(books + of_book + channel)
        if F.refined_bits > 0:  # noqa: SIM102 - this one is decided when the kernel is compiled.
            if is_refined:
                left = _largest_scales(
                    refined_scales,
                    refined_row,
                    refined_groups,
                    refined_levels,
                    is_read,
                    F.head_dim,
                    F.refined_groups,
                )
                if F.widths:
                    left *= width
                most += left
        _raise(scale_bits + head * F.head_dim + channel, most)


@triton.jit(do_not_specialize=["num_heads"])
def _bound_rows(
    entries: tl.tensor,
    rows: tl.tensor,
    scale_bits: tl.tensor,
    num_heads: tl.tensor,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A block of the slots of an entry, one head. entries: int32 [entries, 3]: page, begin, end."""
    blocks: tl.constexpr = (PAGE_SIZE + BLOCK - 1) // BLOCK
    head = tl.program_id(1)
    entry = entries + (tl.program_id(0) // blocks) * 3
    begin, end = tl.load(entry + 1), tl.load(entry + 2)
    slot = begin + (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    row = (tl.load(entry).to(tl.int64) * num_heads + head) * PAGE_SIZE + slot
    channel = tl.arange(0, HEAD_DIM)
    at = rows + (row * HEAD_DIM)[:, None] + channel[None, :]
    x = tl.load(at, mask=(slot < end)[:, None], other=0.0).to(tl.float32)
    _raise(scale_bits + head * HEAD_DIM + channel, largest_magnitude(x, 0))


def bound_pages(workspace: EightBitWorkspace, pages: Pages, runs: PageRuns) -> None:
    """See `decode_eight_bit.bound_pages`. The host does not wait for the device."""
    if not len(runs.page_id):
        return
    if isinstance(pages, CodedPages):
        _of_codes(workspace, pages, runs)
    else:
        _of_rows(workspace, pages, runs)


def _of_codes(workspace: EightBitWorkspace, pages: CodedPages, runs: PageRuns) -> None:
    page_format = format_of(pages)
    entries, row_table = page_tables(pages, runs, 0)
    _, _, scales, levels, groups, rows, _, _, refined_scales, refined_levels, refined_groups = (
        pointers(pages, row_table)
    )
    used = np.unique(pages.slot_of_page[runs.page_id])
    row_length = max(1, pages.codebooks.row_table.shape[1])
    books_rows = pages.codebooks.row_table[used].reshape(-1)
    listed = np.concatenate((books_rows, pages.codebooks.counts[used]))
    shape = (len(used), pages.num_heads, pages.head_dim)
    books = torch.empty(shape, device=pages.device)
    _bound_books[(len(used), pages.num_heads)](
        to_device(listed, pages.device),
        rows,
        books,
        pages.num_heads,
        row_length,
        len(books_rows),
        HEAD_DIM=pages.head_dim,
        STAGES=page_format.stages,
        WIDTHS=int(page_format.widths),
        BLOCK=_BLOCK,
        num_warps=_NUM_WARPS,
    )
    _bound_codes[(len(runs.page_id), pages.num_heads)](
        entries,
        scales,
        levels,
        groups,
        rows,
        row_table,
        refined_scales,
        refined_levels,
        refined_groups,
        books,
        workspace.value_scales.view(torch.int32),
        pages.num_heads,
        row_length,
        F=page_format,
        BLOCK=triton.next_power_of_2(pages.page_size),
        num_warps=_NUM_WARPS,
    )


def _of_rows(workspace: EightBitWorkspace, pages: PlainPages, runs: PageRuns) -> None:
    table = np.stack((runs.page_id, runs.begin, runs.end), axis=1).astype(np.int32)
    blocks = -(-pages.page_size // _BLOCK)
    _bound_rows[(len(table) * blocks, pages.num_heads)](
        to_device(table, pages.device),
        pages.data,
        workspace.value_scales.view(torch.int32),
        pages.num_heads,
        HEAD_DIM=pages.head_dim,
        PAGE_SIZE=pages.page_size,
        BLOCK=_BLOCK,
        num_warps=_NUM_WARPS,
    )


def variants() -> tuple[Variant, ...]:
    """What is launched for V of the named formats, and of bf16 pages."""
    found = []
    for head_dim in (64, 128):
        for name in PRESETS:
            found += [_books_variant(name, head_dim), _codes_variant(name, head_dim)]
        found.append(_rows_variant(head_dim))
    return tuple(found)


def _books_variant(name: str, head_dim: int) -> Variant:
    spec = PRESETS[name]
    types = pointer_types(sample_pages(spec, head_dim, is_key=False))
    tensors = {"table": "*i32", "rows": types["rows"], "largest": "*fp32"}
    return _variant(
        f"bound-books-{name}-d{head_dim}",
        _bound_books,
        tensors,
        {
            "HEAD_DIM": head_dim,
            "STAGES": spec.stages,
            "WIDTHS": int(spec.channel_widths),
            "BLOCK": _BLOCK,
        },
    )


def _codes_variant(name: str, head_dim: int) -> Variant:
    pages = sample_pages(PRESETS[name], head_dim, is_key=False)
    page_format: Format = format_of(pages)
    tensors = {"entries": "*i32", "books": "*fp32", "scale_bits": "*i32", **pointer_types(pages)}
    return _variant(
        f"bound-codes-{name}-d{head_dim}",
        _bound_codes,
        tensors,
        {"F": page_format, "BLOCK": 64},
    )


def _rows_variant(head_dim: int) -> Variant:
    tensors = {"entries": "*i32", "rows": "*bf16", "scale_bits": "*i32"}
    constants = {"HEAD_DIM": head_dim, "PAGE_SIZE": 64, "BLOCK": _BLOCK}
    return _variant(f"bound-rows-d{head_dim}-bf16", _bound_rows, tensors, constants)


def _variant(name: str, kernel: Any, tensors: dict[str, str], constants: dict[str, Any]) -> Variant:
    kinds = tensors | dict.fromkeys(constants, "constexpr")
    return Variant(
        name=name,
        kernel=kernel,
        signature={argument: kinds.get(argument, "i32") for argument in kernel.arg_names},
        constants=constants,
        # The row table follows the entries in one tensor.
        aligned=tuple(a for a in kernel.arg_names if a in tensors and a != "row_table"),
        num_warps=_NUM_WARPS,
    )
