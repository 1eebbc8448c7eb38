"""What bookkeeping of codebooks costs at the shape of the 1.3B model, in Numba and in NumPy.

30 layers x (K, V) x 12 heads x 256 centroids, one span of each of 64 streams: taking in the
figures that the kernels report, and deciding what every book does next. Both do all of it, and
agree: `test_both_find_the_same` checks every figure and every decision.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from qvg_engine.block_manager.codebook_history import OCCUPANCY_DECAY, USED_SHARE, CodebookHistory
from qvg_engine.block_manager.codebook_policy import (
    CodebookAction,
    CodebookPolicy,
    SpanPlan,
    plan_span,
)

BOOKS, HEADS, CENTROIDS, STREAMS, LIVE = 60, 12, 256, 64, 2
SLOTS = STREAMS * LIVE
SPAN_TOKENS = 4_680
FIGURES = ("ratio", "ratio_at_fit", "drift", "used", "num_spans", "is_first")
POLICY = CodebookPolicy(refit_drift=0.06)


class NumbaBooks:
    """The engine's own."""

    def __init__(self) -> None:
        self.history = CodebookHistory(
            num_books=BOOKS, num_slots=SLOTS, num_groups=HEADS, num_centroids=CENTROIDS
        )

    def figure(self, name: str) -> NDArray[Any]:
        figure: NDArray[Any] = getattr(self.history, name)
        return figure

    def record(self, plan: SpanPlan, **figures: Any) -> None:
        self.history.record(slots=plan.slots, actions=plan.actions, **figures)

    def plan(
        self, own: NDArray[np.int32], current: NDArray[np.int32], refs: NDArray[np.int32]
    ) -> SpanPlan:
        return plan_span(POLICY, self.history, own_slots=own, current=current, ref_counts=refs)


class NumpyBooks:
    """The same with whole arrays, for sets of two slots; scratch arrays are allocated once."""

    def __init__(self) -> None:
        shape = (BOOKS, SLOTS)
        self.ratio, self.ratio_at_fit, self.drift = np.zeros((3, *shape), np.float32)
        self.used = np.ones(shape, np.float32)
        self.num_spans = np.zeros(shape, np.int32)
        self.is_first = np.zeros(shape, np.bool_)
        self._occupancy = np.zeros((*shape, HEADS, CENTROIDS), np.float32)
        self._share_at_fit = np.zeros((*shape, HEADS, CENTROIDS), np.float32)
        self._share = np.empty((BOOKS, HEADS, CENTROIDS), np.float32)
        self._scratch = np.empty((BOOKS, HEADS, CENTROIDS), np.float32)
        self._books = np.arange(BOOKS)
        self._exists = np.arange(CENTROIDS)

    def figure(self, name: str) -> NDArray[Any]:
        figure: NDArray[Any] = getattr(self, name)
        return figure

    def record(
        self,
        plan: SpanPlan,
        *,
        energy: NDArray[np.float32],
        residual: NDArray[np.float32],
        counts: NDArray[np.int32],
        num_centroids: NDArray[np.int32],
    ) -> None:
        at, is_fit = (self._books, plan.slots), plan.actions != CodebookAction.REUSE
        part = np.divide(residual, energy, out=np.zeros_like(energy), where=energy > 0)
        self.ratio[at] = part
        self.ratio_at_fit[at] = np.where(is_fit, part, self.ratio_at_fit[at])
        self.num_spans[at] = np.where(is_fit, 1, self.num_spans[at] + 1)
        first = plan.actions == CodebookAction.FIT
        self.is_first[at] = np.where(is_fit, first, self.is_first[at])
        total = counts.sum(-1, keepdims=True)
        scale = np.divide(1, total, out=np.zeros(total.shape, np.float32), where=total > 0)
        share = np.multiply(counts, scale, out=self._share, dtype=np.float32, casting="same_kind")
        if (plan.slots == plan.slots[0]).all():
            # All books in one slot: views instead of copies.
            slot = plan.slots[0]
            held, fitted = self._occupancy[:, slot], self._share_at_fit[:, slot]
            self._blend(held, fitted, share, is_fit)
        else:
            held, fitted = self._occupancy[at], self._share_at_fit[at]
            self._blend(held, fitted, share, is_fit)
            self._occupancy[at], self._share_at_fit[at] = held, fitted
        moved = np.abs(np.subtract(share, fitted, out=self._scratch), out=self._scratch)
        self.drift[at] = 0.5 * moved.sum((1, 2)) / HEADS
        floor = (USED_SHARE / np.maximum(num_centroids, 1)).astype(np.float32)
        in_use = held >= floor[:, None, None]
        if (num_centroids < CENTROIDS).any():
            in_use &= self._exists < num_centroids[:, None, None]
        used = np.count_nonzero(in_use, axis=(1, 2))
        self.used[at] = used / np.maximum(HEADS * num_centroids, 1)

    def _blend(
        self,
        held: NDArray[np.float32],
        fitted: NDArray[np.float32],
        share: NDArray[np.float32],
        is_fit: NDArray[np.bool_],
    ) -> None:
        """Take a span's shares into `held`; where a codebook was fitted, start with them."""
        step = np.subtract(share, held, out=self._scratch)
        step *= np.float32(1 - OCCUPANCY_DECAY)
        held += step
        if is_fit.any():
            held[is_fit] = fitted[is_fit] = share[is_fit]

    def plan(
        self, own: NDArray[np.int32], current: NDArray[np.int32], refs: NDArray[np.int32]
    ) -> SpanPlan:
        at = (self._books, current)
        other = np.where(current == own[0], own[1], own[0])
        is_free = refs[self._books, other] == 0
        refit = self.ratio[at] > POLICY.refit_residual * self.ratio_at_fit[at]
        refit |= self.drift[at] > POLICY.refit_drift
        refit |= self.used[at] < POLICY.refit_unused
        if POLICY.first_spans:
            refit |= self.is_first[at] & (self.num_spans[at] >= POLICY.first_spans)
        refit &= is_free
        return SpanPlan(
            refit.astype(np.int8),
            np.where(refit, other, current).astype(np.int32),
            np.where(refit, current, -1).astype(np.int32),
        )


