"""The block manager with codebooks: pages keep the codebook that they were written with."""

import numpy as np
import pytest

from qvg_engine.block_manager.codebook_policy import CodebookAction, CodebookPolicy
from qvg_engine.block_manager.codebook_pool import NO_SLOT
from qvg_engine.block_manager.codebooks import Codebooks, CodebookSizes, SpanFigures
from qvg_engine.block_manager.commit import PendingCommit
from qvg_engine.block_manager.manager import BlockManager
from qvg_engine.block_manager.refinement_pool import NO_PAGE
from qvg_engine.errors import OutOfCodebooksError, OutOfPagesError

BOOKS, GROUPS, CENTROIDS, ROWS = 4, 2, 3, 4
SIZES = CodebookSizes(
    num_books=BOOKS,
    num_groups=GROUPS,
    num_centroids=CENTROIDS,
    num_slots=8,
    max_rows=ROWS,
    num_rows=8 * ROWS,
    num_refinements=7,
)
PAGE_SIZE = 4


def new_manager(num_pages: int = 64, **settings: int) -> BlockManager:
    policy = CodebookPolicy(**settings)
    codebooks = Codebooks(SIZES, policy, num_pages=num_pages)
    return BlockManager(num_pages, PAGE_SIZE, codebooks=codebooks)


def open_stream(
    manager: BlockManager, owner_id: str = "a", *, sets: int = 1, refinements: int = 1
) -> int:
    manager.open_owner(
        owner_id,
        20,
        codebook_slots=2 * sets,
        codebook_rows=2 * sets * ROWS,
        refinement_pages=refinements * sets,
    )
    return manager.open_branch(owner_id)


def refined_pages(manager: BlockManager) -> list[int]:
    """Pages that are refined now."""
    assert manager.codebooks is not None
    of_page = manager.codebooks.refinements.refinement_of
    return [int(page) for page in np.flatnonzero(of_page != NO_PAGE)]


def report(manager: BlockManager, commit: PendingCommit, ratio: float) -> None:
    assert manager.codebooks is not None
    assert commit.span is not None
    manager.codebooks.record(
        commit.span,
        SpanFigures(
            energy=np.ones(BOOKS, np.float32),
            residual=np.full(BOOKS, ratio, np.float32),
            counts=np.ones((BOOKS, GROUPS, CENTROIDS), np.int32),
            num_centroids=np.full(BOOKS, CENTROIDS, np.int32),
        ),
    )


def commit(manager: BlockManager, branch: int, ratio: float = 0.1) -> PendingCommit:
    pending = manager.begin_commit([branch], 7)
    report(manager, pending, ratio)
    manager.publish(pending)
    manager.check_integrity()
    return pending


def slot_of(manager: BlockManager, page_id: int) -> int:
    assert manager.codebooks is not None
    return int(manager.codebooks.pool.slot_of_page[0, page_id])


def test_a_refit_leaves_older_pages_their_codebook() -> None:
    manager = new_manager()
    branch = open_stream(manager)
    first = commit(manager, branch)
    second = commit(manager, branch, ratio=0.5)
    third = commit(manager, branch)
    assert first.span is not None
    assert second.span is not None
    assert third.span is not None
    assert (first.span.actions == CodebookAction.FIT).all()
    assert (second.span.actions == CodebookAction.REUSE).all()
    assert (third.span.actions == CodebookAction.REFIT).all()
    assert slot_of(manager, first.page_ids[0]) == slot_of(manager, second.page_ids[0])
    assert slot_of(manager, third.page_ids[0]) != slot_of(manager, first.page_ids[0])


def test_a_slot_is_free_again_once_its_pages_are_evicted() -> None:
    manager = new_manager()
    branch = open_stream(manager)
    first = commit(manager, branch, ratio=0.1)
    commit(manager, branch, ratio=0.9)
    commit(manager, branch, ratio=0.1)
    fourth = commit(manager, branch, ratio=0.9)
    blocked = commit(manager, branch, ratio=0.9)
    assert blocked.span is not None
    assert fourth.span is not None
    assert (blocked.span.actions == CodebookAction.REUSE).all(), "no slot is free"
    manager.evict(branch, sink_tokens=0, window_start=14)
    assert slot_of(manager, first.page_ids[0]) == NO_SLOT
    again = commit(manager, branch)
    assert again.span is not None
    assert (again.span.actions == CodebookAction.REFIT).all()
    assert np.array_equal(again.span.warm_from, fourth.span.slots)


def test_a_rolled_back_commit_leaves_no_reference() -> None:
    manager = new_manager()
    branch = open_stream(manager)
    pending = manager.begin_commit([branch], 7)
    manager.rollback(pending)
    manager.check_integrity()
    again = manager.begin_commit([branch], 7)
    assert again.span is not None
    assert (again.span.actions == CodebookAction.FIT).all()
    manager.rollback(again)
    manager.close_owner("a")
    assert manager.codebooks is not None
    assert manager.codebooks.pool.num_free_slots == SIZES.num_slots
    assert manager.codebooks.pool.num_reserved_rows == 0
    assert manager.codebooks.refinements.num_reserved == 0


def test_admission_counts_slots_and_rows() -> None:
    manager = new_manager(num_pages=200)
    for name in "abcd":
        open_stream(manager, name)
    with pytest.raises(OutOfCodebooksError, match="0 slots and 0 rows are free"):
        manager.open_owner("e", 1, codebook_slots=2, codebook_rows=2)
    assert manager.num_unreserved == 120
    manager.close_owner("b")
    open_stream(manager, "e")
    manager.check_integrity()


