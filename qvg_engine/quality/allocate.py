"""One choice for every part within a budget, with the least error of all; exact."""

from collections.abc import Sequence

import msgspec
import numpy as np


class Choice(msgspec.Struct, frozen=True):
    """A way to store a part: what it costs, in whole units, and the squared error that it adds."""

    cost: int
    error: float


def allocate(parts: Sequence[Sequence[Choice]], capacity: int) -> tuple[int, ...] | None:
    """The index of a choice for every part, with the least sum of errors.

    The costs of the choices add up to at most `capacity`; None where even the cheapest cost more.
    The first of equally good choices is taken. A larger capacity never has a larger sum, to the
    last bit. Time is proportional to `capacity` times the number of all choices.
    """
    if sum(min(choice.cost for choice in part) for part in parts) > capacity:
        return None
    # least[c] is the least error of the parts so far at a cost of at most c.
    least = np.zeros(capacity + 1)
    taken = []
    for part in parts:
        sums = np.full((len(part), capacity + 1), np.inf)
        for index, choice in enumerate(part):
            assert choice.cost >= 0, choice
            if choice.cost <= capacity:
                sums[index, choice.cost :] = least[: capacity + 1 - choice.cost] + choice.error
        taken.append(sums.argmin(axis=0))
        least = sums.min(axis=0)
    chosen = []
    left = capacity
    for part, best in zip(reversed(parts), reversed(taken), strict=True):
        chosen.append(int(best[left]))
        left -= part[chosen[-1]].cost
    return tuple(reversed(chosen))
