"""Quantising decoded rows to an 8-bit workspace on a GPU (Triton).

`quantise_rows` and `quantise_channels` are for any kernel that has such rows in its registers.
"""

from typing import TYPE_CHECKING, Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvg_engine.kernels.codec.gpu_e4m3 import narrow_e4m3
from qvg_engine.kernels.gpu import Variant
from qvg_engine.kernels.paged_attention.reference_eight_bit import SMALLEST

if TYPE_CHECKING:
    from qvg_engine.kernels.paged_attention.eight_bit import EightBitWorkspace

_SMALLEST: Final = tl.constexpr(SMALLEST)
_BLOCK: Final = 64
"""Tokens that one program quantises."""
_NUM_WARPS: Final = 8


@triton.jit
def largest_magnitude(x: tl.tensor, AXIS: tl.constexpr) -> tl.tensor:
    """The largest magnitude along an axis of an fp32 tile; NaN of NaN."""
    # Of the bits, because a maximum of numbers passes over NaN.
    bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.max(bits, AXIS).to(tl.float32, bitcast=True)


@triton.jit
def quantise_rows(x: tl.tensor) -> Any:
    """See `reference_eight_bit.quantise_rows`; x [rows, channels]."""
    largest = largest_magnitude(x, 1)
    largest = tl.where(largest <= _SMALLEST, 0.0, largest)
    inverse = tl.where(largest > 0.0, tl.div_rn(127.0, tl.where(largest > 0.0, largest, 1.0)), 0.0)
    # Beside 1.5 * 2^23 the last bits of fp32 are the nearest integer.
    beside = x * inverse[:, None] + 12582912.0
    codes = (beside.to(tl.int32, bitcast=True) - 0x4B400000).to(tl.int8)
    return codes, tl.div_rn(largest, 127.0)


@triton.jit
def inverse_scales(scales: tl.tensor) -> tl.tensor:
    """What values [.., channels] are multiplied with; 0 for a scale of (almost) 0."""
    vanishes = scales <= _SMALLEST
    return tl.where(vanishes, 0.0, tl.div_rn(1.0, tl.where(vanishes, 1.0, scales)))


@triton.jit
def quantise_channels(x: tl.tensor, inverse: tl.tensor, E4M3: tl.constexpr) -> tl.tensor:
    """fp32 values [tokens, channels] as E4M3 bits, uint8, or as fp16.

    inverse: fp32 [channels], of `inverse_scales`.
    """
    scaled = x * inverse[None, :]
    if E4M3:
        narrowed = narrow_e4m3(scaled)
    else:
        # Unlike a minimum, comparisons keep NaN.
        scaled = tl.where(scaled > 448.0, 448.0, scaled)
        narrowed = tl.where(scaled < -448.0, -448.0, scaled).to(tl.float16)
    return narrowed


@triton.jit
def _load(
    rows: tl.tensor,
    token: tl.tensor,
    stride: tl.tensor,
    num_tokens: tl.tensor,
    HEAD_DIM: tl.constexpr,
) -> tl.tensor:
    pointers = rows + token[:, None].to(tl.int64) * stride + tl.arange(0, HEAD_DIM)[None, :]
    return tl.load(pointers, mask=(token < num_tokens)[:, None], other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["num_tokens"])
