"""How large a stream's codebooks may be: from the bits that they may add to its tokens."""

from fractions import Fraction

import msgspec

from qvg_engine.errors import ConfigError


class CodebookBudget(msgspec.Struct, frozen=True, kw_only=True):
    """What codebooks may take, in bits per element of the tokens that a branch keeps.

    * `overhead`: bits per element, all slots that are reserved counted.
    * `max_live`: most slots of one set, in each book.
    * `min_rows`, `max_rows`: rows of the smallest and of the largest codebook.
    * `row_bits`: bits of one number of a row, the mean of all books.

    The overhead is never exceeded, but for one thing: nothing can be stored without a codebook, so
    a branch that keeps any tokens has one, of the smallest size. See `least_tokens`.

    Raises `ConfigError` naming field, value and range.
    """

    overhead: float
    max_live: int
    min_rows: int
    max_rows: int
    row_bits: float

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

    @property
    def least_tokens(self) -> int:
        """Tokens that pay for the smallest codebook; fewer have it all the same."""
        return -(-self.min_rows * Fraction(self.row_bits) // Fraction(self.overhead))

    def num_slots(self, num_tokens: int) -> int:
        """Slots of a set whose branch keeps `num_tokens` tokens, at least one, at its peak.

        There are fewer than `max_live` where so many of the smallest codebooks cost too much.
        """
        assert num_tokens >= 1, num_tokens
        rows = self.total_rows(num_tokens)
        return live_slots(rows, min_rows=self.min_rows, max_live=self.max_live)

    def rows_per_slot(self, num_tokens: int) -> int:
        """Rows of each of these slots."""
        return min(self.max_rows, self.total_rows(num_tokens) // self.num_slots(num_tokens))

    def rows_per_set(self, num_tokens: int) -> int:
        """Rows of all these slots together; 0 for a branch that keeps no tokens."""
        return self.num_slots(num_tokens) * self.rows_per_slot(num_tokens) if num_tokens else 0

    def total_rows(self, num_tokens: int) -> int:
        """Rows that `num_tokens` tokens, of one stream or of all together, pay for.

        Exactly within the overhead; at least those of the smallest codebook.
        """
        rows = Fraction(self.overhead) * num_tokens / Fraction(self.row_bits)
        return max(self.min_rows, int(rows))

    def bits_per_element(self, num_tokens: int) -> float:
        """What the slots of a set take, per element of `num_tokens` tokens."""
        return self.row_bits * self.rows_per_set(num_tokens) / num_tokens


def live_slots(num_rows: int, *, min_rows: int, max_live: int) -> int:
    """Into how many slots, `max_live` at most, the rows of a set are divided.

    Every slot has room for a codebook of `min_rows` rows; there is one slot at least.
    """
    return max(1, min(max_live, num_rows // min_rows))
