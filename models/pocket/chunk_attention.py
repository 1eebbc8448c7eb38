"""Attention of every chunk of a clip at once, written out with its gradient.

On CPUs this is two to three times as fast as torch's fused kernel at chunks of 192 tokens, and
saves what automatic differentiation spends on the gradients of overlapping slices.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

WINDOW_CHUNKS = 16


def attend_chunks(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    context: tuple[Tensor, Tensor],
    chunk_tokens: int,
    copies: int,
    first: int,
) -> Tensor:
    """Queries of m copies of r chunks over the clean chunks before theirs and over themselves.

    Queries, keys and values are [B, H, r m S, D] with a chunk's copies side by side, rotated and
    scaled; the clean keys and values in `context` are [B, H, at least (first + r - 1) S, D] (or
    empty). Chunk i of the r sees clean chunks `first + i - WINDOW_CHUNKS + 1` to `first + i - 1`.
    S is `chunk_tokens`, m `copies`. Returns [B, H, r m S, D].
    """
    attended: Tensor = _ChunkAttention.apply(  # type: ignore[no-untyped-call]
        queries, keys, values, *context, chunk_tokens, copies, first
    )
    return attended


class _ChunkAttention(torch.autograd.Function):
    """`attend_chunks`, with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        clean_keys: Tensor,
        clean_values: Tensor,
        chunk_tokens: int,
        copies: int,
        first: int,
    ) -> Tensor:
        outputs = torch.empty_like(queries)
        kept = []
        for own, seen in _chunks(queries.shape[2], chunk_tokens, copies, first):
            q, k, v = (_by_copy(x[:, :, own], copies) for x in (queries, keys, values))
            own_scores = (q @ k.mT).flatten(2, 3)
            context_scores = queries[:, :, own] @ clean_keys[:, :, seen].mT
            weights = torch.cat([context_scores, own_scores], dim=-1).softmax(dim=-1)
            kept.append(weights)
            context, itself = _split(weights, chunk_tokens, copies)
            outputs[:, :, own] = (itself @ v).flatten(2, 3)
            if context.shape[-1]:
                outputs[:, :, own] += context @ clean_values[:, :, seen]
        ctx.save_for_backward(queries, keys, values, clean_keys, clean_values, *kept)
        ctx.sizes = (chunk_tokens, copies, first)
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys, values, clean keys and clean values."""
        queries, keys, values, clean_keys, clean_values, *kept = ctx.saved_tensors
        chunk_tokens, copies, first = ctx.sizes
        d_queries, d_keys, d_values = (torch.empty_like(x) for x in (queries, keys, values))
        d_clean_keys, d_clean_values = torch.zeros_like(clean_keys), torch.zeros_like(clean_values)
        spans = _chunks(queries.shape[2], chunk_tokens, copies, first)
        for weights, (own, seen) in zip(kept, spans, strict=True):
            d_out = gradient[:, :, own]
            q, k, v, d_out_each = (
                _by_copy(x[:, :, own], copies) for x in (queries, keys, values, gradient)
            )
            d_own_weights = (d_out_each @ v.mT).flatten(2, 3)
            d_context_weights = d_out @ clean_values[:, :, seen].mT
            d_scores = torch._softmax_backward_data(
                torch.cat([d_context_weights, d_own_weights], dim=-1), weights, -1, weights.dtype
            )
            context, itself = _split(weights, chunk_tokens, copies)
            d_context, d_itself = _split(d_scores, chunk_tokens, copies)
            d_queries[:, :, own] = (d_itself @ k).flatten(2, 3)
            d_keys[:, :, own] = (d_itself.mT @ q).flatten(2, 3)
            d_values[:, :, own] = (itself.mT @ d_out_each).flatten(2, 3)
            if context.shape[-1]:
                d_queries[:, :, own] += d_context @ clean_keys[:, :, seen]
                d_clean_keys[:, :, seen] += d_context.mT @ queries[:, :, own]
                d_clean_values[:, :, seen] += context.mT @ d_out
        return d_queries, d_keys, d_values, d_clean_keys, d_clean_values, None, None, None


def _chunks(
    tokens: int, chunk_tokens: int, copies: int, first: int
) -> Iterator[tuple[slice, slice]]:
    """For every chunk, its own tokens and the clean tokens that it sees."""
    size = chunk_tokens * copies
    for place in range(tokens // size):
        chunk = first + place
        oldest = max(0, chunk - WINDOW_CHUNKS + 1)
        yield (
            slice(place * size, (place + 1) * size),
            slice(oldest * chunk_tokens, chunk * chunk_tokens),
        )


def _by_copy(x: Tensor, copies: int) -> Tensor:
    """[B, H, m S, D] -> [B, H, m, S, D]."""
    each: Tensor = x.unflatten(2, (copies, -1))
    return each


def _split(weights: Tensor, chunk_tokens: int, copies: int) -> tuple[Tensor, Tensor]:
    """[B, H, m S, context + S] -> what falls on the context, and [B, H, m, S, S] on itself."""
    context = weights[..., :-chunk_tokens]
    return context, _by_copy(weights[..., -chunk_tokens:], copies)
