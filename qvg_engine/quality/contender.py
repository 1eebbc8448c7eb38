"""What all formats that are compared have in common, those of the engine and others."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """Rows as they are read back.

    rows: fp32 [tokens, heads, head_dim].
    bits: stored for each element of each token: codes, ids, scales, zero points.
    shared_bits: of what many tokens share (codebooks, widths, bases), spread over the elements of
        the tokens that were stored with it.
    """

    rows: Tensor
    bits: float
    shared_bits: float

    @property
    def total_bits(self) -> float:
        """All bits of an element."""
        return self.bits + self.shared_bits


class Contender(Protocol):
    """A way to store K or V in few bits."""

    @property
    def name(self) -> str: ...

    def round_trip(self, rows: Tensor, *, is_key: bool, seed: int, centroids: int) -> RoundTrip:
        """Store rows and read them back.

        Args:
            rows: fp32 [tokens, heads, head_dim] of one layer of one stream, tokens in order. K is
                before RoPE, its channels in the engine's order: the two halves of a head are the
                two channels of each rotated pair.
            is_key: whether the rows are K.
            seed: of whatever is random.
            centroids: of a codebook's stage, where there are any.

        The rows that come back do not share memory with those that were given.
        """
        ...
