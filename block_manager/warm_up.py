"""Compiling the loops of the block manager before they are timed."""

import numpy as np

from qvg_engine.block_manager.codebook_policy import CodebookPolicy
from qvg_engine.block_manager.codebooks import Codebooks, CodebookSizes, SpanFigures
from qvg_engine.block_manager.manager import BlockManager
from qvg_engine.block_manager.page_count import peak_pages


def warm_up() -> None:
    """Compile every Numba loop of this package, or load it from the cache on disk.

    Runs a small manager through each operation. Called once before the first step; later calls
    cost a fraction of a millisecond.
    """
    peak_pages(np.array([3, 3], dtype=np.int64), page_size=2, window_tokens=4, sink_tokens=1)
    manager = BlockManager(num_pages=64, page_size=2)
    manager.open_owner("warm-up", reserved_pages=64)
    branch_id = manager.open_branch("warm-up")
    manager.publish(manager.begin_commit([branch_id], num_tokens=40))
    fork_id = manager.fork_branch(branch_id)
    manager.publish(manager.begin_commit([branch_id, fork_id], num_tokens=3, at_token=39))
    manager.evict(branch_id, sink_tokens=3, window_start=6)
    manager.rollback(manager.begin_commit([fork_id], num_tokens=1, at_token=20, free_first=True))
    entries = manager.read_table(branch_id, upto_token=30)
    assert entries.packed.shape == (len(entries), 4)
    assert entries.num_tokens == 27
    manager.num_live_tokens()
    manager.check_integrity()
    manager.close_owner("warm-up")
    _warm_up_codebooks()


def _warm_up_codebooks() -> None:
    sizes = CodebookSizes(
        num_books=1, num_groups=1, num_centroids=2, num_slots=2, max_rows=2, num_rows=4
    )
    codebooks = Codebooks(sizes, CodebookPolicy(), num_pages=4)
    manager = BlockManager(num_pages=4, page_size=2, codebooks=codebooks)
    manager.open_owner("warm-up", 4, codebook_slots=2, codebook_rows=4)
    commit = manager.begin_commit([manager.open_branch("warm-up")], num_tokens=3)
    assert commit.span is not None
    figures = SpanFigures(
        energy=np.ones(1, np.float32),
        residual=np.ones(1, np.float32),
        counts=np.ones((1, 1, 2), np.int32),
        num_centroids=np.full(1, 2, np.int32),
    )
    codebooks.record(commit.span, figures)
    manager.publish(commit)
    manager.close_owner("warm-up")
