"""Merging attention over disjoint sets of tokens on a GPU (Triton).

Few queries do not fill a GPU: attention then cuts the tokens into ranges, a program each, and the
parts are merged here. The order of all sums is fixed, so a result is the same every time.
"""

import functools
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvg_engine.kernels.gpu import Variant

_BLOCK: Final = 32
"""Queries that one program merges."""
_NUM_WARPS: Final = 4
_MERGE_BLOCKS: Final = 2
"""What writing and reading a part costs, in blocks of tokens that a program attends to: a guess
from bytes (8 bytes an element of the output against 4 of keys and values)."""
_MAX_WAVES: Final = 4


@functools.lru_cache(4096)
def num_ranges(num_programs: int, num_blocks: int, num_slots: int) -> int:
    """How many ranges of tokens to attend to at a time, at least one.

    Args:
        num_programs: programs that one range takes.
        num_blocks: blocks of tokens that there are, at least one.
        num_slots: programs that the device runs at a time.

    With more than one, there are at most 4 * num_slots programs: that bounds the parts' bytes.
    No range is empty if each has ceil(num_blocks / ranges) blocks.
    """
    best, least = 1, -(-num_programs // num_slots) * num_blocks
    for count in range(2, min(num_blocks, _MAX_WAVES * num_slots // num_programs) + 1):
        length = -(-num_blocks // count)
        waves = -(-num_programs * count // num_slots)
        cost = waves * (length + _MERGE_BLOCKS)
        if cost < least and count == -(-num_blocks // length):
            best, least = count, cost
    return best


@triton.jit
def _load_part(
    out: tl.tensor, lse: tl.tensor, row: tl.tensor, exists: tl.tensor, HEAD_DIM: tl.constexpr
) -> Any:
    """fp32 output [rows, HEAD_DIM] and log-sum-exp [rows] of one part, contiguous rows."""
    offset = row[:, None].to(tl.int64) * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    part = tl.load(out + offset, mask=exists[:, None], other=0.0).to(tl.float32)
    return part, tl.load(lse + row, mask=exists, other=float("-inf"))


@triton.jit
def _add_part(
    sums: tl.tensor, total: tl.tensor, most: tl.tensor, part: tl.tensor, lse: tl.tensor
) -> Any:
    """Add a part to sums [rows, channels] weighted by exp(lse - most), and total of the weights.

    A lse of -inf everywhere leaves the base 0: all weights are then 0.
    """
    larger = tl.where(lse > most, lse, most)
    base = tl.where(larger == float("-inf"), 0.0, larger)
    shrunk = tl.exp(most - base)
    weight = tl.exp(lse - base)
    return sums * shrunk[:, None] + part * weight[:, None], total * shrunk + weight, larger


@triton.jit(do_not_specialize=["num_rows", "num_parts"])
def _merge_ranges(
    parts: tl.tensor,
    part_lse: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    num_rows: tl.tensor,
    num_parts: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """parts: fp32 [num_parts, num_rows, HEAD_DIM] to out [num_rows, HEAD_DIM]."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = row < num_rows
    sums = tl.zeros((BLOCK, HEAD_DIM), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    most = tl.full((BLOCK,), float("-inf"), tl.float32)
    for _ in range(num_parts):
        part, log_sum = _load_part(parts, part_lse, row, exists, HEAD_DIM)
        sums, total, most = _add_part(sums, total, most, part, log_sum)
        parts += num_rows * HEAD_DIM
        part_lse += num_rows
    # Rows that do not exist, or for which nothing was seen.
    total = tl.where(total > 0, total, 1.0)
    offset = row[:, None].to(tl.int64) * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    tl.store(out + offset, (sums / total[:, None]).to(out.dtype.element_ty), exists[:, None])
    tl.store(lse + row, most + tl.log(total), exists)


@triton.jit(do_not_specialize=["num_rows"])
def _merge_pair(
    first: tl.tensor,
    first_lse: tl.tensor,
    second: tl.tensor,
    second_lse: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    num_rows: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = row < num_rows
    one, one_lse = _load_part(first, first_lse, row, exists, HEAD_DIM)
    two, two_lse = _load_part(second, second_lse, row, exists, HEAD_DIM)
    sums, total, most = one, tl.full((BLOCK,), 1.0, tl.float32), one_lse
    sums, total, most = _add_part(sums, total, most, two, two_lse)
    # Nothing was seen by either where the total is 0.
    total = tl.where(most == float("-inf"), 1.0, total)
    offset = row[:, None].to(tl.int64) * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    tl.store(out + offset, sums / total[:, None], exists[:, None])
    tl.store(lse + row, most + tl.log(total), exists)


def merge_ranges(parts: Tensor, part_lse: Tensor, out: Tensor, lse: Tensor) -> None:
    """Merge attention over ranges of tokens.

    An empty one has a log-sum-exp of -inf, and finite output; so has what is written where all are.

    Args:
        parts: fp32 [ranges, heads, queries, head_dim], contiguous; head_dim a power of two.
        part_lse: fp32 [ranges, heads, queries].
        out: [heads, queries, head_dim], contiguous, to write.
        lse: fp32 [heads, queries], contiguous, to write.
    """
    num_parts, head_dim = parts.shape[0], parts.shape[-1]
    assert all(x.is_contiguous() for x in (parts, part_lse, out, lse))
    _merge_ranges[(triton.cdiv(lse.numel(), _BLOCK),)](
        parts,
        part_lse,
        out,
        lse,
        lse.numel(),
        num_parts,
        HEAD_DIM=head_dim,
        BLOCK=_BLOCK,
        num_warps=_NUM_WARPS,
    )


def merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """See `dense.merge`; head_dim is a power of two."""
    (one, one_lse), (two, two_lse) = first, second
    one, two = one.contiguous(), two.contiguous()
    out = torch.empty(one.shape, device=one.device, dtype=torch.float32)
    lse = torch.empty(one.shape[:-1], device=one.device, dtype=torch.float32)
    _merge_pair[(triton.cdiv(lse.numel(), _BLOCK),)](
        one,
        one_lse.contiguous(),
        two,
        two_lse.contiguous(),
        out,
        lse,
        lse.numel(),
        HEAD_DIM=out.shape[-1],
        BLOCK=_BLOCK,
        num_warps=_NUM_WARPS,
    )
    return out, lse


def variants() -> tuple[Variant, ...]:
    """What is launched for head_dim 64 and 128; parts in fp32 and in bf16."""
    found = []
    for head_dim in (64, 128):
        constants = {"HEAD_DIM": head_dim, "BLOCK": _BLOCK}
        constant_types = dict.fromkeys(constants, "constexpr")
        found.append(
            Variant(
                name=f"merge-ranges-d{head_dim}",
                kernel=_merge_ranges,
                signature={
                    "parts": "*fp32",
                    "part_lse": "*fp32",
                    "out": "*bf16",
                    "lse": "*fp32",
                    "num_rows": "i32",
                    "num_parts": "i32",
                    **constant_types,
                },
                constants=constants,
                aligned=("parts", "part_lse", "out", "lse"),
                num_warps=_NUM_WARPS,
            )
        )
        for name, dtype in (("fp32", "*fp32"), ("bf16", "*bf16")):
            found.append(
                Variant(
                    name=f"merge-pair-d{head_dim}-{name}",
                    kernel=_merge_pair,
                    signature={
                        "first": dtype,
                        "first_lse": "*fp32",
                        "second": "*bf16",
                        "second_lse": "*fp32",
                        "out": "*fp32",
                        "lse": "*fp32",
                        "num_rows": "i32",
                        **constant_types,
                    },
                    constants=constants,
                    aligned=("first", "first_lse", "second", "second_lse", "out", "lse"),
                    num_warps=_NUM_WARPS,
                )
            )
    return tuple(found)
