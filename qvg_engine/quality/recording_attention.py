"""Attention that copies what passes by."""

import torch
from torch import Tensor

from qvg_engine.models.attention import EngineAttention

Rows = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, [tokens, heads, head_dim] each."""


class RecordingAttention:
    """Copies some rows of some layers and heads on their way to attention."""

    def __init__(
        self,
        attention: EngineAttention,
        rows: slice,
        into: dict[int, list[Rows]],
        *,
        heads: tuple[int, ...],
        dtype: torch.dtype | None,
    ) -> None:
        self._attention = attention
        self._rows = rows
        self._into = into
        self._heads = heads
        self._dtype = dtype

    def self_attention(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        self._note(layer, queries, keys, values)
        return self._attention.self_attention(layer, queries, keys, values)

    def self_attentions(
        self,
        layer: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        with_text: bool = False,
    ) -> tuple[Tensor, ...]:
        self._note(layer, queries, keys, values)
        return self._attention.self_attentions(layer, queries, keys, values, with_text=with_text)

    def _note(self, layer: int, *rows: Tensor) -> None:
        if layer in self._into:
            num_heads = rows[1].shape[1]
            part = tuple(self._copy(x, num_heads) for x in rows)
            self._into[layer].append(part)  # type: ignore[arg-type]

    def _copy(self, x: Tensor, num_heads: int) -> Tensor:
        """The recorded rows of [tokens, heads, head_dim], where `num_heads` divides the heads."""
        rows = x[self._rows].detach().unflatten(1, (num_heads, -1))
        chosen: Tensor = rows[:, list(self._heads)].flatten(1, 2)
        return chosen.to(device="cpu", dtype=self._dtype or x.dtype)

    def cross_attention(self, layer: int, queries: Tensor) -> Tensor:
        return self._attention.cross_attention(layer, queries)
