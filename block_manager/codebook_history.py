"""What is known of every codebook from the spans that were encoded with it.

The kernels report, for each span and book, how much energy the codebook left and how often each
centroid was taken; nothing here looks at keys or values.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

OCCUPANCY_DECAY = 0.8
"""How much of a codebook's occupancy a new span leaves."""
USED_SHARE = 0.05
"""A centroid is in use if it has this part of an equal share of the ids."""


class CodebookHistory:
    """Figures of `num_books` x `num_slots` codebooks of `num_groups` x `num_centroids` centroids.

    A group is one head at one stage. The figures, float32 [books, slots] unless said otherwise:

    * `ratio`, `ratio_at_fit`: the energy that the centroids left of the last span, and of the one
      that they were fitted on, over that span's energy;
    * `drift`: how far ids moved between centroids since then, total variation, 0 to 1;
    * `used`: the share of centroids in use;
    * `num_spans` int32: spans encoded; `is_first` bool: fitted from nothing.
    """

    def __init__(
        self, *, num_books: int, num_slots: int, num_groups: int, num_centroids: int
    ) -> None:
        shape = (num_books, num_slots)
        self.ratio = np.zeros(shape, np.float32)
        self.ratio_at_fit = np.zeros(shape, np.float32)
        self.drift = np.zeros(shape, np.float32)
        self.used = np.ones(shape, np.float32)
        self.num_spans = np.zeros(shape, np.int32)
        self.is_first = np.zeros(shape, np.bool_)
        self._occupancy = np.zeros((*shape, num_groups, num_centroids), np.float32)
        self._share_at_fit = np.zeros((*shape, num_groups, num_centroids), np.float32)

    def record(
        self,
        *,
        slots: NDArray[np.int32],
        actions: NDArray[np.int8],
        energy: NDArray[np.float32],
        residual: NDArray[np.float32],
        counts: NDArray[np.int32],
        num_centroids: NDArray[np.int32],
    ) -> None:
        """Take in the figures of one span.

        Args:
            slots, actions: those of its `SpanPlan`, [books].
            energy, residual: the span's energy, and what the centroids left of it, [books].
            counts: how often each centroid was taken, int32 [books, groups, centroids]; zero in
                groups of stages that only other books have.
            num_centroids: centroids of each codebook that exist, int32 [books].
        """
        expected = (slots.size, *self._occupancy.shape[2:])
        assert counts.shape == expected, (counts.shape, expected)
        _record(
            slots,
            actions,
            energy,
            residual,
            counts,
            num_centroids,
            self._occupancy,
            self._share_at_fit,
            self.ratio,
            self.ratio_at_fit,
            self.drift,
            self.used,
            self.num_spans,
            self.is_first,
        )


@njit(cache=True)
def _record(
    slots: Any,
    actions: Any,
    energy: Any,
    residual: Any,
    counts: Any,
    num_centroids: Any,
    occupancy: Any,
    share_at_fit: Any,
    ratio: Any,
    ratio_at_fit: Any,
    drift: Any,
    used: Any,
    num_spans: Any,
    is_first: Any,
) -> None:
    num_groups = counts.shape[1]
    for book in range(slots.size):
        slot = slots[book]
        is_fit = actions[book] != 0
        live = num_centroids[book]
        part = residual[book] / energy[book] if energy[book] > 0 else np.float32(0)
        ratio[book, slot] = part
        if is_fit:
            ratio_at_fit[book, slot] = part
            num_spans[book, slot] = 0
            is_first[book, slot] = actions[book] == 2
        num_spans[book, slot] += 1
        floor = np.float32(USED_SHARE / max(live, 1))
        moved = np.float32(0)
        in_use = 0
        taking = 0
        for group in range(num_groups):
            taken = counts[book, group, :live]
            if not taken.any():
                # Of a stage that this book's format does not have.
                continue
            taking += 1
            held = occupancy[book, slot, group, :live]
            fitted = share_at_fit[book, slot, group, :live]
            if is_fit:
                in_use += _start(taken, held, fitted, floor)
            else:
                distance, used_here = _continue(taken, held, fitted, floor)
                moved += distance
                in_use += used_here
        drift[book, slot] = np.float32(0.5 * moved / max(taking, 1))
        # Without stages there is nothing that could fall out of use.
        share = in_use / (taking * live) if taking else 1.0 * min(live, 1)
        used[book, slot] = np.float32(share)


@njit(cache=True)
def _start(taken: Any, held: Any, fitted: Any, floor: Any) -> Any:
    """Note the shares of the span that a codebook was fitted on; how many reach `floor`."""
    scale = _scale(taken)
    in_use = np.int32(0)
    for i in range(taken.size):
        share = np.float32(taken[i]) * scale
        held[i] = share
        fitted[i] = share
        in_use += np.int32(share >= floor)
    return in_use


# Sums in any order, so that they are computed several at a time.
@njit(cache=True, fastmath={"reassoc"})
def _continue(taken: Any, held: Any, fitted: Any, floor: Any) -> Any:
    """Take a span's shares into `held`.

    Returns their distance from those of the fit, and how many of `held` reach `floor`.
    """
    scale = _scale(taken)
    distance = np.float32(0)
    in_use = np.int32(0)
    for i in range(taken.size):
        share = np.float32(taken[i]) * scale
        level = held[i] + np.float32(1 - OCCUPANCY_DECAY) * (share - held[i])
        held[i] = level
        distance += abs(share - fitted[i])
        in_use += np.int32(level >= floor)
    return distance, in_use


@njit(cache=True)
def _scale(taken: Any) -> Any:
    """One over the ids of a group, float32; 0 if there are none."""
    total = np.int64(0)
    for i in range(taken.size):
        total += taken[i]
    return np.float32(1.0 / total) if total > 0 else np.float32(0)