def _bound(
    values: tl.tensor,
    scale_bits: tl.tensor,
    num_tokens: tl.tensor,
    stride_head: tl.tensor,
    stride: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Numbers that are not negative are in the order of their bits; a maximum has no order."""
    head = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = _load(values + head * stride_head, token, stride, num_tokens, HEAD_DIM)
    scales = tl.div_rn(largest_magnitude(x, 0), 448.0)
    bits = scales.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    tl.atomic_max(scale_bits + head * HEAD_DIM + tl.arange(0, HEAD_DIM), bits)


@triton.jit(do_not_specialize=["num_tokens", "start"])
def _store(
    key_rows: tl.tensor,
    value_rows: tl.tensor,
    keys: tl.tensor,
    key_scales: tl.tensor,
    values: tl.tensor,
    value_scales: tl.tensor,
    num_tokens: tl.tensor,
    start: tl.tensor,
    max_tokens: tl.tensor,
    stride_keys_head: tl.tensor,
    stride_keys: tl.tensor,
    stride_values_head: tl.tensor,
    stride_values: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    E4M3: tl.constexpr,
) -> None:
    head = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = token < num_tokens
    place = head * max_tokens + start + token
    channel = tl.arange(0, HEAD_DIM)
    x = _load(key_rows + head * stride_keys_head, token, stride_keys, num_tokens, HEAD_DIM)
    codes, scales = quantise_rows(x)
    tl.store(keys + place[:, None] * HEAD_DIM + channel[None, :], codes, exists[:, None])
    tl.store(key_scales + place, scales, exists)
    x = _load(value_rows + head * stride_values_head, token, stride_values, num_tokens, HEAD_DIM)
    inverse = inverse_scales(tl.load(value_scales + head * HEAD_DIM + channel))
    narrowed = tl.trans(quantise_channels(x, inverse, E4M3))
    row = (head * HEAD_DIM + channel) * max_tokens + start
    tl.store(values + row[:, None] + token[None, :], narrowed, exists[None, :])


def bound_values(workspace: "EightBitWorkspace", values: Tensor) -> None:
    """See `eight_bit.bound_values`; the channels of a row are contiguous."""
    num_heads, num_tokens, head_dim = values.shape
    assert values.stride(2) == 1
    _bound[(triton.cdiv(num_tokens, _BLOCK), num_heads)](
        values,
        workspace.value_scales.view(torch.int32),
        num_tokens,
        values.stride(0),
        values.stride(1),
        HEAD_DIM=head_dim,
        BLOCK=_BLOCK,
        num_warps=_NUM_WARPS,
    )


def store(workspace: "EightBitWorkspace", keys: Tensor, values: Tensor, *, start: int) -> None:
    """See `eight_bit.store`; the channels of a row are contiguous."""
    num_heads, num_tokens, head_dim = keys.shape
    assert keys.stride(2) == values.stride(2) == 1
    _store[(triton.cdiv(num_tokens, _BLOCK), num_heads)](
        keys,
        values,
        workspace.keys,
        workspace.key_scales,
        workspace.values,
        workspace.value_scales,
        num_tokens,
        start,
        workspace.max_tokens,
        keys.stride(0),
        keys.stride(1),
        values.stride(0),
        values.stride(1),
        HEAD_DIM=head_dim,
        BLOCK=_BLOCK,
        E4M3=workspace.has_e4m3,
        num_warps=_NUM_WARPS,
    )


def variants() -> tuple[Variant, ...]:
    """What is launched for head_dim 64 and 128, rows in bf16, values in E4M3 and fp16."""
    found = []
    for head_dim in (64, 128):
        found.append(_bound_variant(head_dim))
        found += [_store_variant(head_dim, e4m3=e4m3) for e4m3 in (False, True)]
    return tuple(found)


def _bound_variant(head_dim: int) -> Variant:
    constants = {"HEAD_DIM": head_dim, "BLOCK": _BLOCK}
    counts = dict.fromkeys(("num_tokens", "stride_head", "stride"), "i32")
    return Variant(
        name=f"bound-values-d{head_dim}",
        kernel=_bound,
        signature={
            "values": "*bf16",
            "scale_bits": "*i32",
            **counts,
            **dict.fromkeys(constants, "constexpr"),
        },
        constants=constants,
        aligned=("values", "scale_bits", "stride_head", "stride"),
        num_warps=_NUM_WARPS,
    )


def _store_variant(head_dim: int, *, e4m3: bool) -> Variant:
    constants = {"HEAD_DIM": head_dim, "BLOCK": _BLOCK, "E4M3": e4m3}
    pointers = {
        "key_rows": "*bf16",
        "value_rows": "*bf16",
        "keys": "*i8",
        "key_scales": "*fp32",
        "values": "*u8" if e4m3 else "*fp16",
        "value_scales": "*fp32",
    }
    strides = tuple(f"stride_{name}{part}" for name in ("keys", "values") for part in ("_head", ""))
    return Variant(
        name=f"store-eight-bit-d{head_dim}-{'e4m3' if e4m3 else 'fp16'}",
        kernel=_store,
        signature={
            **pointers,
            **dict.fromkeys(("num_tokens", "start", "max_tokens", *strides), "i32"),
            **dict.fromkeys(constants, "constexpr"),
        },
        constants=constants,
        aligned=(*pointers, "max_tokens", *strides),
        num_warps=_NUM_WARPS,
    )
