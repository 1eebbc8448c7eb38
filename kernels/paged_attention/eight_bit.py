"""Attention over keys and values of 8 bits: the workspace, and who computes on it.

A piece is attended to in this order: `EightBitWorkspace.clear`, `bound_values` for all of its rows,
`store` for all of its rows, `attend`; for pages, the functions of `decode_eight_bit.py`.
"""

from typing import Any

import torch
from torch import Tensor

from qvg_engine.errors import ConfigError
from qvg_engine.kernels import gpu
from qvg_engine.kernels.device import Device, device_of
from qvg_engine.kernels.paged_attention import reference_eight_bit

_ALIGNMENT = 16
"""Tokens; what a row of transposed values is a multiple of, for loads of 16 bytes."""


HEAD_DIMS = (32, 64, 128)
"""What the kernels take."""


class EightBitWorkspace:
    """Room for at least `max_tokens` decoded tokens of one layer; see `Workspace`.

    keys: int8 [num_heads, max_tokens, head_dim], -127 to 127.
    key_scales: fp32 [num_heads, max_tokens]; a key is its codes times its scale.
    values: [num_heads, head_dim, max_tokens], transposed, as the products of tensor cores want
        them: E4M3 bits, uint8, or fp16 on devices without products of E4M3.
    value_scales: fp32 [num_heads, head_dim]; a value is its code times its channel's scale.
    bias: fp32 [max_tokens], what is added to the scores of a token.

    A channel's scale has to be known before the first row is written. It may be any number that is
    at least the channel's largest magnitude over 448: E4M3 is as precise at a quarter of its range
    as at all of it, so a bound will do that is a few times too large. `bound_values` takes the
    maximum of rows at hand; who decodes codes can bound it by what a page's codebook holds.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        max_tokens: int,
        device: torch.device | str,
        value_dtype: torch.dtype | None = None,
    ) -> None:
        """Raises `ConfigError` without room, or for a head_dim that is not of `HEAD_DIMS`.

        value_dtype: torch.uint8 for E4M3 or torch.float16; what the device can if None.
        """
        if max_tokens < 1:
            raise ConfigError(f"a workspace needs room for at least 1 token, got {max_tokens}")
        _check_head_dim(head_dim)
        device = torch.device(device)
        value_dtype = value_dtype_for(device_of(device)) if value_dtype is None else value_dtype
        assert value_dtype in (torch.uint8, torch.float16), value_dtype
        room = _rounded_up(max_tokens)

        def empty(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, device=device, dtype=dtype)

        self.keys = empty(num_heads, room, head_dim, dtype=torch.int8)
        self.key_scales = empty(num_heads, room, dtype=torch.float32)
        self.values = empty(num_heads, head_dim, room, dtype=value_dtype)
        self.value_scales = empty(num_heads, head_dim, dtype=torch.float32)
        self.bias = empty(room, dtype=torch.float32)

    @staticmethod
    def bytes_for(
        *, num_heads: int, head_dim: int, max_tokens: int, value_dtype: torch.dtype
    ) -> int:
        """Bytes that a workspace of this size would take; see `__init__` for what it raises."""
        _check_head_dim(head_dim)
        room = _rounded_up(max_tokens)
        token_bytes = num_heads * (head_dim * (1 + value_dtype.itemsize) + 4) + 4
        return room * token_bytes + num_heads * head_dim * 4

    @property
    def max_tokens(self) -> int:
        """Tokens that fit: those asked for, rounded up to a multiple of 16."""
        return self.keys.shape[1]

    @property
    def num_bytes(self) -> int:
        """Bytes allocated."""
        tensors = (self.keys, self.key_scales, self.values, self.value_scales, self.bias)
        return sum(x.nbytes for x in tensors)

    @property
    def has_e4m3(self) -> bool:
        """Whether values are E4M3, and weights are rounded to it; else both are fp16."""
        return self.values.dtype == torch.uint8

    def clear(self) -> None:
        """Forget all tokens, before another piece is written."""
        self.value_scales.zero_()


def _check_head_dim(head_dim: int) -> None:
    if head_dim not in HEAD_DIMS:
        raise ConfigError(
            f"8-bit attention takes a head_dim of 32, 64 or 128, got {head_dim}; use a "
            "workspace in bf16"
        )


def _rounded_up(max_tokens: int) -> int:
    return -(-max_tokens // _ALIGNMENT) * _ALIGNMENT


def value_dtype_for(device: Device) -> torch.dtype:
    """What values are stored as: E4M3 (torch.uint8) where there are products of it, else fp16."""
    return torch.uint8 if device.has_e4m3 else torch.float16


def bound_values(workspace: EightBitWorkspace, values: Tensor) -> None:
    """Raise the scales of channels to those that `values` [heads, tokens, head_dim] need."""
    _implementation(values).bound_values(workspace, values)


def store(workspace: EightBitWorkspace, keys: Tensor, values: Tensor, *, start: int) -> None:
    """Quantise rows [heads, tokens, head_dim] to the places from `start` on.

    The scales of channels bound the values; what exceeds them becomes 448 times the scale. Rows
    that hold NaN or infinity have NaN or infinity in their results.
    """
    num_tokens = keys.shape[1]
    assert keys.shape == values.shape, (keys.shape, values.shape)
    assert 0 <= start <= start + num_tokens <= workspace.max_tokens, (start, num_tokens)
    _implementation(keys).store(workspace, keys, values, start=start)


def attend(
    queries: Tensor,
    workspace: EightBitWorkspace,
    num_tokens: int,
    bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Softmax attention over the first `num_tokens` of the workspace.

    Queries are quantised to INT8, a scale each; weights are rounded to E4M3 or fp16.

    Args:
        queries: [heads, queries, head_dim].
        num_tokens: at least 1.
        bias: fp32 [at least num_tokens], finite, added to every query's scores, or None.
        scale: of the scores, positive.

    Returns the output [heads, queries, head_dim] in the dtype of `queries` and the log-sum-exp of
    the scores, fp32 [heads, queries].
    """
    assert 0 < num_tokens <= workspace.max_tokens, num_tokens
    assert scale > 0, scale
    if gpu.supports(queries):
        from qvg_engine.kernels.paged_attention import gpu_eight_bit

        return gpu_eight_bit.attend(queries, workspace, num_tokens, bias, scale)
    return reference_eight_bit.attend(queries, workspace, num_tokens, bias, scale)


def _implementation(rows: Tensor) -> Any:
    if not gpu.supports(rows):
        return reference_eight_bit
    from qvg_engine.kernels.paged_attention import gpu_quantise

    return gpu_quantise
