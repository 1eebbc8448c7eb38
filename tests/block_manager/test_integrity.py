"""The integrity check of a block manager finds every kind of damage that is done on purpose."""

from collections.abc import Callable

import numpy as np
import pytest

from qvg_engine.block_manager.manager import BlockManager


def busy_manager() -> BlockManager:
    """Owner "a": branches 0 and 1 share pages, 2 is a fork; "b": branch 3. Two commits are open."""
    manager = BlockManager(num_pages=32, page_size=4)
    manager.open_owner("a", 12)
    manager.open_owner("b", 12)
    branches = [manager.open_branch(owner_id) for owner_id in "aa"]
    manager.publish(manager.begin_commit(branches, 9))
    manager.fork_branch(branches[0])
    other = manager.open_branch("b")
    manager.publish(manager.begin_commit([other], 9))
    manager.begin_commit(branches, 4)
    manager.begin_commit([other], 4)
    return manager


def leak_a_page(manager: BlockManager) -> None:
    manager._pool.allocate(1)


def lose_a_reference(manager: BlockManager) -> None:
    manager._pool.release(manager._branches[0].table.page_ids[:1])


def add_a_reference(manager: BlockManager) -> None:
    manager._pool.share(manager._branches[0].table.page_ids[:1])


def free_a_page_in_use(manager: BlockManager) -> None:
    manager._pool._ref_counts[manager._branches[3].table.page_ids[0]] = 0


def read_pages_of_another_owner(manager: BlockManager) -> None:
    page_ids = manager._branches[0].table.page_ids
    manager._branches[3].table = manager._branches[0].table.copy()
    manager._pool.share(page_ids)


def share_with_another_owner(manager: BlockManager) -> None:
    page_ids = manager._branches[0].table.page_ids[:1]
    manager._branches[3].table.append(page_ids, 4)
    manager._pool.share(page_ids)
    manager._owners["b"].num_used += 1


def read_a_page_being_written(manager: BlockManager) -> None:
    page_ids = manager._commits[2].page_ids
    manager._branches[2].table.append(page_ids, 4)
    manager._pool.share(page_ids)


def write_a_page_twice(manager: BlockManager) -> None:
    manager._commits[3].page_ids[:] = manager._commits[2].page_ids


def name_a_page_that_does_not_exist(manager: BlockManager) -> None:
    manager._branches[0].table.append(np.array([32], dtype=np.int32), 1)


def miscount_an_account(manager: BlockManager) -> None:
    manager._owners["a"].num_used -= 1


def exceed_a_reservation(manager: BlockManager) -> None:
    manager._owners["a"].reserved_pages = 3
    manager._num_reserved = 15


def miscount_reservations(manager: BlockManager) -> None:
    manager._num_reserved -= 1


def reserve_more_than_there_is(manager: BlockManager) -> None:
    manager._owners["a"].reserved_pages = 30
    manager._num_reserved = 42


def damage_a_table(manager: BlockManager) -> None:
    manager._branches[1].table._num_tokens += 1


def forget_a_branch(manager: BlockManager) -> None:
    manager._owners["a"].branch_ids.remove(2)


def forget_to_close_a_branch(manager: BlockManager) -> None:
    del manager._branches[2]


def forget_a_commit(manager: BlockManager) -> None:
    del manager._commits[3]


def forget_a_branch_of_a_commit(manager: BlockManager) -> None:
    manager._branches[1].commit_id = None


def move_a_branch_of_a_commit(manager: BlockManager) -> None:
    branch = manager._branches[1]
    branch.owner.branch_ids.remove(1)
    branch.owner = manager._owners["b"]
    branch.owner.branch_ids.add(1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (leak_a_page, "referenced by 0 block tables and 0 .*, but its reference count is 1"),
        (lose_a_reference, "referenced by 3 block tables and 0 .*, but its reference count is 2"),
        (add_a_reference, "referenced by 3 block tables and 0 .*, but its reference count is 4"),
        (free_a_page_in_use, "0 times in the free list and has reference count 0"),
        (read_pages_of_another_owner, "referenced by 0 block tables"),
        (share_with_another_owner, "is held by two owners"),
        (read_a_page_being_written, "is being written and stands in a block table"),
        (write_a_page_twice, "is being written by two commits"),
        (name_a_page_that_does_not_exist, "not all of them exist"),
        (miscount_an_account, "'a' holds 4 pages, 3 are counted"),
        (exceed_a_reservation, "'a' holds 4 pages, but reserved 3"),
        (miscount_reservations, "owners reserved 24 pages, 23 are counted"),
        (reserve_more_than_there_is, "42 pages are reserved, but there are 32"),
        (damage_a_table, "branch 1: 9 tokens are visible, 10 are counted"),
        (forget_a_branch, "branch 2 is unknown to its owner"),
        (forget_to_close_a_branch, "branch 2 of 'a' is not open"),
        (forget_a_commit, "branch 3 waits for commit 3, which is not under way"),
        (forget_a_branch_of_a_commit, "under way for branch 1, which does not know it"),
        (move_a_branch_of_a_commit, "has branches of several owners"),
    ],
)
def test_the_check_finds_damage(damage: Callable[[BlockManager], None], message: str) -> None:
    manager = busy_manager()
    manager.check_integrity()
    damage(manager)
    with pytest.raises(AssertionError, match=message):
        manager.check_integrity()
