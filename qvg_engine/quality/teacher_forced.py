"""Attention of captured queries over rows that are not quite those that were captured.

Teacher-forced: the queries of a chunk see the cached tokens of their window as they are read back,
rotated, and their own chunk's exactly. The two parts are attended to apart and merged by
log-sum-exp, so that each part's share can be looked at, and changed.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qvg_engine.kernels.paged_attention import dense, reference
from qvg_engine.quality.capture import Capture, LayerCapture


class Part(NamedTuple):
    """Attention over some tokens.

    out: fp32 [heads, queries, head_dim].
    lse: the log-sum-exp of the scores, fp32 [heads, queries].
    """

    out: Tensor
    lse: Tensor


class TeacherForced:
    """Some chunks of one layer of a capture, and their attention with nothing rounded.

    Args:
        capture: where queries, keys and values come from.
        layer: one that was captured.
        chunks: which chunks attend; each reads cached tokens, so the first one is not among them.
        asking: what another pass over the same tokens, of denoising, gave to attention: queries,
            and K and V of a chunk's own tokens, are its; those of the commit pass by default.
    """

    def __init__(
        self,
        capture: Capture,
        layer: int,
        chunks: Sequence[int],
        *,
        asking: LayerCapture | None = None,
    ) -> None:
        assert chunks, "no chunk to look at"
        assert min(chunks) >= 1, chunks
        self.chunks = tuple(chunks)
        self._capture = capture
        self._rows = capture.layers[layer]
        self._asking = asking or self._rows
        self._transform = capture.transform
        head_dim = self._rows.keys.shape[2]
        self.scale = 1 / math.sqrt(head_dim)
        self._queries = {chunk: self._rotated_queries(chunk) for chunk in chunks}
        self._own = {chunk: self._own_part(chunk) for chunk in chunks}
        self._exact = {
            chunk: merged(self.cached(chunk, self._rows.keys, self._rows.values), self._own[chunk])
            for chunk in chunks
        }

    def queries(self, chunk: int) -> Tensor:
        """A chunk's rotated queries, fp32 [heads, queries, head_dim]."""
        return self._queries[chunk]

    def seen(self, chunk: int) -> Tensor:
        """The numbers of the cached tokens that a chunk reads, int64 [tokens]."""
        parts = [torch.arange(part.start, part.stop) for part in self._capture.seen_by(chunk)]
        return torch.cat(parts)

    def own(self, chunk: int) -> Part:
        """A chunk's attention over its own tokens."""
        return self._own[chunk]

    def exact(self, chunk: int) -> Tensor:
        """A chunk's attention over all that it sees, fp32 [heads, queries, head_dim]."""
        return self._exact[chunk]

    def cached(self, chunk: int, keys: Tensor, values: Tensor) -> Part:
        """A chunk's attention over its cached tokens, read from `keys` and `values`.

        Both are [tokens, heads, head_dim], token number n in row n; K is not rotated yet.
        """
        return self._attend(chunk, self.seen(chunk), keys, values)

    def error(self, keys: Tensor, values: Tensor) -> float:
        """The norm of what reading `keys` and `values` changes, over that of the exact output.

        Over all the chunks together; see `cached` for the arguments.
        """
        return self.relative_error(
            {
                chunk: merged(self.cached(chunk, keys, values), self._own[chunk])
                for chunk in self.chunks
            }
        )

    def relative_error(self, outputs: dict[int, Tensor]) -> float:
        """The same of outputs [heads, queries, head_dim] that are given for every chunk."""
        lost = sum(_energy(outputs[chunk] - self._exact[chunk]) for chunk in self.chunks)
        return math.sqrt(lost / sum(_energy(self._exact[chunk]) for chunk in self.chunks))

    def _own_part(self, chunk: int) -> Part:
        own = self._capture.chunk(chunk)
        return self._attend(
            chunk, torch.arange(own.start, own.stop), self._asking.keys, self._asking.values
        )

    def _rotated_queries(self, chunk: int) -> Tensor:
        own = self._capture.chunk(chunk)
        rows = self._asking.queries[own].float()
        return self._transform.queries(rows, self._capture.positions[own]).transpose(0, 1)

    def _attend(self, chunk: int, tokens: Tensor, keys: Tensor, values: Tensor) -> Part:
        queries = self._queries[chunk]
        rotated = self._transform.keys(keys[tokens].float(), tokens.numpy())
        group = queries.shape[0] // keys.shape[1]
        key_heads = rotated.transpose(0, 1).repeat_interleave(group, dim=0)
        value_heads = values[tokens].float().transpose(0, 1).repeat_interleave(group, dim=0)
        return Part(*reference.attend(queries, key_heads, value_heads, None, self.scale))


def merged(cached: Part, own: Part) -> Tensor:
    """Attention over the tokens of both parts, fp32 [heads, queries, head_dim]."""
    return dense.merge(cached, own)[0]


def _energy(x: Tensor) -> float:
    return float(x.double().square().sum())
