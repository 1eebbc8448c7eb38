"""The rotation on a GPU (Triton), and the pieces that other kernels move and rotate rows with.

A program moves some tokens of several heads: the angles of a token are those of all its heads, and
are read once. Arithmetic is in fp32.
"""

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.device_table import to_device
from qvg_engine.kernels.gpu import Variant
from qvg_engine.kernels.rope.grid import RopeGrid
from qvg_engine.kernels.rope.tables import default_pairs

SUPPORTED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the kernels read and write; other dtypes go through plain torch."""


@triton.jit
def load_angles(
    position: tl.tensor,
    ok: tl.tensor,
    pair: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    t_ptr: tl.tensor,
    h_ptr: tl.tensor,
    w_ptr: tl.tensor,
    T_PAIRS: tl.constexpr,
    H_PAIRS: tl.constexpr,
    W_PAIRS: tl.constexpr,
) -> Any:
    """Cosines and sines, fp32 [N, P], of rotation pairs [P] of tokens at `position` [N].

    Zero where not `ok` [N], and of pairs that there are not. The tables are those of `RopeTables`.
    """
    pair = pair[None, :]
    is_time = pair < T_PAIRS
    is_height = pair < T_PAIRS + H_PAIRS
    t = t_ptr + (position // (height * width))[:, None] * (2 * T_PAIRS) + pair
    h = h_ptr + (position // width % height)[:, None] * (2 * H_PAIRS) + (pair - T_PAIRS)
    w = w_ptr + (position % width)[:, None] * (2 * W_PAIRS) + (pair - T_PAIRS - H_PAIRS)
    cos_ptr = tl.where(is_time, t, tl.where(is_height, h, w))
    sin_ptr = cos_ptr + tl.where(is_time, T_PAIRS, tl.where(is_height, H_PAIRS, W_PAIRS))
    mask = ok[:, None] & (pair < T_PAIRS + H_PAIRS + W_PAIRS)
    cos = tl.load(cos_ptr, mask=mask, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr, mask=mask, other=0.0).to(tl.float32)
    return cos, sin


@triton.jit
def move_rows(
    source_ptr: tl.tensor,
    source_row: tl.tensor,
    source_head_stride: tl.tensor,
    out_ptr: tl.tensor,
    out_row: tl.tensor,
    out_head_stride: tl.tensor,
    ok: tl.tensor,
    first_head: tl.tensor,
    last_head: tl.tensor,
    position: tl.tensor,
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
) -> None:
    """Move the heads [first_head, last_head) of N tokens, rotated to `position` [N] if ROTATE.

    source_row, out_row: int64 [N], where the row of head 0 begins, in elements.
    ok: bool [N], which tokens are there.
    """
    HALF: tl.constexpr = T_PAIRS + H_PAIRS + W_PAIRS
    pair = tl.arange(0, PADDED)[None, :]
    mask = ok[:, None] & (pair < HALF)
    if ROTATE:
        cos, sin = load_angles(
            position,
            ok,
            tl.arange(0, PADDED),
            height,
            width,
            t_ptr,
            h_ptr,
            w_ptr,
            T_PAIRS,
            H_PAIRS,
            W_PAIRS,
        )
    source = source_ptr + source_row[:, None] + pair
    out = out_ptr + out_row[:, None] + pair
    for head in range(first_head, last_head):
        source_head = source + tl.cast(head, tl.int64) * source_head_stride
        out_head = out + tl.cast(head, tl.int64) * out_head_stride
        first = tl.load(source_head, mask=mask)
        second = tl.load(source_head + HALF, mask=mask)
        if ROTATE:
            a = first.to(tl.float32)
            b = second.to(tl.float32)
            first = a * cos - b * sin
            second = a * sin + b * cos
        tl.store(out_head, first.to(out_ptr.dtype.element_ty), mask=mask)
        tl.store(out_head + HALF, second.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_tokens", "num_heads", "heads_a_program", "height", "width"])
def _move(
    rows_ptr: tl.tensor,
    rows_token_stride: tl.tensor,
    rows_head_stride: tl.tensor,
    out_ptr: tl.tensor,
    out_token_stride: tl.tensor,
    out_head_stride: tl.tensor,
    num_tokens: tl.tensor,
    num_heads: tl.tensor,
    heads_a_program: tl.tensor,
    positions_ptr: tl.tensor,
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
    BLOCK: tl.constexpr,
) -> None:
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = token < num_tokens
    position = token
    if ROTATE:
        position = tl.load(positions_ptr + token, mask=ok, other=0)
    first_head = tl.program_id(1) * heads_a_program
    move_rows(
        rows_ptr,
        token.to(tl.int64) * rows_token_stride,
        rows_head_stride,
        out_ptr,
        token.to(tl.int64) * out_token_stride,
        out_head_stride,
        ok,
        first_head,
        tl.minimum(first_head + heads_a_program, num_heads),
        position,
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


def tokens_a_program(head_dim: int) -> int:
    """Tokens that one program moves: tiles of 2048 numbers, 16 a thread."""
    return max(2048 // int(triton.next_power_of_2(head_dim)), 1)


def heads_a_program(num_heads: int, num_blocks: int) -> int:
    """Heads that one program moves, of so many blocks of tokens: all if that fills a GPU."""
    return -(-num_heads * min(num_blocks, _ENOUGH_PROGRAMS) // _ENOUGH_PROGRAMS)


_ENOUGH_PROGRAMS = 1024


def table_arguments(rope: RopeGrid | None, largest_position: int, head_dim: int) -> dict[str, Any]:
    """What `load_angles` and `move_rows` take of a grid, for positions up to `largest_position`.

    Without a grid the pointers are None, and the pairs say only how long a row is.
    """
    half = head_dim // 2
    assert head_dim == 2 * half, head_dim
    names = ("t_ptr", "h_ptr", "w_ptr")
    pairs: tuple[int, ...] = (half, 0, 0)
    tables: tuple[Tensor | None, ...] = (None, None, None)
    height = width = 1
    if rope is not None:
        assert rope.tables.head_dim == head_dim, (rope.tables.head_dim, head_dim)
        height, width, pairs = rope.height, rope.width, rope.tables.pairs
        tables = rope.axes(largest_position)
    return {
        "height": height,
        "width": width,
        **dict(zip(names, tables, strict=True)),
        **dict(zip(("T_PAIRS", "H_PAIRS", "W_PAIRS"), pairs, strict=True)),
        "PADDED": triton.next_power_of_2(half),
        "ROTATE": rope is not None,
    }


def move(
    rows: Tensor, out: Tensor, positions: NDArray[np.int64] | None, rope: RopeGrid | None
) -> None:
    """Write `rows` to `out`, both [tokens, heads, head_dim] of any strides, rotated if asked.

    positions: the rows' token numbers, all >= 0 and below 2**31; needed with `rope`.
    """
    num_tokens, num_heads, head_dim = rows.shape
    assert out.shape == rows.shape, (rows.shape, out.shape)
    if not num_tokens:
        return
    if rows.stride(2) != 1:
        rows = rows.contiguous()
    assert out.stride(2) == 1, out.stride()
    table, largest = None, 0
    if rope is not None:
        assert positions is not None
        assert positions.shape == (num_tokens,), (positions.shape, rows.shape)
        largest = int(positions.max())
        assert 0 <= positions.min() <= largest < 2**31, (positions.min(), largest)
        table = to_device(positions.astype(np.int32), rows.device)
    block = tokens_a_program(head_dim)
    num_blocks = triton.cdiv(num_tokens, block)
    heads = heads_a_program(num_heads, num_blocks)
    _move[(num_blocks, triton.cdiv(num_heads, heads))](
        rows,
        rows.stride(0),
        rows.stride(1),
        out,
        out.stride(0),
        out.stride(1),
        num_tokens,
        num_heads,
        heads,
        table,
        **table_arguments(rope, largest, head_dim),
        BLOCK=block,
        num_warps=4,
    )


def rotate(x: Tensor, grid: RopeGrid, positions: NDArray[np.int64]) -> Tensor:
    """See `rotate.rotate`; dtypes of SUPPORTED_DTYPES only."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    move(x, out, positions, grid)
    return out


