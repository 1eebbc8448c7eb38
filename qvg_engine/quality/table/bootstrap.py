"""Confidence intervals by resampling, for figures that come in groups.

A group is a video (its members: layers) or a prompt (its members: seeds). Both levels are drawn
with replacement: groups first, then members within each that was drawn, so that members of one
group are not taken for independent.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
_TAILS = (0.025, 0.975)


class Interval(msgspec.Struct, frozen=True):
    """A figure and its 95 % interval; without width where there was one figure only."""

    value: float
    low: float
    high: float


def mean_interval(groups: Sequence[Sequence[float]], *, seed: int = 0) -> Interval:
    """The mean of all members, by the groups that they are of."""
    columns = [np.asarray(group, dtype=float)[:, None] for group in groups]
    return _interval(_mean(columns)[0], _resampled_means(columns, seed)[:, 0])


def ratio_interval(
    groups: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]], *, seed: int = 0
) -> Interval:
    """The mean of all members over that of the baseline's, which are of the same things in order.

    Both are drawn alike, so that what they have in common does not widen the interval.
    """
    columns = [
        np.column_stack([ours, theirs]).astype(float)
        for ours, theirs in zip(groups, baseline, strict=True)
    ]
    ours, theirs = _mean(columns)
    drawn = _resampled_means(columns, seed)
    return _interval(ours / theirs, drawn[:, 0] / drawn[:, 1])


def difference_interval(
    groups: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]], *, seed: int = 0
) -> Interval:
    """The same for the mean less that of the baseline's."""
    differences = [
        list(np.asarray(ours) - np.asarray(theirs))
        for ours, theirs in zip(groups, baseline, strict=True)
    ]
    return mean_interval(differences, seed=seed)


def _mean(columns: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = np.concatenate(columns).mean(axis=0)
    return mean


def _resampled_means(columns: Sequence[NDArray[np.float64]], seed: int) -> NDArray[np.float64]:
    """[resamples, columns]: means of all members drawn; the groups are [members, columns]."""
    rng = np.random.default_rng(seed)
    count = len(columns)
    sums = np.empty((count, RESAMPLES, count, columns[0].shape[1]))
    sizes = np.array([len(group) for group in columns])
    for place, group in enumerate(columns):
        drawn = rng.integers(len(group), size=(RESAMPLES, count, len(group)))
        sums[place] = group[drawn].sum(axis=2)
    picked = rng.integers(count, size=(RESAMPLES, count))
    rows, slots = np.indices(picked.shape)
    means: NDArray[np.float64] = sums[picked, rows, slots].sum(axis=1) / sizes[picked].sum(
        axis=1, keepdims=True
    )
    return means


def _interval(value: float, drawn: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(drawn, _TAILS)
    return Interval(float(value), float(low), float(high))
