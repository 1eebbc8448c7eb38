"""Which exact strategy takes less time for a pass: a fit to a few measured times."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

import numpy as np

Candidate = Literal["workspace", "fused"]
CANDIDATES: Final[tuple[Candidate, ...]] = get_args(Candidate)
"""What there is to choose from; of equal times the first is taken."""

QUERY_BLOCK: Final = 64
"""Kernels work on so many queries together: fewer take as long."""

_MOST_TOKENS: Final = 2**31


class Sample(NamedTuple):
    """How long a pass of so many queries over so many cached tokens took."""

    queries: int
    tokens: int
    ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Milliseconds of a pass: `fixed + per_pair * queries * tokens + per_token * tokens`.

    The queries are rounded up to whole blocks. What is done once a token, such as decoding to a
    workspace, is in `per_token`; what every block of queries does again is in `per_pair`.
    """

    fixed: float
    per_pair: float
    per_token: float

    def ms(self, queries: int, tokens: int) -> float:
        """The time of a pass."""
        return self.fixed + self.slope(queries) * tokens

    def slope(self, queries: int) -> float:
        """What one cached token more takes, in ms."""
        return self.per_pair * _whole_blocks(queries) + self.per_token


def fit(samples: Sequence[Sample]) -> Cost:
    """The cost that fits measured times best: least squares of relative errors, nothing negative.

    At least three samples, of two numbers of queries and two of tokens; all times above 0.
    """
    assert len(samples) >= 3, samples
    assert all(sample.ms > 0 for sample in samples), samples
    rows = np.array([(1.0, _whole_blocks(s.queries) * s.tokens, s.tokens) for s in samples])
    rows /= np.array([[sample.ms] for sample in samples])
    # Columns of very different sizes would lose digits.
    sizes = rows.max(axis=0)
    return Cost(**dict(zip(_NAMES, (_solve(rows / sizes) / sizes).tolist(), strict=True)))


_NAMES: Final = ("fixed", "per_pair", "per_token")


def _solve(rows: np.ndarray) -> np.ndarray:
    """Non-negative x with `rows @ x` nearest to ones: the best of all choices of what is not 0."""
    best, least = np.zeros(rows.shape[1]), math.inf
    for count in range(1, rows.shape[1] + 1):
        for columns in itertools.combinations(range(rows.shape[1]), count):
            found = np.linalg.lstsq(rows[:, columns], np.ones(len(rows)), rcond=None)[0]
            error = float(((rows[:, columns] @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < least:
                best, least = np.zeros(rows.shape[1]), error
                best[list(columns)] = found
    return best


@dataclass(frozen=True, slots=True)
class CostModel:
    """The costs of the candidates, for one device, format and number of heads."""

    costs: Mapping[Candidate, Cost]

    def choose(self, queries: int, tokens: int) -> Candidate:
        """The candidate that takes least for so many queries over so many cached tokens.

        Without cached tokens the candidates do the same: the first.
        """
        if not tokens:
            return CANDIDATES[0]
        return min(CANDIDATES, key=lambda candidate: self.costs[candidate].ms(queries, tokens))

    def crossover(self, queries: int) -> int | None:
        """From how many cached tokens on the other one is taken than for one; None for never."""
        workspace, fused = self.costs["workspace"], self.costs["fused"]
        slope = workspace.slope(queries) - fused.slope(queries)
        difference = fused.fixed - workspace.fixed
        if slope == 0 or not 1 <= difference / slope < _MOST_TOKENS:
            return None
        before = math.floor(difference / slope)
        first = self.choose(queries, 1)
        near = range(before, before + 3)
        return next((t for t in near if self.choose(queries, t) != first), None)

    def describe(self, queries: int) -> str:
        """What is taken for so many queries, in words."""
        first, crossover = self.choose(queries, 1), self.crossover(queries)
        if crossover is None:
            return f"{first} for any number of cached tokens"
        last = self.choose(queries, crossover)
        return f"{first} below {crossover:,} cached tokens, {last} from there on"


def _whole_blocks(queries: int) -> int:
    return -(-queries // QUERY_BLOCK) * QUERY_BLOCK
