"""The number of pages a branch needs, against a block manager that holds them."""

import random
import time

import numpy as np
import pytest

from qvg_engine.block_manager.manager import BlockManager
from qvg_engine.block_manager.page_count import pages_for, peak_pages


def simulated_peak(
    chunk_tokens: list[int],
    page_size: int,
    window_tokens: int | None,
    sink_tokens: int,
    commit_last: bool,
) -> int:
    num_pages = sum(pages_for(num_tokens, page_size) for num_tokens in chunk_tokens) + 1
    manager = BlockManager(num_pages, page_size)
    manager.open_owner("a", num_pages)
    branch_id = manager.open_branch("a")
    peak = 0
    for index, num_tokens in enumerate(chunk_tokens):
        if window_tokens is not None:
            end_token = manager.next_token(branch_id) + num_tokens
            manager.evict(branch_id, sink_tokens, end_token - (window_tokens - sink_tokens))
        if commit_last or index < len(chunk_tokens) - 1:
            commit = manager.begin_commit([branch_id], num_tokens)
            peak = max(peak, manager.num_used)
            manager.publish(commit)
    return peak


@pytest.mark.parametrize("commit_last", [False, True])
def test_the_peak_is_exact(commit_last: bool) -> None:
    draw = random.Random(5)
    for _ in range(400):
        page_size = draw.randint(1, 12)
        chunk_tokens = [draw.randint(1, 40) for _ in range(draw.randint(0, 25))]
        window_tokens = draw.choice((None, draw.randint(0, 160)))
        sink_tokens = draw.randint(0, min(60, window_tokens)) if window_tokens is not None else 0
        peak = peak_pages(
            chunk_tokens,
            page_size=page_size,
            window_tokens=window_tokens,
            sink_tokens=sink_tokens,
            commit_last=commit_last,
        )
        assert peak == simulated_peak(
            chunk_tokens, page_size, window_tokens, sink_tokens, commit_last
        )


def test_full_history_holds_all_that_is_committed() -> None:
    chunk_tokens = [5, 3, 9]
    assert peak_pages(chunk_tokens, page_size=4) == 2 + 1
    assert peak_pages(chunk_tokens, page_size=4, commit_last=True) == 2 + 1 + 3


def test_a_window_bounds_the_peak() -> None:
    # Three frames a chunk, 9 frames of 64 tokens in sight: 6 old frames and 3 new ones.
    peaks = {
        peak_pages([192] * num_chunks, page_size=64, window_tokens=576) for num_chunks in (4, 999)
    }
    assert peaks == {9}


def test_the_window_counts_the_sink_and_the_chunk_itself() -> None:
    # Frames of one page: 3 of the sink, 6 recent ones and 3 new ones.
    assert peak_pages([192] * 99, page_size=64, window_tokens=12 * 64, sink_tokens=3 * 64) == 12


def test_a_single_chunk_is_not_committed() -> None:
    assert peak_pages([], page_size=4) == peak_pages([9], page_size=4) == 0
    assert peak_pages([9], page_size=4, commit_last=True) == 3


def test_thousands_of_chunks_take_no_time() -> None:
    chunk_tokens = np.full(100_000, 4_680)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        peak_pages(chunk_tokens, page_size=64, window_tokens=32_760, sink_tokens=4_680)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.1
