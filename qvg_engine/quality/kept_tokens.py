"""What it is worth to keep some tokens of a window at a higher precision than the others."""

from typing import Literal

import msgspec
import torch
from torch import Tensor

from qvg_engine.quality.capture import Capture
from qvg_engine.quality.teacher_forced import TeacherForced, merged

Which = Literal["newest", "oldest", "first"]


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that are kept apart: so many of the "newest" or the "oldest" cached ones that a chunk
    reads, or of the stream's "first", where a chunk still reads them."""

    which: Which
    num_tokens: int

    def __post_init__(self) -> None:
        assert self.num_tokens >= 1, self.num_tokens

    def tokens(self, capture: Capture, chunk: int) -> Tensor:
        """The numbers of the cached tokens that a chunk reads of these, int64."""
        parts = capture.seen_by(chunk)
        seen = torch.cat([torch.arange(part.start, part.stop) for part in parts])
        if self.which == "first":
            return seen[seen < self.num_tokens]
        return seen[-self.num_tokens :] if self.which == "newest" else seen[: self.num_tokens]


def attention_error(
    forced: TeacherForced,
    capture: Capture,
    kept: Kept,
    *,
    read: tuple[Tensor, Tensor],
    better: tuple[Tensor, Tensor],
) -> float:
    """The relative error of attention's output, see `TeacherForced.error`.

    Args:
        forced: the chunks that attend.
        capture: that it is of.
        kept: which tokens are read from `better`.
        read, better: K and V, [tokens, heads, head_dim] each, as they are read back in two formats.
    """
    outputs = {}
    for chunk in forced.chunks:
        tokens = kept.tokens(capture, chunk)
        keys, values = (x.clone() for x in read)
        keys[tokens], values[tokens] = better[0][tokens].float(), better[1][tokens].float()
        outputs[chunk] = merged(forced.cached(chunk, keys, values), forced.own(chunk))
    return forced.relative_error(outputs)


def extra_bits(bits: float, better_bits: float, *, num_tokens: int, window_tokens: int) -> float:
    """What keeping `num_tokens` of a window in `better_bits` adds to an element of it."""
    assert 1 <= num_tokens <= window_tokens, (num_tokens, window_tokens)
    return num_tokens * (better_bits - bits) / window_tokens
