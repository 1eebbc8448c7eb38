"""Encoding and decoding plain pages on a GPU (Triton): one pass over the rows, rotating on the way.

Which slots go where is a table that the host makes and copies over; see `kernels/rope/gpu.py` for
how a program moves rows.
"""

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels import gpu
from qvg_engine.kernels.device_table import to_device
from qvg_engine.kernels.gpu import Variant
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.paged_attention.pages import PlainPages
from qvg_engine.kernels.rope import RopeGrid
from qvg_engine.kernels.rope.gpu import (
    SUPPORTED_DTYPES,
    heads_a_program,
    move,
    move_rows,
    table_arguments,
    table_variant,
    tokens_a_program,
)


@triton.jit(do_not_specialize=["num_entries", "num_heads", "heads_a_program", "height", "width"])
def _decode(
    pages_ptr: tl.tensor,
    entries_ptr: tl.tensor,
    out_ptr: tl.tensor,
    out_head_stride: tl.tensor,
    num_entries: tl.tensor,
    num_heads: tl.tensor,
    heads_a_program: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    t_ptr: tl.tensor,
    h_ptr: tl.tensor,
    w_ptr: tl.tensor,
    T_PAIRS: tl.constexpr,
    H_PAIRS: tl.constexpr,
    W_PAIRS: tl.constexpr,
    PADDED: tl.constexpr,
    ROTATE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """entries: int32 [5, entries]: page, position of slot 0, first slot, slot after the last, and
    the token of the output that the first slot goes to."""
    HEAD_DIM: tl.constexpr = 2 * (T_PAIRS + H_PAIRS + W_PAIRS)
    BLOCKS: tl.constexpr = (PAGE_SIZE + BLOCK - 1) // BLOCK
    entry = entries_ptr + tl.program_id(0) // BLOCKS
    page = tl.load(entry).to(tl.int64)
    first_token = tl.load(entry + num_entries)
    begin = tl.load(entry + 2 * num_entries)
    end = tl.load(entry + 3 * num_entries)
    out_token = tl.load(entry + 4 * num_entries).to(tl.int64)
    slot = begin + tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    first_head = tl.program_id(1) * heads_a_program
    move_rows(
        pages_ptr,
        (page * num_heads * PAGE_SIZE + slot) * HEAD_DIM,
        PAGE_SIZE * HEAD_DIM,
        out_ptr,
        (out_token + slot - begin) * HEAD_DIM,
        out_head_stride,
        slot < end,
        first_head,
        tl.minimum(first_head + heads_a_program, num_heads),
        first_token + slot,
        height,
        width,
        t_ptr,
        h_ptr,
        w_ptr,
        T_PAIRS,
        H_PAIRS,
        W_PAIRS,
        PADDED,
        ROTATE,
    )


@triton.jit(do_not_specialize=["num_tokens", "num_heads", "heads_a_program"])
def _encode(
    rows_ptr: tl.tensor,
    rows_token_stride: tl.tensor,
    rows_head_stride: tl.tensor,
    page_ids_ptr: tl.tensor,
    pages_ptr: tl.tensor,
    num_tokens: tl.tensor,
    num_heads: tl.tensor,
    heads_a_program: tl.tensor,
    PAIRS: tl.constexpr,
    PADDED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """page_ids: int32 [pages], filled in order."""
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = token < num_tokens
    page = tl.load(page_ids_ptr + token // PAGE_SIZE, mask=ok, other=0).to(tl.int64)
    first_head = tl.program_id(1) * heads_a_program
    move_rows(
        rows_ptr,
        token.to(tl.int64) * rows_token_stride,
        rows_head_stride,
        pages_ptr,
        (page * num_heads * PAGE_SIZE + token % PAGE_SIZE) * (2 * PAIRS),
        PAGE_SIZE * (2 * PAIRS),
        ok,
        first_head,
        tl.minimum(first_head + heads_a_program, num_heads),
        token,
        1,
        1,
        None,
        None,
        None,
        PAIRS,
        0,
        0,
        PADDED,
        False,
    )


def supports(*tensors: Tensor) -> bool:
    """Whether the kernels here can read and write these tensors."""
    return all(gpu.supports(x) and x.dtype in SUPPORTED_DTYPES for x in tensors)


def encode(pages: PlainPages, page_ids: NDArray[np.integer], rows: Tensor) -> None:
    """See `encode.encode`; dtypes of SUPPORTED_DTYPES only."""
    num_tokens, num_heads, head_dim = rows.shape
    if not num_tokens:
        return
    assert pages.data.is_contiguous()
    if rows.stride(2) != 1:
        rows = rows.contiguous()
    block = tokens_a_program(head_dim)
    num_blocks = triton.cdiv(num_tokens, block)
    heads = heads_a_program(num_heads, num_blocks)
    _encode[(num_blocks, triton.cdiv(num_heads, heads))](
        rows,
        rows.stride(0),
        rows.stride(1),
        to_device(page_ids.astype(np.int32), rows.device),
        pages.data,
        num_tokens,
        num_heads,
        heads,
        PAIRS=head_dim // 2,
        PADDED=triton.next_power_of_2(head_dim // 2),
        PAGE_SIZE=pages.page_size,
        BLOCK=block,
        num_warps=4,
    )


def place(
    rows: Tensor,
    positions: NDArray[np.int64] | None,
    out: Tensor,
    *,
    start: int,
    rope: RopeGrid | None,
) -> None:
    """See `decode.place`; dtypes of SUPPORTED_DTYPES only."""
    move(rows, out[:, start : start + rows.shape[0]].transpose(0, 1), positions, rope)


def decode(
    pages: PlainPages, runs: PageRuns, out: Tensor, *, start: int, rope: RopeGrid | None
) -> None:
    """See `decode.decode`; dtypes of SUPPORTED_DTYPES only."""
    num_entries = len(runs.page_id)
    if not num_entries:
        return
    assert pages.data.is_contiguous()
    assert out.is_contiguous()
    num_heads, head_dim = pages.num_heads, pages.head_dim
    block = tokens_a_program(head_dim)
    num_blocks = num_entries * triton.cdiv(pages.page_size, block)
    heads = heads_a_program(num_heads, num_blocks)
    _decode[(num_blocks, triton.cdiv(num_heads, heads))](
        pages.data,
        to_device(entry_table(runs, start), out.device),
        out,
        out.stride(0),
        num_entries,
        num_heads,
        heads,
        **table_arguments(rope, runs.largest_position, head_dim),
        PAGE_SIZE=pages.page_size,
        BLOCK=block,
        num_warps=4,
    )


def entry_table(runs: PageRuns, start: int) -> NDArray[np.int32]:
    """What a decode kernel reads of `runs`: int32 [5, entries].

    Page, position of slot 0, first slot, slot after the last, and the token of the output that the
    first slot goes to, counted from `start`.
    """
    lengths = runs.end - runs.begin
    out_token = start + np.cumsum(lengths) - lengths
    columns = (runs.page_id, runs.first_token, runs.begin, runs.end, out_token)
    table = np.stack(columns)
    assert table.max(initial=0) < 2**31, table.max()
    return table.astype(np.int32)


def variants() -> tuple[Variant, ...]:
    """The kernels that are launched, as they are compiled for pages of 64 tokens in bf16."""
    sizes = (64, 128)
    decoded = tuple(_decode_variant(d, rotated=r) for d in sizes for r in (True, False))
    return decoded + tuple(_encode_variant(d) for d in sizes)


def _decode_variant(head_dim: int, *, rotated: bool) -> Variant:
    tables, constants = table_variant(head_dim, rotated=rotated)
    constants |= {"PAGE_SIZE": 64, "BLOCK": tokens_a_program(head_dim)}
    pointers = {"pages_ptr": "*bf16", "entries_ptr": "*i32", "out_ptr": "*bf16"}
    counts = ("out_head_stride", "num_entries", "num_heads", "heads_a_program")
    signature = pointers | dict.fromkeys(counts, "i32") | tables
    signature |= dict.fromkeys(constants, "constexpr")
    return Variant(
        name=f"decode-plain{'-rotated' if rotated else ''}-d{head_dim}-bf16",
        kernel=_decode,
        signature=signature,
        constants=constants,
        aligned=(
            "out_head_stride",
            *(name for name in signature if signature[name].startswith("*")),
        ),
    )


def _encode_variant(head_dim: int) -> Variant:
    pointers = {"rows_ptr": "*bf16", "page_ids_ptr": "*i32", "pages_ptr": "*bf16"}
    strides = ("rows_token_stride", "rows_head_stride")
    counts = (*strides, "num_tokens", "num_heads", "heads_a_program")
    constants = {
        "PAIRS": head_dim // 2,
        "PADDED": triton.next_power_of_2(head_dim // 2),
        "PAGE_SIZE": 64,
        "BLOCK": tokens_a_program(head_dim),
    }
    return Variant(
        name=f"encode-plain-d{head_dim}-bf16",
        kernel=_encode,
        signature=pointers | dict.fromkeys(counts, "i32") | dict.fromkeys(constants, "constexpr"),
        constants=constants,
        aligned=(*strides, *pointers),
    )
