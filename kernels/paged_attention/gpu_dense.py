"""Dense attention on a GPU (Triton), with a bias and the log-sum-exp.

A program holds a block of queries of one head and goes over the tokens in blocks, or over one range
of them where queries are too few to fill the device (`gpu_merge`). Scores, weights and sums are
fp32; both products take operands of the tensors' dtype.
"""

import math
from typing import Any, Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvg_engine.kernels import gpu
from qvg_engine.kernels.device import ARCHITECTURES, Architecture, Device, device_of
from qvg_engine.kernels.gpu import Variant
from qvg_engine.kernels.paged_attention import gpu_merge

HEAD_DIMS: Final = (16, 32, 64, 128)
LOG2_E: Final = math.log2(math.e)
LN_2: Final = tl.constexpr(math.log(2.0))
_TYPES: Final = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
}


class Tiles(NamedTuple):
    """What a program works on at a time, and how many programs a multiprocessor has room for."""

    block_queries: int
    block_tokens: int
    num_warps: int
    num_stages: int
    resident: int = 1


# Chosen by registers, spills and shared memory with head_dim 128 (offline, Triton 3.9); not yet by
# time. 64 tokens a block spill on 89 and 120, whose products have their operands in registers.
_MANY: Final[dict[Architecture, Tiles]] = {
    80: Tiles(128, 64, 8, 3),
    89: Tiles(128, 32, 8, 3),
    90: Tiles(128, 128, 8, 2),
    100: Tiles(128, 128, 8, 2),
    120: Tiles(128, 32, 8, 3),
}
_SOME: Final[dict[Architecture, Tiles]] = {
    80: Tiles(64, 64, 8, 2),
    89: Tiles(64, 64, 8, 2),
    90: Tiles(64, 64, 4, 3),
    100: Tiles(64, 64, 4, 3),
    120: Tiles(64, 64, 8, 2),
}
_FEW: Final[dict[Architecture, Tiles]] = {
    80: Tiles(16, 64, 4, 3, resident=2),
    89: Tiles(16, 64, 4, 3),
    90: Tiles(16, 128, 4, 2, resident=2),
    100: Tiles(16, 128, 4, 2, resident=2),
    120: Tiles(16, 64, 4, 3),
}


LAUNCHED: Final = ((16, True), (64, True), (128, True), (128, False))
"""Numbers of queries that have tiles of their own, and whether parts are written, to be merged.

Few queries are hardly ever attended to in one part.
"""


def tiles_for(architecture: Architecture, num_queries: int) -> Tiles:
    """What is launched for this many queries of a head."""
    return (_FEW if num_queries <= 16 else _SOME if num_queries <= 64 else _MANY)[architecture]


