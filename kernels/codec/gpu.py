"""Decoding coded pages in Triton: one pass over the bytes, rotating on the way."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvg_engine.kernels.codec.gpu_pages import (
    NUM_COLUMNS,
    format_of,
    has_whole_planes,
    make_angles,
    page_tables,
    pointer_types,
    pointers,
    sample_pages,
)
from qvg_engine.kernels.codec.gpu_rows import load_words, locate, read_plane, rotate_planes
from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.codec.spec import PRESETS
from qvg_engine.kernels.gpu import Variant
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.rope import RopeGrid
from qvg_engine.kernels.rope.tables import default_pairs

_BLOCK = 32
_COLUMNS = tl.constexpr(NUM_COLUMNS)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def supports(pages: CodedPages, out: Tensor) -> bool:
    """Whether `decode` takes these pages, see `has_whole_planes`."""
    return has_whole_planes(pages) and out.dtype in _FLOATS


@triton.jit(do_not_specialize=["num_heads", "out_tokens", "height", "width"])
def _decode(
    entries: tl.tensor,
    codes: tl.tensor,
    ids: tl.tensor,
    scales: tl.tensor,
    levels: tl.tensor,
    groups: tl.tensor,
    rows: tl.tensor,
    row_table: tl.tensor,
    refined_codes: tl.tensor,
    refined_scales: tl.tensor,
    refined_levels: tl.tensor,
    refined_groups: tl.tensor,
    t_table: tl.tensor,
    h_table: tl.tensor,
    w_table: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    out: tl.tensor,
    num_heads: tl.tensor,
    out_tokens: tl.tensor,
    F: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A block of the slots of one entry, one head. Without rotation there are no pairs at all."""
    part = (
        codes,
        ids,
        scales,
        levels,
        groups,
        rows,
        row_table,
        refined_codes,
        refined_scales,
        refined_levels,
        refined_groups,
    )
    angles = (t_table, h_table, w_table, height, width)
    blocks: tl.constexpr = (F.page_size + BLOCK - 1) // BLOCK
    size: tl.constexpr = F.head_dim * F.bits // 8
    rotates: tl.constexpr = R[0] + R[1] + R[2] > 0
    # The planes of a rotation pair are this far apart; without rotation each goes by itself.
    apart: tl.constexpr = 4 // F.bits if rotates else 8 // F.bits
    head = tl.program_id(1)
    entry = entries + (tl.program_id(0) // blocks) * _COLUMNS
    token = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    is_read = token < tl.load(entry + 3)
    at = locate(entry, token, num_heads, head, F)
    place = head.to(tl.int64) * out_tokens + tl.load(entry + 4) + token
    byte = tl.arange(0, size)
    word = load_words(codes, at[0] * size, byte, is_read, F.trellis)
    for plane in tl.static_range(apart):
        numbers = read_plane(part, at, word, is_read, F, plane)
        channel = plane * size + byte
        target = out + (place * F.head_dim)[:, None] + channel[None, :]
        if rotates:
            second = read_plane(part, at, word, is_read, F, plane + apart)
            position = tl.load(entry + 1) + token
            numbers, turned = rotate_planes(numbers, second, angles, position, channel, is_read, R)
            later = target + F.head_dim // 2
            tl.store(later, turned.to(out.dtype.element_ty), mask=is_read[:, None])
        tl.store(target, numbers.to(out.dtype.element_ty), mask=is_read[:, None])


def decode(
    pages: CodedPages, runs: PageRuns, out: Tensor, *, start: int, rope: RopeGrid | None
) -> None:
    """See `decode.decode`. The host does not wait for the device."""
    if not len(runs.page_id):
        return
    entries, row_table = page_tables(pages, runs, start)
    angles = make_angles(rope, runs.largest_position, out.device)
    blocks = -(-pages.page_size // _BLOCK)
    _decode[(len(runs.page_id) * blocks, pages.num_heads)](
        entries,
        *pointers(pages, row_table),
        *angles.tables,
        *angles.frame,
        out,
        pages.num_heads,
        out.shape[1],
        F=format_of(pages),
        R=angles.pairs,
        BLOCK=_BLOCK,
        num_warps=4,
    )


def variants() -> tuple[Variant, ...]:
    """What `decode` launches for the named formats, in bf16: K is rotated, V is not."""
    return tuple(
        _variant(name, head_dim, is_key=is_key)
        for name in PRESETS
        for head_dim in (64, 128)
        for is_key in (True, False)
    )


def _variant(name: str, head_dim: int, *, is_key: bool) -> Variant:
    pages = sample_pages(PRESETS[name], head_dim, is_key=is_key)
    tensors = {
        "entries": "*i32",
        **pointer_types(pages),
        **dict.fromkeys(("t_table", "h_table", "w_table"), "*fp32"),
        "out": "*bf16",
    }
    constants = {
        "F": format_of(pages),
        "R": default_pairs(head_dim) if is_key else (0, 0, 0),
        "BLOCK": _BLOCK,
    }
    numbers = dict.fromkeys(("num_heads", "out_tokens", "height", "width"), "i32")
    kinds = tensors | numbers | dict.fromkeys(constants, "constexpr")
    return Variant(
        name=f"decode-{name}-d{head_dim}-{'k' if is_key else 'v'}",
        kernel=_decode,
        signature={argument: kinds[argument] for argument in _decode.arg_names},
        constants=constants,
        # The row table follows the entries in one tensor.
        aligned=tuple(tensor for tensor in tensors if tensor != "row_table"),
        num_warps=4,
    )