class Round:
    """One span of each of 64 streams: figures as the kernels report them, all of them reused."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        even = np.full(CENTROIDS, 1 / CENTROIDS)
        self.counts = rng.multinomial(SPAN_TOKENS, even, size=(8, BOOKS, HEADS)).astype(np.int32)
        self.live = np.full(BOOKS, CENTROIDS, np.int32)
        self.energy = rng.random(BOOKS, np.float32) + 1
        self.residual = self.energy * rng.uniform(0.08, 0.12, BOOKS).astype(np.float32)
        # Half of the streams have a free slot, so that a refit is possible.
        self.refs = np.zeros((BOOKS, SLOTS), np.int32)
        self.refs[:, ::2] = 74
        self.refs[:, 1 : SLOTS // 2 : 2] = 74
        self.own = [np.asarray([2 * s, 2 * s + 1], np.int32) for s in range(STREAMS)]
        self.current = [np.full(BOOKS, 2 * s, np.int32) for s in range(STREAMS)]

    def run(self, books: NumbaBooks | NumpyBooks, action: CodebookAction) -> list[SpanPlan]:
        """Record a span of every stream, and plan the next."""
        plans = []
        actions, none = np.full(BOOKS, action, np.int8), np.full(BOOKS, -1, np.int32)
        for stream, current in enumerate(self.current):
            books.record(
                SpanPlan(actions, current, none),
                energy=self.energy,
                residual=self.residual,
                counts=self.counts[stream % 8],
                num_centroids=self.live,
            )
            plans.append(books.plan(self.own[stream], current, self.refs))
        return plans


def test_both_find_the_same() -> None:
    numba, numpy = NumbaBooks(), NumpyBooks()
    num_refits = 0
    for seed in range(3):
        action = CodebookAction.REUSE if seed else CodebookAction.FIT
        spans = Round(seed)
        plans = zip(spans.run(numba, action), spans.run(numpy, action), strict=True)
        for ours, theirs in plans:
            for name in ("actions", "slots", "warm_from"):
                assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
            num_refits += int((ours.actions == CodebookAction.REFIT).sum())
        for name in FIGURES:
            np.testing.assert_allclose(numba.figure(name), numpy.figure(name), rtol=1e-5)
    assert 0 < num_refits < 2 * STREAMS * BOOKS, "some books are to be fitted anew, others not"


@pytest.mark.benchmark(
    group="figures and decisions of 64 spans, 1.3B shape", timer=time.process_time
)
@pytest.mark.parametrize("books", [NumbaBooks, NumpyBooks], ids=["numba", "numpy"])
def test_bookkeeping(
    benchmark: BenchmarkFixture, books: Callable[[], NumbaBooks | NumpyBooks]
) -> None:
    kept, spans = books(), Round(0)
    spans.run(kept, CodebookAction.FIT)
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        spans.run, args=(kept, CodebookAction.REUSE), rounds=9, iterations=1, warmup_rounds=2
    )