@triton.jit
def load_rows(
    base: tl.tensor,
    row: tl.tensor,
    stride: tl.tensor,
    end: tl.tensor,
    HEAD_DIM: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """Rows [rows, HEAD_DIM] of a tensor; zeros from row `end` on if MASKED."""
    pointers = base + row[:, None] * stride + tl.arange(0, HEAD_DIM)[None, :]
    return tl.load(pointers, mask=(row < end)[:, None], other=0.0) if MASKED else tl.load(pointers)


@triton.jit
def _attend_block(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    bias: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    stride_keys: tl.tensor,
    stride_values: tl.tensor,
    scale: tl.tensor,
    most: tl.tensor,
    total: tl.tensor,
    sums: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BIASED: tl.constexpr,
    MASKED: tl.constexpr,
    DOT: tl.constexpr,
) -> Any:
    """Bring `most`, `total` and `sums` up to date with the tokens from `start` on."""
    token = start + tl.arange(0, BLOCK_TOKENS)
    block = load_rows(keys, token, stride_keys, end, HEAD_DIM, MASKED).to(DOT)
    scores = tl.dot(queries, tl.trans(block))
    if BIASED:
        if MASKED:
            added = tl.load(bias + token, mask=token < end, other=0.0)
        else:
            added = tl.load(bias + token)
        # In units of the scores before they are scaled.
        scores += (added * (1.4426950408889634 / scale))[None, :]
    if MASKED:
        scores = tl.where((token < end)[None, :], scores, float("-inf"))
    larger = tl.maximum(most, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - larger[:, None])
    shrunk = tl.exp2(most - larger)
    total = total * shrunk + tl.sum(weights, 1)
    block = load_rows(values, token, stride_values, end, HEAD_DIM, MASKED).to(DOT)
    sums = tl.dot(weights.to(DOT), block, sums * shrunk[:, None])
    return larger, total, sums


@triton.jit(do_not_specialize=["num_queries", "num_tokens", "blocks_per_range"])
def _attend(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    num_queries: tl.tensor,
    num_tokens: tl.tensor,
    blocks_per_range: tl.tensor,
    scale: tl.tensor,
    stride_queries_head: tl.tensor,
    stride_queries: tl.tensor,
    stride_keys_head: tl.tensor,
    stride_keys: tl.tensor,
    stride_values_head: tl.tensor,
    stride_values: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BIASED: tl.constexpr,
    DOT: tl.constexpr,
) -> None:
    """out [ranges, heads, queries, HEAD_DIM] and lse [ranges, heads, queries] of each range.

    scale: of the scores, times log2(e).
    """
    head = tl.program_id(1).to(tl.int64)
    range_index = tl.program_id(2)
    query = tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    # Multiples of BLOCK_TOKENS, which the compiler has to see for wide loads.
    begin = range_index * blocks_per_range * BLOCK_TOKENS
    end = tl.minimum(begin + blocks_per_range * BLOCK_TOKENS, num_tokens)
    whole_end = begin + (end - begin) // BLOCK_TOKENS * BLOCK_TOKENS
    queries += head * stride_queries_head
    keys += head * stride_keys_head
    values += head * stride_values_head
    block = load_rows(queries, query, stride_queries, num_queries, HEAD_DIM, True).to(DOT)
    most = tl.full((BLOCK_QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_QUERIES,), tl.float32)
    sums = tl.zeros((BLOCK_QUERIES, HEAD_DIM), tl.float32)
    for start in range(begin, whole_end, BLOCK_TOKENS):
        most, total, sums = _attend_block(
            block,
            keys,
            values,
            bias,
            start,
            end,
            stride_keys,
            stride_values,
            scale,
            most,
            total,
            sums,
            HEAD_DIM,
            BLOCK_TOKENS,
            BIASED,
            False,
            DOT,
        )
    if whole_end < end:
        most, total, sums = _attend_block(
            block,
            keys,
            values,
            bias,
            whole_end,
            end,
            stride_keys,
            stride_values,
            scale,
            most,
            total,
            sums,
            HEAD_DIM,
            BLOCK_TOKENS,
            BIASED,
            True,
            DOT,
        )
    row = (range_index * tl.num_programs(1) + head) * num_queries + query
    offset = row[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    exists = query < num_queries
    tl.store(out + offset, (sums / total[:, None]).to(out.dtype.element_ty), exists[:, None])
    tl.store(lse + row, (most + tl.log2(total)) * LN_2, exists)


def supports(queries: Tensor, keys: Tensor) -> bool:
    """Whether the kernel takes them: fp16 or bf16, in the interpreter fp32 too."""
    if not (gpu.supports(queries) or gpu.is_interpreted()):
        return False
    dtypes = tuple(_TYPES) if gpu.is_interpreted() else (torch.float16, torch.bfloat16)
    fits = queries.dtype == keys.dtype and queries.dtype in dtypes
    return fits and queries.shape[-1] in HEAD_DIMS


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    num_tokens: int,
    bias: Tensor | None,
    scale: float,
    *,
    num_ranges: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention over the first `num_tokens` of keys and values.

    Args:
        queries: [heads, queries, head_dim].
        keys, values: [heads, at least num_tokens, head_dim], any strides but the last.
        num_tokens: at least 1.
        bias: fp32 [at least num_tokens], finite, added to every query's scores, or None.
        scale: of the scores, positive.
        num_ranges: at most how many ranges the tokens are cut into; by the device if None.

    Returns the output [heads, queries, head_dim] in the dtype of `queries` and the log-sum-exp of
    the scores, fp32 [heads, queries].
    """
    num_heads, num_queries, head_dim = queries.shape
    assert supports(queries, keys), (queries.dtype, queries.shape)
    assert values.dtype == keys.dtype, values.dtype
    assert 0 < num_tokens <= min(keys.shape[1], values.shape[1]), num_tokens
    assert scale > 0, scale
    assert queries.stride(2) == keys.stride(2) == values.stride(2) == 1
    device = device_of(queries.device)
    tiles = tiles_for(device.architecture, num_queries)
    ranges, length = cut_tokens(tiles, num_heads, num_queries, num_tokens, device, num_ranges)
    out, lse = empty_result(queries, 1)
    parts, part_lse = (out, lse) if ranges == 1 else empty_result(queries, ranges)
    _attend[(triton.cdiv(num_queries, tiles.block_queries), num_heads, ranges)](
        queries,
        keys,
        values,
        bias,
        parts,
        part_lse,
        num_queries,
        num_tokens,
        length,
        scale * LOG2_E,
        queries.stride(0),
        queries.stride(1),
        keys.stride(0),
        keys.stride(1),
        values.stride(0),
        values.stride(1),
        **_constants(tiles, head_dim, queries.dtype, biased=bias is not None),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    if ranges > 1:
        gpu_merge.merge_ranges(parts, part_lse, out, lse)
    return out, lse


def cut_tokens(
    tiles: Tiles,
    num_heads: int,
    num_queries: int,
    num_tokens: int,
    device: Device,
    num_ranges: int | None,
) -> tuple[int, int]:
    """How many ranges of tokens there are, and the blocks of each but the last."""
    num_blocks = triton.cdiv(num_tokens, tiles.block_tokens)
    if num_ranges is None:
        num_programs = num_heads * triton.cdiv(num_queries, tiles.block_queries)
        num_slots = device.num_multiprocessors * tiles.resident
        num_ranges = gpu_merge.num_ranges(num_programs, num_blocks, num_slots)
    length = triton.cdiv(num_blocks, num_ranges)
    return triton.cdiv(num_blocks, length), length


def empty_result(queries: Tensor, ranges: int) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp to write: the result, or fp32 parts of as many ranges."""
    shape = queries.shape if ranges == 1 else (ranges, *queries.shape)
    dtype = queries.dtype if ranges == 1 else torch.float32
    out = torch.empty(shape, device=queries.device, dtype=dtype)
    return out, torch.empty(shape[:-1], device=queries.device, dtype=torch.float32)


def _constants(tiles: Tiles, head_dim: int, dtype: torch.dtype, *, biased: bool) -> dict[str, Any]:
    return {
        "HEAD_DIM": head_dim,
        "BLOCK_QUERIES": tiles.block_queries,
        "BLOCK_TOKENS": tiles.block_tokens,
        "BIASED": biased,
        # The interpreter computes wrongly in bf16.
        "DOT": tl.float32 if gpu.is_interpreted() else _TYPES[dtype],
    }


def variants() -> tuple[Variant, ...]:
    """What is launched for head_dim 64 and 128, with parts and without, biased and not."""
    return tuple(
        _variant(architecture, num_queries, head_dim, biased=biased, parts=parts)
        for architecture in ARCHITECTURES
        for num_queries, parts in LAUNCHED
        for head_dim in (64, 128)
        for biased in (False, True)
    )


def _variant(
    architecture: Architecture, num_queries: int, head_dim: int, *, biased: bool, parts: bool
) -> Variant:
    tiles = tiles_for(architecture, num_queries)
    strides = [
        f"stride_{name}{suffix}"
        for name in ("queries", "keys", "values")
        for suffix in ("_head", "")
    ]
    constants = _constants(tiles, head_dim, torch.bfloat16, biased=biased)
    # Compiled for a device, where the interpreter's operands do not matter.
    constants["DOT"] = tl.bfloat16
    if not biased:
        constants["bias"] = None
    pointers = dict.fromkeys(("queries", "keys", "values"), "*bf16")
    pointers |= {"bias": "*fp32" if biased else "constexpr", "out": "*fp32" if parts else "*bf16"}
    pointers["lse"] = "*fp32"
    counts = dict.fromkeys(("num_queries", "num_tokens", "blocks_per_range"), "i32")
    aligned = ("queries", "keys", "values", *(("bias",) if biased else ()), "out", "lse", *strides)
    return Variant(
        name=f"attend-dense-sm{architecture}-q{num_queries}-d{head_dim}"
        + ("-parts" if parts else "")
        + ("-biased" if biased else ""),
        kernel=_attend,
        signature={
            **pointers,
            **counts,
            "scale": "fp32",
            **dict.fromkeys(strides, "i32"),
            **dict.fromkeys([name for name in constants if name != "bias"], "constexpr"),
        },
        constants=constants,
        aligned=aligned,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        architectures=(architecture,),
    )
