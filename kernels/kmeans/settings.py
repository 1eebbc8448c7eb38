"""How long k-means goes on."""

import math

import msgspec

from qvg_engine.errors import ConfigError

MAX_CENTROIDS = 256
"""Centroids of a head at most: ids are uint8."""
MAX_ITERATIONS = 10_000


class KMeansSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When `fit` stops.

    `iterations` is how often the centroids move at most. `tolerance` is a part of a head's tokens:
    the head is done when fewer than that changed their id, or none did.

    Raises `ConfigError` naming field, value and range.
    """

    iterations: int
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if type(self.iterations) is not int or not 1 <= self.iterations <= MAX_ITERATIONS:
            raise ConfigError(
                f"iterations is {self.iterations!r}: "
                f"give a whole number from 1 to {MAX_ITERATIONS:,}"
            )
        if type(self.tolerance) not in (int, float) or not 0 <= self.tolerance <= 1:
            raise ConfigError(f"tolerance is {self.tolerance!r}: give a number from 0 to 1")

    def enough_changes(self, num_tokens: int) -> int:
        """A head of `num_tokens` goes on while at least so many of them change their id."""
        return max(1, math.ceil(self.tolerance * num_tokens))

    def has_converged(self, num_changed: int, num_tokens: int) -> bool:
        """Whether a head is done, of whose tokens `num_changed` changed their id."""
        return num_changed < self.enough_changes(num_tokens)
