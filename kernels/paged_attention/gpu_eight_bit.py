"""Attention over an 8-bit workspace on a GPU (Triton).

As in `gpu_dense`, a program holds a block of queries of one head and goes over the tokens. It
quantises its queries to INT8, a scale a row; scores are INT8 products, which are exact, times both
scales. Weights are scaled to the range of E4M3 before they are rounded to it. Products of E4M3 add
up with fewer than the 24 bits of fp32 inside the hardware: a block's sum is taken by itself and
added to the others in fp32.
"""

import math
from typing import Any, Final

import triton
import triton.language as tl
from torch import Tensor

from qvg_engine.kernels import gpu
from qvg_engine.kernels.codec.gpu_e4m3 import narrow_e4m3
from qvg_engine.kernels.device import ARCHITECTURES, Architecture, device_of
from qvg_engine.kernels.gpu import Variant
from qvg_engine.kernels.paged_attention import gpu_merge
from qvg_engine.kernels.paged_attention.eight_bit import HEAD_DIMS, EightBitWorkspace
from qvg_engine.kernels.paged_attention.gpu_dense import (
    LAUNCHED,
    LN_2,
    LOG2_E,
    Tiles,
    cut_tokens,
    empty_result,
    load_rows,
)
from qvg_engine.kernels.paged_attention.gpu_quantise import quantise_rows

_LOG2_LARGEST: Final = tl.constexpr(math.log2(448.0))

# Chosen as those of `gpu_dense` are.
_MANY: Final[dict[Architecture, Tiles]] = {
    80: Tiles(128, 64, 8, 2),
    89: Tiles(128, 32, 8, 3),
    90: Tiles(128, 128, 8, 2),
    100: Tiles(128, 128, 8, 2),
    120: Tiles(64, 32, 4, 3, resident=2),
}
_SOME: Final[dict[Architecture, Tiles]] = {
    80: Tiles(64, 64, 8, 2),
    89: Tiles(64, 64, 8, 3),
    90: Tiles(64, 64, 4, 3),
    100: Tiles(64, 64, 4, 3),
    120: Tiles(64, 64, 8, 2),
}
_FEW: Final[dict[Architecture, Tiles]] = {
    80: Tiles(16, 128, 4, 2, resident=2),
    89: Tiles(16, 128, 4, 2),
    90: Tiles(16, 128, 4, 3, resident=2),
    100: Tiles(16, 128, 4, 3, resident=2),
    120: Tiles(16, 128, 4, 2),
}


def tiles_for(architecture: Architecture, num_queries: int) -> Tiles:
    """What is launched for this many queries of a head."""
    return (_FEW if num_queries <= 16 else _SOME if num_queries <= 64 else _MANY)[architecture]


@triton.jit
def _load_tokens(base: tl.tensor, token: tl.tensor, end: tl.tensor, MASKED: tl.constexpr) -> Any:
    return tl.load(base + token, mask=token < end, other=0.0) if MASKED else tl.load(base + token)


@triton.jit
def _attend_block(
    queries: tl.tensor,
    row_scale: tl.tensor,
    keys: tl.tensor,
    key_scales: tl.tensor,
    values: tl.tensor,
    bias: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    stride_values: tl.tensor,
    most: tl.tensor,
    total: tl.tensor,
    sums: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BIASED: tl.constexpr,
    MASKED: tl.constexpr,
    E4M3: tl.constexpr,
    HAS_CAST: tl.constexpr,
) -> Any:
    """Bring `most`, `total` and `sums` up to date with the tokens from `start` on."""
    token = start + tl.arange(0, BLOCK_TOKENS)
    block = load_rows(keys, token, HEAD_DIM, end, HEAD_DIM, MASKED)
    scores = tl.dot(queries, tl.trans(block), out_dtype=tl.int32).to(tl.float32)
    scores *= _load_tokens(key_scales, token, end, MASKED)[None, :]
    if BIASED:
        added = _load_tokens(bias, token, end, MASKED) * 1.4426950408889634
        scores = scores * row_scale[:, None] + added[None, :]
    if MASKED:
        scores = tl.where((token < end)[None, :], scores, float("-inf"))
    if BIASED:
        larger = tl.maximum(most, tl.max(scores, 1))
        weights = tl.exp2(scores - (larger - _LOG2_LARGEST)[:, None])
    else:
        larger = tl.maximum(most, tl.max(scores, 1) * row_scale)
        weights = tl.exp2(scores * row_scale[:, None] - (larger - _LOG2_LARGEST)[:, None])
    shrunk = tl.exp2(most - larger)
    total = total * shrunk + tl.sum(weights, 1)
    channel = tl.arange(0, HEAD_DIM)
    pointers = values + channel[:, None] * stride_values + token[None, :]
    exists = (token < end)[None, :]
    block = tl.load(pointers, mask=exists, other=0) if MASKED else tl.load(pointers)
    if E4M3:
        block = block.to(tl.float8e4nv, bitcast=True)
        if HAS_CAST:
            rounded = weights.to(tl.float8e4nv)
        else:
            rounded = narrow_e4m3(weights).to(tl.float8e4nv, bitcast=True)
        part = tl.dot(rounded, tl.trans(block), max_num_imprecise_acc=BLOCK_TOKENS)
        sums = sums * shrunk[:, None] + part
    else:
        sums = tl.dot(weights.to(tl.float16), tl.trans(block), sums * shrunk[:, None])
    return larger, total, sums