TABLE_SIGNATURE = {
    "height": "i32",
    "width": "i32",
    "t_ptr": "*fp32",
    "h_ptr": "*fp32",
    "w_ptr": "*fp32",
}
"""Triton's types of `table_arguments` with a grid."""


def table_variant(head_dim: int, *, rotated: bool) -> tuple[dict[str, str], dict[str, Any]]:
    """The signature and the constants of `table_arguments`, for a `Variant`."""
    pairs = default_pairs(head_dim) if rotated else (head_dim // 2, 0, 0)
    constants: dict[str, Any] = {
        **dict(zip(("T_PAIRS", "H_PAIRS", "W_PAIRS"), pairs, strict=True)),
        "PADDED": triton.next_power_of_2(head_dim // 2),
        "ROTATE": rotated,
    }
    signature = dict(TABLE_SIGNATURE)
    if not rotated:
        constants |= dict.fromkeys(("t_ptr", "h_ptr", "w_ptr"))
    return signature | dict.fromkeys(constants, "constexpr"), constants


def variants() -> tuple[Variant, ...]:
    """The kernels that are launched, as they are compiled for tensors in bf16."""
    return tuple(
        _variant(head_dim, rotated=rotated) for head_dim in (64, 128) for rotated in (True, False)
    )


def _variant(head_dim: int, *, rotated: bool) -> Variant:
    tables, constants = table_variant(head_dim, rotated=rotated)
    constants["BLOCK"] = tokens_a_program(head_dim)
    if not rotated:
        constants["positions_ptr"] = None
    strides = (
        "rows_token_stride",
        "rows_head_stride",
        "out_token_stride",
        "out_head_stride",
    )
    pointers = {"rows_ptr": "*bf16", "out_ptr": "*bf16", "positions_ptr": "*i32"}
    counts = dict.fromkeys((*strides, "num_tokens", "num_heads", "heads_a_program"), "i32")
    signature = pointers | counts | tables | dict.fromkeys(constants, "constexpr")
    return Variant(
        name=f"{'rotate' if rotated else 'place'}-d{head_dim}-bf16",
        kernel=_move,
        signature=signature,
        constants=constants,
        aligned=(*strides, *(name for name in signature if signature[name].startswith("*"))),
    )
