"""How long the block manager's part of a step takes: 64 streams of 4,096 pages each.

A figure is the time for all 64 streams together. Groups are questions: what do pages, commits,
eviction, block tables and the checks cost? The bound of 1 ms is for what stands between the
plan of a step and its forward: begin a commit and read the table, for every stream.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from qvg_engine.block_manager.commit import PendingCommit
from qvg_engine.block_manager.manager import BlockManager
from qvg_engine.block_manager.page_count import peak_pages
from qvg_engine.block_manager.page_pool import PagePool
from qvg_engine.block_manager.warm_up import warm_up

NUM_STREAMS = 64
PAGES_A_STREAM = 4_096
PAGE_SIZE = 64
# A chunk of Self-Forcing at 832x480: 3 latent frames of 1,560 tokens.
CHUNK_TOKENS = 4_680
CHUNK_PAGES = 74
SINK_TOKENS = 4_680
NUM_ROUNDS = 100
MAX_MEDIAN_S = 1e-3


class LongStreams:
    """64 branches that hold 4,096 pages each, in chunks, with the room for one commit more."""

    def __init__(self) -> None:
        warm_up()
        reserved_pages = PAGES_A_STREAM + 2 * CHUNK_PAGES
        self.manager = BlockManager(NUM_STREAMS * reserved_pages, PAGE_SIZE)
        self.branch_ids = []
        for index in range(NUM_STREAMS):
            owner_id = f"stream-{index}"
            self.manager.open_owner(owner_id, reserved_pages)
            self.branch_ids.append(self.manager.open_branch(owner_id))
        for _ in range(PAGES_A_STREAM // CHUNK_PAGES):
            self.publish(self.begin())
        tail_tokens = PAGES_A_STREAM % CHUNK_PAGES * PAGE_SIZE
        for branch_id in self.branch_ids:
            self.manager.publish(self.manager.begin_commit([branch_id], tail_tokens))
        assert self.manager.num_used == NUM_STREAMS * PAGES_A_STREAM

    def begin(self) -> list[PendingCommit]:
        begin_commit = self.manager.begin_commit
        return [begin_commit([branch_id], CHUNK_TOKENS) for branch_id in self.branch_ids]

    def publish(self, commits: list[PendingCommit]) -> None:
        for commit in commits:
            self.manager.publish(commit)

    def rollback(self, commits: list[PendingCommit]) -> None:
        for commit in commits:
            self.manager.rollback(commit)

    def evict(self) -> None:
        """Slide every window on by one chunk."""
        for branch_id in self.branch_ids:
            entries = self.manager.read_table(branch_id)
            first_token = int(entries.first_token[CHUNK_PAGES])
            self.manager.evict(branch_id, SINK_TOKENS, first_token + CHUNK_TOKENS)

    def read(self) -> int:
        read_table = self.manager.read_table
        return sum(len(read_table(branch_id)) for branch_id in self.branch_ids)

    def read_packed(self) -> int:
        read_table = self.manager.read_table
        return sum(len(read_table(branch_id).packed) for branch_id in self.branch_ids)

    def read_part(self) -> int:
        """The tables without their last tokens, as a replacing commit reads them."""
        read_table = self.manager.read_table
        return sum(len(read_table(branch_id, 100_001)) for branch_id in self.branch_ids)

    def slide(self) -> None:
        """Give every stream a table that nobody has read yet."""
        self.publish(self.begin())
        self.evict()


def time_prepared(
    benchmark: BenchmarkFixture,
    run: Callable[[], object],
    set_up: Callable[[], None] = lambda: None,
    num_rounds: int = NUM_ROUNDS,
) -> None:
    """Time `run` alone, with `set_up` before each round."""
    pedantic: Callable[..., object] = benchmark.pedantic
    pedantic(run, setup=set_up, rounds=num_rounds, warmup_rounds=2)


@pytest.fixture(scope="module")
def streams() -> Iterator[LongStreams]:
    streams = LongStreams()
    yield streams
    streams.manager.check_integrity()


@pytest.mark.benchmark(group="plan and read the tables")
@pytest.mark.parametrize("committing", [False, True], ids=["all denoise", "all commit"])
def test_plan(benchmark: BenchmarkFixture, streams: LongStreams, committing: bool) -> None:
    commits: list[PendingCommit] = []

    def set_up() -> None:
        streams.rollback(commits)
        commits.clear()
        streams.slide()

    def plan() -> None:
        if committing:
            commits.extend(streams.begin())
        streams.read_packed()

    time_prepared(benchmark, plan, set_up)
    streams.rollback(commits)
    assert benchmark.stats is not None
    assert benchmark.stats.stats.median <= MAX_MEDIAN_S


@pytest.mark.benchmark(group="allocate and release pages")
def test_allocate(benchmark: BenchmarkFixture) -> None:
    pool = PagePool(NUM_STREAMS * PAGES_A_STREAM)

    def allocate_and_release() -> None:
        for page_ids in [pool.allocate(CHUNK_PAGES) for _ in range(NUM_STREAMS)]:
            pool.release(page_ids)

    time_prepared(benchmark, allocate_and_release)


@pytest.mark.benchmark(group="commit a chunk")
def test_begin_commit(benchmark: BenchmarkFixture, streams: LongStreams) -> None:
    commits: list[PendingCommit] = []

    def set_up() -> None:
        streams.rollback(commits)
        commits.clear()

    time_prepared(benchmark, lambda: commits.extend(streams.begin()), set_up)
    streams.rollback(commits)


@pytest.mark.benchmark(group="commit a chunk")
def test_publish(benchmark: BenchmarkFixture, streams: LongStreams) -> None:
    commits: list[PendingCommit] = []

    def set_up() -> None:
        if commits:
            streams.evict()
        commits[:] = streams.begin()

    time_prepared(benchmark, lambda: streams.publish(commits), set_up)
    streams.evict()


@pytest.mark.benchmark(group="commit a chunk")
def test_publish_in_place_of_half_the_table(
    benchmark: BenchmarkFixture, streams: LongStreams
) -> None:
    manager = streams.manager
    at_token = manager.next_token(streams.branch_ids[0]) - PAGES_A_STREAM // 2 * PAGE_SIZE
    forks: list[int] = []
    commits: list[PendingCommit] = []

    def close_forks() -> None:
        for fork in forks:
            manager.close_branch(fork)

    def set_up() -> None:
        close_forks()
        forks[:] = [manager.fork_branch(branch_id) for branch_id in streams.branch_ids]
        commits[:] = [manager.begin_commit([fork], CHUNK_TOKENS, at_token) for fork in forks]

    time_prepared(benchmark, lambda: streams.publish(commits), set_up)
    close_forks()


@pytest.mark.benchmark(group="evict a chunk")
def test_evict(benchmark: BenchmarkFixture, streams: LongStreams) -> None:
    def set_up() -> None:
        streams.publish(streams.begin())

    time_prepared(benchmark, streams.evict, set_up)


@pytest.mark.benchmark(group="read the tables")
@pytest.mark.parametrize("fresh", [False, True], ids=["unchanged", "after a commit"])
@pytest.mark.parametrize("packed", [False, True], ids=["columns", "packed"])
def test_read(benchmark: BenchmarkFixture, streams: LongStreams, fresh: bool, packed: bool) -> None:
    def set_up() -> None:
        if fresh:
            streams.slide()

    read = streams.read_packed if packed else streams.read
    time_prepared(benchmark, read, set_up)


@pytest.mark.benchmark(group="read the tables")
def test_read_part(benchmark: BenchmarkFixture, streams: LongStreams) -> None:
    time_prepared(benchmark, streams.read_part)


@pytest.mark.benchmark(group="fork and close a branch")
def test_fork(benchmark: BenchmarkFixture, streams: LongStreams) -> None:
    def fork_and_close() -> None:
        for fork in [streams.manager.fork_branch(branch_id) for branch_id in streams.branch_ids]:
            streams.manager.close_branch(fork)

    time_prepared(benchmark, fork_and_close)


@pytest.mark.benchmark(group="plan a stream's peak")
@pytest.mark.parametrize("num_chunks", [100, 10_000])
def test_peak_pages(benchmark: BenchmarkFixture, num_chunks: int) -> None:
    chunk_tokens = np.full(num_chunks, CHUNK_TOKENS)
    peak = benchmark(
        peak_pages,
        chunk_tokens,
        page_size=PAGE_SIZE,
        window_tokens=7 * CHUNK_TOKENS,
        sink_tokens=SINK_TOKENS,
    )
    assert peak == 7 * CHUNK_PAGES


@pytest.mark.benchmark(group="check the books")
def test_check_integrity(benchmark: BenchmarkFixture, streams: LongStreams) -> None:
    time_prepared(benchmark, streams.manager.check_integrity, num_rounds=10)