@triton.jit(do_not_specialize=["num_queries", "num_tokens", "blocks_per_range"])
def _attend(
    queries: tl.tensor,
    keys: tl.tensor,
    key_scales: tl.tensor,
    values: tl.tensor,
    value_scales: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    num_queries: tl.tensor,
    num_tokens: tl.tensor,
    blocks_per_range: tl.tensor,
    scale: tl.tensor,
    stride_queries_head: tl.tensor,
    stride_queries: tl.tensor,
    max_tokens: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BIASED: tl.constexpr,
    E4M3: tl.constexpr,
    HAS_CAST: tl.constexpr,
) -> None:
    """See `gpu_dense._attend`; keys and values have room for `max_tokens`, those transposed."""
    head = tl.program_id(1).to(tl.int64)
    range_index = tl.program_id(2)
    query = tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    # Multiples of BLOCK_TOKENS, which the compiler has to see for wide loads.
    begin = range_index * blocks_per_range * BLOCK_TOKENS
    end = tl.minimum(begin + blocks_per_range * BLOCK_TOKENS, num_tokens)
    whole_end = begin + (end - begin) // BLOCK_TOKENS * BLOCK_TOKENS
    queries += head * stride_queries_head
    keys += head * max_tokens * HEAD_DIM
    key_scales += head * max_tokens
    values += head * max_tokens * HEAD_DIM
    block = load_rows(queries, query, stride_queries, num_queries, HEAD_DIM, True)
    codes, row_scale = quantise_rows(block.to(tl.float32))
    # A row of zeros has the scale 0, which would turn scores of -inf into NaN.
    row_scale = tl.where(row_scale == 0.0, 1.0, row_scale) * scale
    most = tl.full((BLOCK_QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_QUERIES,), tl.float32)
    sums = tl.zeros((BLOCK_QUERIES, HEAD_DIM), tl.float32)
    for start in range(begin, whole_end, BLOCK_TOKENS):
        most, total, sums = _attend_block(
            codes,
            row_scale,
            keys,
            key_scales,
            values,
            bias,
            start,
            end,
            max_tokens,
            most,
            total,
            sums,
            HEAD_DIM,
            BLOCK_TOKENS,
            BIASED,
            False,
            E4M3,
            HAS_CAST,
        )
    if whole_end < end:
        most, total, sums = _attend_block(
            codes,
            row_scale,
            keys,
            key_scales,
            values,
            bias,
            whole_end,
            end,
            max_tokens,
            most,
            total,
            sums,
            HEAD_DIM,
            BLOCK_TOKENS,
            BIASED,
            True,
            E4M3,
            HAS_CAST,
        )
    channel = tl.arange(0, HEAD_DIM)
    sums *= (1.0 / total)[:, None] * tl.load(value_scales + head * HEAD_DIM + channel)[None, :]
    row = (range_index * tl.num_programs(1) + head) * num_queries + query
    exists = query < num_queries
    offset = row[:, None] * HEAD_DIM + channel[None, :]
    tl.store(out + offset, sums.to(out.dtype.element_ty), exists[:, None])
    tl.store(lse + row, (most + (tl.log2(total) - _LOG2_LARGEST)) * LN_2, exists)


