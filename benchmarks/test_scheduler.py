"""How long the host plans: one step of many long streams, tables included.

The bound, for a core that does nothing else, is 1 ms median for `schedule()`, `read_table()` for
each pass and `complete()` over 64 streams of 4,096 pages. What an engine does between two steps
(offers, eviction) is timed apart.
"""

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from qvg_engine.block_manager.manager import BlockManager
from qvg_engine.scheduler.config import SchedulerConfig
from qvg_engine.scheduler.core import Scheduler
from qvg_engine.scheduler.needs import Needs
from qvg_engine.scheduler.unit import CommitIntent, Gang, PassKind, PassUnit

NUM_STREAMS = 64
PAGES_A_STREAM = 4_096
PAGE_SIZE = 64
CHUNK_PAGES = 3
CHUNK_TOKENS = CHUNK_PAGES * PAGE_SIZE
MAX_MEDIAN_S = 1e-3
NUM_ROUNDS = 300

DENOISE: Gang = (PassUnit(branch=0, kind=PassKind.DENOISE, num_tokens=CHUNK_TOKENS),)
APPEND: Gang = (
    PassUnit(
        branch=0,
        kind=PassKind.COMMIT,
        num_tokens=CHUNK_TOKENS,
        commit=CommitIntent(branches=(0,), num_tokens=CHUNK_TOKENS),
    ),
)


class LongStreams:
    """64 running streams whose windows hold 4,096 pages each, between two steps."""

    def __init__(self) -> None:
        pages_reserved = PAGES_A_STREAM + CHUNK_PAGES
        num_pages = NUM_STREAMS * pages_reserved
        self.manager = BlockManager(num_pages=num_pages, page_size=PAGE_SIZE)
        config = SchedulerConfig(max_streams=NUM_STREAMS, max_batch_tokens=2**31 - 1)
        self.scheduler = Scheduler(
            config, block_manager=self.manager, capacity=Needs(pages=num_pages)
        )
        self.request_ids = [f"stream-{index}" for index in range(NUM_STREAMS)]
        for request_id in self.request_ids:
            self.scheduler.add(request_id, Needs(pages=pages_reserved), num_branches=1)
            self.scheduler.offer(request_id, _append(PAGES_A_STREAM * PAGE_SIZE))
        self.scheduler.complete(self.scheduler.schedule())
        self.num_tokens = dict.fromkeys(self.request_ids, PAGES_A_STREAM * PAGE_SIZE)

    def step(self) -> None:
        """Plan, build the table of each pass as a kernel reads it, and publish."""
        plan = self.scheduler.schedule()
        for scheduled in plan.units:
            assert len(self.manager.read_table(scheduled.branch_id).packed) == PAGES_A_STREAM
        self.scheduler.complete(plan)

    def offer(self, *, commit_every: int | None) -> None:
        """Every stream denoises, but each `commit_every`-th one commits a chunk."""
        for index, request_id in enumerate(self.request_ids):
            if commit_every is None or index % commit_every:
                self.scheduler.offer(request_id, DENOISE)
            else:
                self.scheduler.offer(request_id, APPEND)
                self.num_tokens[request_id] += CHUNK_TOKENS

    def evict(self) -> None:
        """Slide every window to its 4,096 pages, with a sink of one chunk."""
        for request_id in self.request_ids:
            window_start = self.num_tokens[request_id] - (PAGES_A_STREAM - CHUNK_PAGES) * PAGE_SIZE
            self.scheduler.evict(request_id, 0, sink_tokens=CHUNK_TOKENS, window_start=window_start)


def _append(num_tokens: int) -> Gang:
    intent = CommitIntent(branches=(0,), num_tokens=num_tokens)
    return (PassUnit(branch=0, kind=PassKind.COMMIT, num_tokens=num_tokens, commit=intent),)


@pytest.fixture(scope="module")
def long_streams() -> LongStreams:
    return LongStreams()


def time_prepared(
    benchmark: BenchmarkFixture, run: Callable[[], None], setup: Callable[[], None]
) -> None:
    """Time `run` alone, with `setup` before each round."""
    pedantic: Callable[..., None] = benchmark.pedantic
    pedantic(run, setup=setup, rounds=NUM_ROUNDS, warmup_rounds=10)


def median_s(benchmark: BenchmarkFixture) -> float:
    assert benchmark.stats is not None
    return float(benchmark.stats.stats.median)


@pytest.mark.benchmark(group="plan one step, 64 streams x 4,096 pages")
@pytest.mark.parametrize(
    "commit_every",
    [
        pytest.param(None, id="all-denoise"),
        pytest.param(5, id="one-in-five-commits"),
        pytest.param(1, id="all-commit"),
    ],
)
def test_plan_step(
    benchmark: BenchmarkFixture, long_streams: LongStreams, commit_every: int | None
) -> None:
    def setup() -> None:
        long_streams.evict()
        long_streams.offer(commit_every=commit_every)

    time_prepared(benchmark, long_streams.step, setup)
    long_streams.evict()
    long_streams.scheduler.check_integrity()
    assert long_streams.manager.num_used == NUM_STREAMS * PAGES_A_STREAM
    assert median_s(benchmark) <= MAX_MEDIAN_S


@pytest.mark.benchmark(group="between two steps, 64 streams x 4,096 pages")
def test_offer(benchmark: BenchmarkFixture, long_streams: LongStreams) -> None:
    benchmark(long_streams.offer, commit_every=None)


@pytest.mark.benchmark(group="between two steps, 64 streams x 4,096 pages")
def test_slide_windows(benchmark: BenchmarkFixture, long_streams: LongStreams) -> None:
    def setup() -> None:
        long_streams.offer(commit_every=1)
        long_streams.step()

    time_prepared(benchmark, long_streams.evict, setup)


@pytest.mark.benchmark(group="admit and finish")
def test_admit_and_finish(benchmark: BenchmarkFixture) -> None:
    """64 streams arrive, are admitted in one step, and end."""
    manager = BlockManager(num_pages=NUM_STREAMS * 64, page_size=PAGE_SIZE)
    config = SchedulerConfig(max_streams=NUM_STREAMS)
    scheduler = Scheduler(config, block_manager=manager, capacity=Needs(pages=NUM_STREAMS * 64))

    def live() -> None:
        for index in range(NUM_STREAMS):
            scheduler.add(f"stream-{index}", Needs(pages=64), num_branches=2, priority=index % 3)
        scheduler.complete(scheduler.schedule())
        for index in range(NUM_STREAMS):
            scheduler.finish(f"stream-{index}")

    benchmark(live)
    assert manager.num_unreserved == manager.num_pages