def test_every_branch_that_commits_needs_a_set() -> None:
    manager = new_manager()
    branch = open_stream(manager)
    commit(manager, branch)
    other = manager.open_branch("a")
    with pytest.raises(OutOfCodebooksError, match="reserve one for each branch"):
        manager.begin_commit([other], 7)
    manager.check_integrity()
    shared = manager.begin_commit([branch, other], 7)
    manager.publish(shared)
    manager.check_integrity()


def test_a_set_passes_on_only_when_no_page_refers_to_it() -> None:
    manager = new_manager()
    branch = open_stream(manager)
    commit(manager, branch)
    fork = manager.fork_branch(branch)
    manager.close_branch(branch)
    with pytest.raises(OutOfCodebooksError):
        manager.begin_commit([fork], 7)
    manager.check_integrity()
    manager.evict(fork, sink_tokens=0, window_start=7)
    again = commit(manager, fork)
    assert again.span is not None
    assert (again.span.actions == CodebookAction.FIT).all()


def test_the_newest_pages_are_refined() -> None:
    manager = new_manager()
    branch = open_stream(manager, refinements=3)
    first = manager.begin_commit([branch], 4 * PAGE_SIZE + 1)
    assert first.refined is not None
    assert first.refined[:2].tolist() == [NO_PAGE, NO_PAGE]
    assert sorted(first.refined[2:].tolist()) == [0, 1, 2]
    assert refined_pages(manager) == [], "nothing can be read yet"
    manager.publish(first)
    assert refined_pages(manager) == sorted(first.page_ids[2:].tolist())
    second = manager.begin_commit([branch], PAGE_SIZE)
    assert refined_pages(manager) == sorted(first.page_ids[2:].tolist()), "this pass reads them"
    manager.publish(second)
    manager.check_integrity()
    assert refined_pages(manager) == second.page_ids.tolist(), "it may have written over the others"


def test_what_a_rolled_back_commit_wrote_over_is_not_read() -> None:
    manager = new_manager()
    branch = open_stream(manager)
    commit(manager, branch)
    pending = manager.begin_commit([branch], 7)
    manager.rollback(pending)
    manager.check_integrity()
    assert refined_pages(manager) == []
    assert refined_pages_after(manager, branch) == 1


def refined_pages_after(manager: BlockManager, branch: int) -> int:
    """How many are refined after one more commit."""
    commit(manager, branch)
    return len(refined_pages(manager))


def test_evicted_pages_are_not_refined_and_their_ids_serve_others() -> None:
    manager = new_manager(num_pages=2)
    manager.open_owner("a", 1, codebook_slots=2, codebook_rows=2 * ROWS, refinement_pages=1)
    manager.open_owner("b", 1, codebook_slots=2, codebook_rows=2 * ROWS, refinement_pages=1)
    mine, other = manager.open_branch("a"), manager.open_branch("b")
    first = manager.begin_commit([mine], 3)
    manager.publish(first)
    manager.evict(mine, sink_tokens=0, window_start=3)
    assert refined_pages(manager) == []
    for branch in (other, mine):
        manager.publish(manager.begin_commit([branch], 3))
        manager.check_integrity()
    assert refined_pages(manager) == [0, 1]


def test_a_set_shares_nothing_with_a_fork_that_commits() -> None:
    manager = new_manager()
    branch = open_stream(manager, sets=2)
    first = commit(manager, branch)
    fork = manager.fork_branch(branch)
    second = commit(manager, fork)
    newest = [first.page_ids[-1], second.page_ids[-1]]
    assert refined_pages(manager) == sorted(int(page) for page in newest)


def test_admission_counts_refinement_pages_and_takes_nothing_else() -> None:
    manager = new_manager()
    open_stream(manager, "a", refinements=6)
    with pytest.raises(OutOfCodebooksError, match="2 refinement pages wanted, but 1 are free"):
        open_stream(manager, "b", refinements=2)
    manager.check_integrity()
    open_stream(manager, "b", refinements=1)
    manager.close_owner("a")
    open_stream(manager, "c", refinements=6)
    manager.check_integrity()


@pytest.mark.parametrize("seed", range(12))
def test_random_streams_lose_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    manager = new_manager(num_pages=70)
    pending: dict[str, PendingCommit] = {}
    branches: dict[str, list[int]] = {}
    for _ in range(150):
        name = "abcde"[rng.integers(5)]
        try:
            if name not in branches:
                branches[name] = [open_stream(manager, name, refinements=int(rng.integers(4)))]
            elif name in pending:
                end = manager.publish if rng.random() < 0.7 else manager.rollback
                report(manager, pending[name], float(rng.random()))
                end(pending.pop(name))
            elif rng.random() < 0.5:
                count = int(rng.integers(1, 12))
                pending[name] = manager.begin_commit(branches[name], count)
            elif rng.random() < 0.5:
                until = manager.next_token(branches[name][0]) - int(rng.integers(12))
                for branch in branches[name]:
                    manager.evict(branch, sink_tokens=2, window_start=max(0, until))
            elif rng.random() < 0.5 and len(branches[name]) < 3:
                branches[name].append(manager.fork_branch(branches[name][0]))
            else:
                manager.close_owner(name)
                del branches[name]
        except (OutOfPagesError, OutOfCodebooksError):
            branches = {key: value for key, value in branches.items() if value}
        manager.check_integrity()
    for name in branches:
        manager.close_owner(name)
    manager.check_integrity()
    assert manager.num_free == 70
    assert manager.codebooks is not None
    assert manager.codebooks.pool.num_reserved_rows == 0
    assert manager.codebooks.refinements.num_reserved == 0