def supports(queries: Tensor) -> bool:
    """Whether the kernel takes these queries."""
    return queries.shape[-1] in HEAD_DIMS and (gpu.supports(queries) or gpu.is_interpreted())


def attend(
    queries: Tensor,
    workspace: EightBitWorkspace,
    num_tokens: int,
    bias: Tensor | None,
    scale: float,
    *,
    num_ranges: int | None = None,
) -> tuple[Tensor, Tensor]:
    """See `eight_bit.attend`; num_ranges as in `gpu_dense.attend`."""
    num_heads, num_queries, head_dim = queries.shape
    assert supports(queries), (queries.device, queries.shape)
    assert queries.stride(2) == 1
    device = device_of(queries.device)
    assert device.has_e4m3 or not workspace.has_e4m3, device
    tiles = tiles_for(device.architecture, num_queries)
    ranges, blocks = cut_tokens(tiles, num_heads, num_queries, num_tokens, device, num_ranges)
    out, lse = empty_result(queries, 1)
    parts, part_lse = (out, lse) if ranges == 1 else empty_result(queries, ranges)
    _attend[(triton.cdiv(num_queries, tiles.block_queries), num_heads, ranges)](
        queries,
        workspace.keys,
        workspace.key_scales,
        workspace.values,
        workspace.value_scales,
        bias,
        parts,
        part_lse,
        num_queries,
        num_tokens,
        blocks,
        scale * LOG2_E,
        queries.stride(0),
        queries.stride(1),
        workspace.max_tokens,
        HEAD_DIM=head_dim,
        BLOCK_QUERIES=tiles.block_queries,
        BLOCK_TOKENS=tiles.block_tokens,
        BIASED=bias is not None,
        E4M3=workspace.has_e4m3,
        HAS_CAST=not gpu.is_interpreted(),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    if ranges > 1:
        gpu_merge.merge_ranges(parts, part_lse, out, lse)
    return out, lse


def variants() -> tuple[Variant, ...]:
    """What is launched for head_dim 64 and 128, queries in bf16, biased and not."""
    return tuple(
        _variant(architecture, num_queries, head_dim, e4m3=e4m3, biased=biased, parts=parts)
        for architecture in ARCHITECTURES
        # Tiles of 89 are for 86 too, which has no E4M3.
        for e4m3 in {80: (False,), 89: (False, True)}.get(architecture, (True,))
        for num_queries, parts in LAUNCHED
        for head_dim in (64, 128)
        for biased in (False, True)
    )


def _variant(
    architecture: Architecture,
    num_queries: int,
    head_dim: int,
    *,
    e4m3: bool,
    biased: bool,
    parts: bool,
) -> Variant:
    tiles = tiles_for(architecture, num_queries)
    constants: dict[str, Any] = {
        "HEAD_DIM": head_dim,
        "BLOCK_QUERIES": tiles.block_queries,
        "BLOCK_TOKENS": tiles.block_tokens,
        "BIASED": biased,
        "E4M3": e4m3,
        "HAS_CAST": True,
    }
    pointers = {
        "queries": "*bf16",
        "keys": "*i8",
        "key_scales": "*fp32",
        "values": "*u8" if e4m3 else "*fp16",
        "value_scales": "*fp32",
        "bias": "*fp32" if biased else "constexpr",
        "out": "*fp32" if parts else "*bf16",
        "lse": "*fp32",
    }
    strides = ("stride_queries_head", "stride_queries", "max_tokens")
    name = f"attend-eight-bit-sm{architecture}-q{num_queries}-d{head_dim}"
    return Variant(
        name=name
        + ("-parts" if parts else "")
        + ("" if e4m3 else "-fp16")
        + ("-biased" if biased else ""),
        kernel=_attend,
        signature={
            **pointers,
            **dict.fromkeys(("num_queries", "num_tokens", "blocks_per_range"), "i32"),
            "scale": "fp32",
            **dict.fromkeys(strides, "i32"),
            **dict.fromkeys(constants, "constexpr"),
        },
        constants=constants if biased else {**constants, "bias": None},
        aligned=(*(p for p in pointers if p != "bias" or biased), *strides),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        architectures=(architecture,),
    )
