"""The block manager: reservations, sharing, commits and eviction, one invariant a test."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from qvg_engine.block_manager.block_table import BlockTable
from qvg_engine.block_manager.manager import BlockManager, pages_for
from qvg_engine.errors import OutOfPagesError

PAGE_SIZE = 4


@pytest.fixture
def manager() -> BlockManager:
    """32 pages of 4 tokens; owner "a" may use 20 of them."""
    manager = BlockManager(num_pages=32, page_size=PAGE_SIZE)
    manager.open_owner("a", reserved_pages=20)
    return manager


def commit(manager: BlockManager, *branch_ids: int, num_tokens: int) -> NDArray[np.int32]:
    pending = manager.begin_commit(branch_ids, num_tokens)
    manager.publish(pending)
    return pending.page_ids


def tokens(manager: BlockManager, branch_id: int) -> list[int]:
    return [
        first_token + slot
        for _, first_token, begin, end in manager.read_table(branch_id).packed.tolist()
        for slot in range(begin, end)
    ]


@pytest.mark.parametrize(("num_tokens", "expected"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_pages_for_rounds_up(num_tokens: int, expected: int) -> None:
    assert pages_for(num_tokens, PAGE_SIZE) == expected


def test_reservations_cannot_exceed_the_pool(manager: BlockManager) -> None:
    assert manager.num_unreserved == 12
    assert manager.can_reserve(12)
    assert not manager.can_reserve(13)
    with pytest.raises(OutOfPagesError, match="'b' wants to reserve 13 pages, but 12 of 32"):
        manager.open_owner("b", 13)
    manager.open_owner("b", 12)
    assert manager.num_unreserved == 0


def test_a_reservation_takes_no_page(manager: BlockManager) -> None:
    assert (manager.num_pages, manager.num_free, manager.num_used) == (32, 32, 0)


def test_an_owner_cannot_exceed_its_reservation(manager: BlockManager) -> None:
    branch_id = manager.open_branch("a")
    commit(manager, branch_id, num_tokens=18 * PAGE_SIZE)
    with pytest.raises(OutOfPagesError, match="'a' needs 3 pages, but 2 of the 20"):
        manager.begin_commit([branch_id], 2 * PAGE_SIZE + 1)
    assert manager.num_used == 18
    manager.begin_commit([branch_id], 2 * PAGE_SIZE)
    manager.check_integrity()


def test_an_owner_that_is_closed_gives_back_everything(manager: BlockManager) -> None:
    first, second = manager.open_branch("a"), manager.open_branch("a")
    commit(manager, first, second, num_tokens=10)
    fork = manager.fork_branch(first)
    pending = [manager.begin_commit([first, fork], 7), manager.begin_commit([second], 1)]
    assert manager.close_owner("a") == 6
    assert manager.num_free == manager.num_unreserved == 32
    with pytest.raises(AssertionError, match="not under way"):
        manager.publish(pending[0])
    manager.check_integrity()


def test_a_page_shared_by_branches_counts_once(manager: BlockManager) -> None:
    branch_ids = [manager.open_branch("a") for _ in range(3)]
    commit(manager, *branch_ids, num_tokens=9)
    assert manager.num_used_by("a") == manager.num_used == 3
    assert manager.num_live_tokens() == manager.num_live_tokens("a") == 9


def test_a_shared_page_is_freed_by_its_last_branch(manager: BlockManager) -> None:
    branch_ids = [manager.open_branch("a") for _ in range(3)]
    commit(manager, *branch_ids, num_tokens=9)
    assert [manager.close_branch(branch_id) for branch_id in branch_ids] == [0, 0, 3]
    assert manager.num_used == 0


def test_a_fork_reads_the_same_pages_and_goes_its_own_way(manager: BlockManager) -> None:
    branch_id = manager.open_branch("a")
    commit(manager, branch_id, num_tokens=6)
    fork_id = manager.fork_branch(branch_id)
    shared = manager.read_table(branch_id).packed.tolist()
    assert manager.read_table(fork_id).packed.tolist() == shared
    assert manager.num_used == 2
    own = commit(manager, fork_id, num_tokens=1)
    assert manager.read_table(branch_id).packed.tolist() == shared
    assert manager.read_table(fork_id).page_id.tolist()[2:] == own.tolist()


def test_a_fork_does_not_join_the_commit_under_way(manager: BlockManager) -> None:
    branch_id = manager.open_branch("a")
    pending = manager.begin_commit([branch_id], 5)
    fork_id = manager.fork_branch(branch_id)
    manager.publish(pending)
    assert tokens(manager, branch_id) == [0, 1, 2, 3, 4]
    assert tokens(manager, fork_id) == []


def test_evicting_in_one_branch_leaves_the_other(manager: BlockManager) -> None:
    branch_ids = [manager.open_branch("a") for _ in range(2)]
    commit(manager, *branch_ids, num_tokens=12)
    assert manager.evict(branch_ids[0], 0, 8) == 0
    assert tokens(manager, branch_ids[0]) == [8, 9, 10, 11]
    assert tokens(manager, branch_ids[1]) == list(range(12))
    assert manager.num_live_tokens() == 12
    assert manager.evict(branch_ids[1], 0, 9) == 2
    assert manager.num_live_tokens() == 4


def test_live_tokens_count_a_slot_once_when_ranges_overlap(manager: BlockManager) -> None:
    branch_id = manager.open_branch("a")
    commit(manager, branch_id, num_tokens=4)
    fork_id = manager.fork_branch(branch_id)
    manager.evict(branch_id, 0, 2)
    manager.evict(fork_id, 1, 3)
    assert (tokens(manager, branch_id), tokens(manager, fork_id)) == ([2, 3], [0, 3])
    assert manager.num_live_tokens() == 3


def test_live_tokens_count_a_slot_once_when_a_range_holds_others(manager: BlockManager) -> None:
    branch_id = manager.open_branch("a")
    commit(manager, branch_id, num_tokens=4)
    fork_id = manager.fork_branch(branch_id)
    manager.evict(fork_id, 0, 1)
    manager.evict(fork_id, 2, 3)
    assert tokens(manager, fork_id) == [1, 3]
    assert manager.num_live_tokens() == 4


def test_pages_being_written_cannot_be_read(manager: BlockManager) -> None:
    branch_id = manager.open_branch("a")
    pending = manager.begin_commit([branch_id], 9)
    assert tokens(manager, branch_id) == []
    assert (pending.page_ids.size, manager.num_used, manager.num_live_tokens()) == (3, 3, 0)
    manager.publish(pending)
    assert tokens(manager, branch_id) == list(range(9))


def test_rollback_leaves_everything_as_it_was(manager: BlockManager) -> None:
    branch_ids = [manager.open_branch("a") for _ in range(2)]
    commit(manager, *branch_ids, num_tokens=9)
    before = manager.read_table(branch_ids[0])
    manager.rollback(manager.begin_commit(branch_ids, 5, at_token=3))
    assert manager.read_table(branch_ids[0]) is before
    assert manager.num_used == 3
    manager.check_integrity()


def test_a_commit_ends_once(manager: BlockManager) -> None:
    branch_id = manager.open_branch("a")
    pending = manager.begin_commit([branch_id], 5)
    manager.publish(pending)
    for end in (manager.publish, manager.rollback):
        with pytest.raises(AssertionError, match="commit 0 is not under way"):
            end(pending)


def test_a_replacing_commit_keeps_the_old_pages_until_it_is_published(
    manager: BlockManager,
) -> None:
    branch_id = manager.open_branch("a")
    commit(manager, branch_id, num_tokens=12)
    pending = manager.begin_commit([branch_id], 5, at_token=6)
    assert (tokens(manager, branch_id), manager.num_used) == (list(range(12)), 5)
    manager.publish(pending)
    assert (tokens(manager, branch_id), manager.num_used) == (list(range(11)), 4)
    assert manager.read_table(branch_id).page_id.tolist()[2:] == pending.page_ids.tolist()


def test_freeing_first_makes_room_for_the_new_pages(manager: BlockManager) -> None:
    branch_id = manager.open_branch("a")
    commit(manager, branch_id, num_tokens=20 * PAGE_SIZE)
    with pytest.raises(OutOfPagesError):
        manager.begin_commit([branch_id], 19 * PAGE_SIZE, at_token=PAGE_SIZE)
    manager.publish(
        manager.begin_commit([branch_id], 19 * PAGE_SIZE, at_token=PAGE_SIZE, free_first=True)
    )
    assert manager.num_used == 20
    manager.check_integrity()


def test_a_refused_commit_frees_nothing_first(manager: BlockManager) -> None:
    branch_ids = [manager.open_branch("a") for _ in range(2)]
    commit(manager, *branch_ids, num_tokens=20 * PAGE_SIZE)
    with pytest.raises(OutOfPagesError, match="needs 20 pages, but 19 of the 20"):
        manager.begin_commit(branch_ids, 20 * PAGE_SIZE, at_token=1, free_first=True)
    assert tokens(manager, branch_ids[0]) == tokens(manager, branch_ids[1]) == list(range(80))


def test_freeing_first_in_one_branch_frees_no_page_that_another_reads(
    manager: BlockManager,
) -> None:
    branch_ids = [manager.open_branch("a") for _ in range(2)]
    commit(manager, *branch_ids, num_tokens=20 * PAGE_SIZE)
    with pytest.raises(OutOfPagesError, match="needs 1 pages, but 0 of the 20"):
        manager.begin_commit(branch_ids[:1], 1, at_token=0, free_first=True)


def test_rolling_back_what_freed_first_leaves_the_branch_cut(manager: BlockManager) -> None:
    branch_id = manager.open_branch("a")
    commit(manager, branch_id, num_tokens=12)
    manager.rollback(manager.begin_commit([branch_id], 5, at_token=6, free_first=True))
    assert tokens(manager, branch_id) == list(range(6))
    assert (manager.num_used, manager.next_token(branch_id)) == (2, 6)
    manager.check_integrity()


def test_publishing_is_all_or_nothing(
    manager: BlockManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    branch_ids = [manager.open_branch("a") for _ in range(3)]
    commit(manager, *branch_ids, num_tokens=9)
    pending = manager.begin_commit(branch_ids, 5, at_token=2)
    before = [manager.read_table(branch_id) for branch_id in branch_ids]
    append, calls = BlockTable.append, []

    def fail_at_the_second(table: BlockTable, page_ids: NDArray[np.int32], num: int) -> None:
        calls.append(table)
        if len(calls) == 2:
            raise MemoryError
        append(table, page_ids, num)

    with monkeypatch.context() as patch:
        patch.setattr(BlockTable, "append", fail_at_the_second)
        with pytest.raises(MemoryError):
            manager.publish(pending)
    assert [manager.read_table(branch_id) for branch_id in branch_ids] == before
    manager.check_integrity()
    manager.publish(pending)
    assert [len(tokens(manager, branch_id)) for branch_id in branch_ids] == [7, 7, 7]
    manager.check_integrity()


def test_a_snapshot_outlives_eviction_and_replacement(manager: BlockManager) -> None:
    branch_id = manager.open_branch("a")
    commit(manager, branch_id, num_tokens=12)
    snapshot = manager.read_table(branch_id)
    expected = list(zip(snapshot.page_id, snapshot.first_token, snapshot.end, strict=True))
    manager.evict(branch_id, 1, 7)
    manager.publish(manager.begin_commit([branch_id], 9, at_token=8))
    assert list(zip(snapshot.page_id, snapshot.first_token, snapshot.end, strict=True)) == expected


def test_misuse_is_refused(manager: BlockManager) -> None:
    manager.open_owner("b", 1)
    first, second, other = (manager.open_branch(owner) for owner in "aab")
    pending = manager.begin_commit([first], 1)
    misuses: dict[str, Callable[[], object]] = {
        "owner 'a' is open already": lambda: manager.open_owner("a", 1),
        "owner 'c' is not open": lambda: manager.open_branch("c"),
        "branch 99 is not open": lambda: manager.read_table(99),
        "at least one branch": lambda: manager.begin_commit([], 1),
        "listed twice": lambda: manager.begin_commit([second, second], 1),
        "several owners": lambda: manager.begin_commit([second, other], 1),
        f"branch {first} has a commit under way": lambda: manager.begin_commit([first], 1),
        f"branch {first} has commit {pending.commit_id} open": lambda: manager.close_branch(first),
        "at least one token": lambda: manager.begin_commit([second], 0),
        "cannot replace from token 1": lambda: manager.begin_commit([second], 1, at_token=1),
        "nothing to free": lambda: manager.begin_commit([second], 1, free_first=True),
    }
    for message, call in misuses.items():
        with pytest.raises(AssertionError, match=message):
            call()
    manager.check_integrity()
    assert manager.num_used == 1
