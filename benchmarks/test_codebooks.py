"""What bookkeeping of codebooks costs at the shape of the 1.3B model, in Numba and in NumPy.

30 layers x (K, V) x 12 heads x 256 centroids, one span of each of 64 streams: taking in the
figures that the kernels report, and deciding what every book does next.
"""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from qvg_engine.block_manager.codebook_history import OCCUPANCY_DECAY, USED_SHARE, CodebookHistory
from qvg_engine.block_manager.codebook_policy import CodebookAction, CodebookPolicy, plan_span

BOOKS, HEADS, CENTROIDS, STREAMS, LIVE = 60, 12, 256, 64, 2
SLOTS = STREAMS * LIVE
SPAN_TOKENS = 4_680


class Streams:
    """64 streams with two slots each, and the figures of one span of each."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.history = CodebookHistory(
            num_books=BOOKS, num_slots=SLOTS, num_groups=HEADS, num_centroids=CENTROIDS
        )
        self.refs = np.zeros((BOOKS, SLOTS), np.int32)
        self.refs[:, ::2] = 74
        self.slots = [np.full(BOOKS, 2 * stream, np.int32) for stream in range(STREAMS)]
        self.live = np.full(BOOKS, CENTROIDS, np.int32)
        shape = (BOOKS, HEADS, CENTROIDS)
        self.counts = rng.multinomial(
            SPAN_TOKENS, np.full(CENTROIDS, 1 / CENTROIDS), size=(8, BOOKS, HEADS)
        ).astype(np.int32)
        assert self.counts.shape[1:] == shape
        self.energy = np.ones(BOOKS, np.float32)
        self.residual = np.full(BOOKS, 0.1, np.float32)
        self.actions = np.full(BOOKS, CodebookAction.FIT, np.int8)
        self.policy = CodebookPolicy(refit_residual=1e6, refit_drift=1.0, refit_unused=0.0)
        self.at_fit = rng.random((BOOKS, SLOTS, HEADS, CENTROIDS), np.float32)
        self.occupancy = self.at_fit.copy()

    def numba(self) -> None:
        for stream, slots in enumerate(self.slots):
            self.history.record(
                slots=slots,
                actions=self.actions,
                energy=self.energy,
                residual=self.residual,
                counts=self.counts[stream % 8],
                num_centroids=self.live,
            )
            own = np.asarray([2 * stream, 2 * stream + 1], np.int32)
            plan = plan_span(
                self.policy, self.history, own_slots=own, current=slots, ref_counts=self.refs
            )
            assert not plan.actions.any()
        self.actions[:] = CodebookAction.REUSE

    def numpy(self) -> None:
        """The same for codebooks that are reused, written with whole arrays."""
        for stream in range(STREAMS):
            self._numpy_span(2 * stream, self.counts[stream % 8])

    def _numpy_span(self, slot: int, counts: NDArray[np.int32]) -> None:
        share = counts / counts.sum(-1, keepdims=True).astype(np.float32)
        held = self.occupancy[:, slot]
        held += np.float32(1 - OCCUPANCY_DECAY) * (share - held)
        drift = 0.5 * np.abs(share - self.at_fit[:, slot]).sum(-1).mean(-1)
        used = (held >= USED_SHARE / CENTROIDS).mean((1, 2))
        ratio = self.residual / self.energy
        refit = (ratio > self.policy.refit_residual) | (drift > 1e9) | (used < -1.0)
        assert not np.where(refit, self.refs[:, slot + 1] == 0, False).any()


@pytest.fixture(scope="module")
def streams() -> Streams:
    streams = Streams()
    streams.numba()
    return streams


@pytest.mark.benchmark(group="figures and decisions of 64 spans, 1.3B shape")
@pytest.mark.parametrize("how", ["numba", "numpy"])
def test_bookkeeping(benchmark: BenchmarkFixture, streams: Streams, how: str) -> None:
    run: Callable[[], None] = getattr(streams, how)
    benchmark.pedantic(run, rounds=7, iterations=1, warmup_rounds=1)  # type: ignore[no-untyped-call]
