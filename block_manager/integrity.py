"""The check that the block manager's books agree with each other."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qvg_engine.block_manager.codebooks import Codebooks
from qvg_engine.block_manager.commit import PendingCommit
from qvg_engine.block_manager.owner import Branch, Owner
from qvg_engine.block_manager.page_pool import PagePool
from qvg_engine.block_manager.table_loops import distinct_pages

_NO_PAGES = np.empty(0, dtype=np.int32)


def check_ledger(
    pool: PagePool,
    owners: Mapping[str, Owner],
    branches: Mapping[int, Branch],
    commits: Mapping[int, PendingCommit],
    num_reserved: int,
) -> None:
    """Raise AssertionError unless tables, commits, reference counts and accounts agree."""
    _check_reservations(pool, owners, num_reserved)
    _check_links(owners, branches, commits)
    for branch_id, branch in branches.items():
        try:
            branch.table.check_integrity()
        except AssertionError as error:
            raise AssertionError(f"branch {branch_id}: {error}") from None
    for commit in commits.values():
        _check_commit(commit, branches)
    _check_pages(pool, branches, commits)
    _check_accounts(pool, owners, branches, commits)


def check_codebooks(
    codebooks: Codebooks,
    pool: PagePool,
    owners: Mapping[str, Owner],
    commits: Mapping[int, PendingCommit],
) -> None:
    """Raise AssertionError unless published pages, and they alone, refer to codebooks.

    Every page refers to codebooks of the owner that holds it, and slots belong to one owner.
    """
    is_used = pool.ref_counts > 0
    for commit in commits.values():
        is_used[commit.page_ids] = False
    codebooks.pool.check_integrity(is_used)
    unbound = np.flatnonzero(is_used & (codebooks.pool.slot_of_page[0] < 0))
    if unbound.size:
        raise AssertionError(f"page {unbound[0]} is in use and refers to no codebook")
    sets = [codebook_set for owner in owners.values() for codebook_set in owner.codebook_sets]
    slots = [slot for codebook_set in sets for slot in codebook_set.slots.tolist()]
    if len(set(slots)) != len(slots):
        raise AssertionError("a codebook slot belongs to two sets")
    codebooks.refinements.check_integrity(is_used)
    pages = [page for codebook_set in sets for page in codebook_set.refinements.tolist()]
    if len(set(pages)) != len(pages) or len(pages) != codebooks.refinements.num_reserved:
        raise AssertionError("sets do not hold the refinement pages that are reserved, once each")
    if len(slots) != codebooks.pool.num_slots - codebooks.pool.num_free_slots:
        raise AssertionError(f"owners hold {len(slots)} codebook slots, not those reserved")


def _check_reservations(pool: PagePool, owners: Mapping[str, Owner], num_reserved: int) -> None:
    total = sum(owner.reserved_pages for owner in owners.values())
    if total != num_reserved:
        raise AssertionError(f"owners reserved {total} pages, {num_reserved} are counted")
    if total > pool.num_pages:
        raise AssertionError(f"{total} pages are reserved, but there are {pool.num_pages}")


def _check_links(
    owners: Mapping[str, Owner],
    branches: Mapping[int, Branch],
    commits: Mapping[int, PendingCommit],
) -> None:
    for branch_id, branch in branches.items():
        if branch.commit_id is not None and branch.commit_id not in commits:
            raise AssertionError(
                f"branch {branch_id} waits for commit {branch.commit_id}, which is not under way"
            )
        owner = owners.get(branch.owner.owner_id)
        if owner is not branch.owner or branch_id not in owner.branch_ids:
            raise AssertionError(f"branch {branch_id} is unknown to its owner")
    for owner in owners.values():
        lost = owner.branch_ids - branches.keys()
        if lost:
            raise AssertionError(f"branch {min(lost)} of {owner.owner_id!r} is not open")


def _check_commit(commit: PendingCommit, branches: Mapping[int, Branch]) -> None:
    for branch_id in commit.branch_ids:
        if branch_id not in branches or branches[branch_id].commit_id != commit.commit_id:
            raise AssertionError(
                f"commit {commit.commit_id} is under way for branch {branch_id}, "
                "which does not know it"
            )
    if len({id(branches[branch_id].owner) for branch_id in commit.branch_ids}) != 1:
        raise AssertionError(f"commit {commit.commit_id} has branches of several owners")


def _check_pages(
    pool: PagePool, branches: Mapping[int, Branch], commits: Mapping[int, PendingCommit]
) -> None:
    in_tables = _count(pool, [branch.table.page_ids for branch in branches.values()])
    in_commits = _count(pool, [commit.page_ids for commit in commits.values()])
    visible = np.flatnonzero((in_commits > 0) & (in_tables > 0))
    if visible.size:
        raise AssertionError(f"page {visible[0]} is being written and stands in a block table")
    if int(in_commits.max()) > 1:
        raise AssertionError(f"page {in_commits.argmax()} is being written by two commits")
    for commit in commits.values():
        in_commits[commit.page_ids] = len(commit.branch_ids)
    wrong = np.flatnonzero(in_tables + in_commits != pool.ref_counts)
    if wrong.size:
        page_id = int(wrong[0])
        raise AssertionError(
            f"page {page_id} is referenced by {in_tables[page_id]} block tables and "
            f"{in_commits[page_id]} branches of a commit, but its reference count is "
            f"{pool.ref_counts[page_id]}"
        )


def _check_accounts(
    pool: PagePool,
    owners: Mapping[str, Owner],
    branches: Mapping[int, Branch],
    commits: Mapping[int, PendingCommit],
) -> None:
    is_held = np.zeros(pool.num_pages, dtype=np.bool_)
    for owner in owners.values():
        commit_ids = {branches[branch_id].commit_id for branch_id in owner.branch_ids}
        held = [branches[branch_id].table.page_ids for branch_id in owner.branch_ids]
        held += [commits[commit_id].page_ids for commit_id in commit_ids if commit_id is not None]
        page_ids = distinct_pages(np.sort(np.concatenate([_NO_PAGES, *held])))
        if page_ids.size != owner.num_used:
            raise AssertionError(
                f"{owner.owner_id!r} holds {page_ids.size} pages, {owner.num_used} are counted"
            )
        if page_ids.size > owner.reserved_pages:
            raise AssertionError(
                f"{owner.owner_id!r} holds {page_ids.size} pages, but reserved "
                f"{owner.reserved_pages}"
            )
        if np.any(is_held[page_ids]):
            raise AssertionError(f"page {page_ids[is_held[page_ids]][0]} is held by two owners")
        is_held[page_ids] = True


def _count(pool: PagePool, page_ids: list[NDArray[np.int32]]) -> NDArray[np.int64]:
    """How often each page stands in these lists."""
    flat = np.concatenate([_NO_PAGES, *page_ids])
    if flat.size and not 0 <= int(flat.min()) <= int(flat.max()) < pool.num_pages:
        raise AssertionError(f"pages {flat.min()} to {flat.max()} are held, not all of them exist")
    return np.bincount(flat, minlength=pool.num_pages)
