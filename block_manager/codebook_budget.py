"""How large a stream's codebooks may be: from the bits that they may add to its tokens."""

import msgspec

from qvg_engine.errors import ConfigError

ROW_BITS = 16
"""Bits of one number of a codebook's row."""


class CodebookBudget(msgspec.Struct, frozen=True, kw_only=True):
    """What codebooks may take, in bits per element of the tokens that a stream keeps.

    * `overhead`: bits per element, all slots that are reserved counted.
    * `max_live`: slots of one set, in each book.
    * `min_rows`, `max_rows`: rows of the smallest and of the largest codebook.

    Raises `ConfigError` naming field, value and range.
    """

    overhead: float
    max_live: int
    min_rows: int
    max_rows: int

    def __post_init__(self) -> None:
        assert 1 <= self.min_rows <= self.max_rows, (self.min_rows, self.max_rows)
        if not 0 < self.overhead <= 16:
            raise ConfigError(
                f"codebook_overhead is {self.overhead!r}: give bits per element, above 0, up to 16"
            )
        if not 1 <= self.max_live <= 16:
            raise ConfigError(
                f"max_live_codebooks is {self.max_live!r}: give a whole number from 1 to 16"
            )

    def rows_per_slot(self, num_tokens: int) -> int:
        """Rows of each slot of a set whose branch keeps `num_tokens` tokens at its peak.

        The smallest codebook is granted to a stream however short.
        """
        affordable = int(self.overhead * num_tokens / (ROW_BITS * self.max_live))
        return max(self.min_rows, min(self.max_rows, affordable))

    def total_rows(self, num_tokens: int) -> int:
        """Rows that `num_tokens` tokens of all streams together pay for; at least one set."""
        affordable = int(self.overhead * num_tokens / ROW_BITS)
        return max(self.max_live * self.min_rows, affordable)

    def bits_per_element(self, num_tokens: int) -> float:
        """What the slots of a set take, per element of `num_tokens` tokens."""
        return ROW_BITS * self.max_live * self.rows_per_slot(num_tokens) / num_tokens
