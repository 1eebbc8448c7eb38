"""The block manager: who may use how many pages, and which pages each branch reads.

It joins the page pool, the reservations of the owners (a stream each), the block tables of their
branches and the commits under way. It deals in ids only: what a page stores is known to the page
store alone. Not thread-safe.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qvg_engine.block_manager.block_table import BlockTable
from qvg_engine.block_manager.codebook_policy import SpanPlan
from qvg_engine.block_manager.codebooks import Codebooks
from qvg_engine.block_manager.commit import PendingCommit
from qvg_engine.block_manager.integrity import check_codebooks, check_ledger
from qvg_engine.block_manager.owner import Branch, Owner
from qvg_engine.block_manager.page_count import pages_for
from qvg_engine.block_manager.page_entries import PageEntries
from qvg_engine.block_manager.page_pool import PagePool
from qvg_engine.block_manager.table_loops import count_distinct_slots
from qvg_engine.errors import OutOfPagesError

__all__ = ["BlockManager", "PageEntries", "PendingCommit", "pages_for"]


class BlockManager:
    """`num_pages` pages of `page_size` tokens for the branches of many owners.

    Every page is free, or belongs to one owner and is referenced by as many block tables (those
    of the branches in a commit under way included) as its reference count says. An owner never
    uses more pages than it reserved, and all reservations fit the pool, so a commit cannot fail
    for want of pages that was admitted. A call that raises has changed nothing.

    With `codebooks`, the pages of a commit refer to those that its first branch is using then.
    """

    def __init__(
        self, num_pages: int, page_size: int, *, codebooks: Codebooks | None = None
    ) -> None:
        assert page_size >= 1, f"a page has at least one slot, got {page_size}"
        self.page_size = page_size
        self.codebooks = codebooks
        self._pool = PagePool(num_pages)
        self._num_reserved = 0
        self._owners: dict[str, Owner] = {}
        self._branches: dict[int, Branch] = {}
        self._commits: dict[int, PendingCommit] = {}
        self._next_branch_id = 0
        self._next_commit_id = 0

    @property
    def num_pages(self) -> int:
        """Pages in all."""
        return self._pool.num_pages

    @property
    def num_free(self) -> int:
        """Pages that nobody references, reserved or not."""
        return self._pool.num_free

    @property
    def num_used(self) -> int:
        """Pages in a block table or in a commit under way."""
        return self._pool.num_used

    @property
    def num_unreserved(self) -> int:
        """Pages that a new owner could reserve."""
        return self._pool.num_pages - self._num_reserved

    def num_used_by(self, owner_id: str) -> int:
        """Pages that the owner uses; one shared by several of its branches counts once."""
        return self._owner(owner_id).num_used

    def num_live_tokens(self, owner_id: str | None = None) -> int:
        """Tokens that some branch (of the owner, if given) can read.

        A token that several branches share counts once.
        """
        owners = self._owners.values() if owner_id is None else (self._owner(owner_id),)
        return sum(self._count_live_tokens(owner) for owner in owners)

    def can_reserve(self, num_pages: int) -> bool:
        """Whether `open_owner` with that many pages would succeed."""
        return 0 <= num_pages <= self.num_unreserved

    def open_owner(
        self,
        owner_id: str,
        reserved_pages: int,
        *,
        codebook_slots: int = 0,
        codebook_rows: int = 0,
        refinement_pages: int = 0,
    ) -> None:
        """Set pages, and slots of codebooks with that many rows in all, aside for a new owner.

        And refinement pages, which its branches share evenly. Raises OutOfPagesError or
        OutOfCodebooksError if fewer are unreserved.
        """
        assert owner_id not in self._owners, f"owner {owner_id!r} is open already"
        assert reserved_pages >= 0
        if not self.can_reserve(reserved_pages):
            raise OutOfPagesError(
                f"{owner_id!r} wants to reserve {reserved_pages} pages, but {self.num_unreserved} "
                f"of {self.num_pages} are unreserved: wait until another stream has finished"
            )
        owner = Owner(owner_id, reserved_pages)
        if self.codebooks is not None:
            owner.codebook_sets = self.codebooks.open_sets(
                codebook_slots, codebook_rows, refinement_pages
            )
        self._owners[owner_id] = owner
        self._num_reserved += reserved_pages

    def close_owner(self, owner_id: str) -> int:
        """Close the owner's commits under way and branches; returns the pages freed."""
        owner = self._owner(owner_id)
        num_used = owner.num_used
        commits = {self._branches[branch_id].commit_id for branch_id in owner.branch_ids}
        for commit_id in commits:
            if commit_id is not None:
                self.rollback(self._commits[commit_id])
        for branch_id in tuple(owner.branch_ids):
            self.close_branch(branch_id)
        assert owner.num_used == 0, f"{owner_id!r} still uses {owner.num_used} pages"
        if self.codebooks is not None:
            self.codebooks.close_sets(owner.codebook_sets)
        del self._owners[owner_id]
        self._num_reserved -= owner.reserved_pages
        return num_used

    def open_branch(self, owner_id: str) -> int:
        """A new, empty branch; returns its id, which is never used again."""
        return self._add_branch(self._owner(owner_id), BlockTable(self.page_size))

    def fork_branch(self, branch_id: int) -> int:
        """A new branch of the same owner that reads the same tokens; every page is shared.

        A commit under way stays with the old branch alone. Returns the new branch's id.
        """
        branch = self._branch(branch_id)
        table = branch.table.copy()
        self._pool.share(table.page_ids)
        return self._add_branch(branch.owner, table)

    def close_branch(self, branch_id: int) -> int:
        """Give up the branch; returns the pages freed. It may have no commit under way."""
        branch = self._branch(branch_id)
        assert branch.commit_id is None, f"branch {branch_id} has commit {branch.commit_id} open"
        del self._branches[branch_id]
        branch.owner.branch_ids.remove(branch_id)
        if branch.codebook_set is not None:
            branch.codebook_set.is_taken = False
        return self._release(branch.owner, branch.table.page_ids)

    def begin_commit(
        self,
        branch_ids: Sequence[int],
        num_tokens: int,
        at_token: int | None = None,
        *,
        free_first: bool = False,
    ) -> PendingCommit:
        """Take pages for `num_tokens` tokens that these branches of one owner will share.

        The tokens are appended or, with `at_token`, replace all tokens from there on. What is
        replaced is dropped by `publish`; with `free_first` it is dropped now, so that its pages
        can be used again, and stays dropped after a rollback. A branch has one commit under way
        at most. Raises OutOfPagesError if the owner's reservation is used up.
        """
        branches = self._branches_to_commit(branch_ids, at_token)
        assert num_tokens >= 1, f"a commit has at least one token, got {num_tokens}"
        assert at_token is not None or not free_first, "an appending commit has nothing to free"
        owner = branches[0].owner
        num_pages = pages_for(num_tokens, self.page_size)
        free_from = at_token if free_first else None
        self._require_room(owner, num_pages, branches, free_from)
        self._ensure_codebooks(branches[0])
        if free_from is not None:
            for branch in branches:
                self._release(owner, branch.table.truncate(free_from))
        page_ids = self._pool.allocate(num_pages, ref_count=len(branches))
        owner.num_used += num_pages
        commit_id = self._next_commit_id
        self._next_commit_id += 1
        span, refined = self._plan_span(branches[0], num_pages)
        commit = PendingCommit(
            commit_id, tuple(branch_ids), page_ids, num_tokens, at_token, span, refined
        )
        self._commits[commit_id] = commit
        for branch in branches:
            branch.commit_id = commit_id
        return commit

    def publish(self, commit: PendingCommit) -> None:
        """Let the branches read the committed tokens: all of them, or none if this raises."""
        branches = self._branches_of(commit)
        tables = [
            branch.table.with_commit(commit.page_ids, commit.num_tokens, commit.at_token)
            for branch in branches
        ]
        if self.codebooks is not None:
            codebook_set = branches[0].codebook_set
            assert codebook_set is not None
            assert commit.span is not None
            assert commit.refined is not None
            self.codebooks.publish(codebook_set, commit.span, commit.page_ids, commit.refined)
        for branch, (table, dropped) in zip(branches, tables, strict=True):
            branch.table = table
            branch.commit_id = None
            self._release(branch.owner, dropped)
        del self._commits[commit.commit_id]

    def rollback(self, commit: PendingCommit) -> None:
        """Give up a commit: its pages are freed and the branches read what they did before.

        The newest pages are read without their refinement, which may have been written over.
        """
        branches = self._branches_of(commit)
        if self.codebooks is not None:
            assert branches[0].codebook_set is not None
            self.codebooks.rollback(branches[0].codebook_set)
        for branch in branches:
            branch.commit_id = None
            self._release(branch.owner, commit.page_ids)
        del self._commits[commit.commit_id]

    def evict(self, branch_id: int, sink_tokens: int, window_start: int) -> int:
        """Drop the branch's tokens `sink_tokens <= t < window_start`; returns the pages freed."""
        branch = self._branch(branch_id)
        return self._release(branch.owner, branch.table.evict(sink_tokens, window_start))

    def read_table(self, branch_id: int, upto_token: int | None = None) -> PageEntries:
        """What a pass of the branch reads: all its tokens, or those `t < upto_token`.

        The arrays never change; the pages are the branch's own until it drops them.
        """
        return self._branch(branch_id).table.entries(upto_token)

    def next_token(self, branch_id: int) -> int:
        """The number that the branch's next token will get."""
        return self._branch(branch_id).table.next_token

    def check_integrity(self) -> None:
        """Raise AssertionError, saying what is broken, unless every page is accounted for."""
        self._pool.check_integrity()
        check_ledger(self._pool, self._owners, self._branches, self._commits, self._num_reserved)
        if self.codebooks is not None:
            check_codebooks(self.codebooks, self._pool, self._owners, self._commits)

    def _owner(self, owner_id: str) -> Owner:
        assert owner_id in self._owners, f"owner {owner_id!r} is not open"
        return self._owners[owner_id]

    def _branch(self, branch_id: int) -> Branch:
        assert branch_id in self._branches, f"branch {branch_id} is not open"
        return self._branches[branch_id]

    def _add_branch(self, owner: Owner, table: BlockTable) -> int:
        branch_id = self._next_branch_id
        self._next_branch_id += 1
        self._branches[branch_id] = Branch(owner, table)
        owner.branch_ids.add(branch_id)
        return branch_id

    def _branches_to_commit(self, branch_ids: Sequence[int], at_token: int | None) -> list[Branch]:
        branches = [self._branch(branch_id) for branch_id in branch_ids]
        assert branches, "a commit has at least one branch"
        assert len(set(branch_ids)) == len(branches), f"a branch is listed twice in {branch_ids}"
        for branch_id, branch in zip(branch_ids, branches, strict=True):
            assert branch.owner is branches[0].owner, f"branches {branch_ids} have several owners"
            assert branch.commit_id is None, f"branch {branch_id} has a commit under way"
            assert at_token is None or 0 <= at_token <= branch.table.next_token, (
                f"cannot replace from token {at_token}: branch {branch_id} has "
                f"{branch.table.next_token}"
            )
        return branches

    def _branches_of(self, commit: PendingCommit) -> list[Branch]:
        assert self._commits.get(commit.commit_id) is commit, (
            f"commit {commit.commit_id} is not under way"
        )
        return [self._branches[branch_id] for branch_id in commit.branch_ids]

    def _require_room(
        self, owner: Owner, num_pages: int, branches: list[Branch], free_from: int | None
    ) -> None:
        """Raise OutOfPagesError unless the owner may use `num_pages` more.

        With `free_from`, the tokens of the branches from there on will be dropped before.
        """
        num_left = owner.reserved_pages - owner.num_used
        if num_pages > num_left and free_from is not None:
            dropped = [branch.table.pages_to_truncate(free_from) for branch in branches]
            num_left += self._pool.count_freed(np.concatenate(dropped))
        if num_pages > num_left:
            raise OutOfPagesError(
                f"{owner.owner_id!r} needs {num_pages} pages, but {num_left} of the "
                f"{owner.reserved_pages} that it reserved are left: reserve its peak"
            )

    def _release(self, owner: Owner, page_ids: NDArray[np.int32]) -> int:
        num_freed = self._pool.release(page_ids) if page_ids.size else 0
        if self.codebooks is not None and num_freed:
            self.codebooks.free_pages(self._pool.last_freed(num_freed))
        owner.num_used -= num_freed
        return num_freed

    def _ensure_codebooks(self, branch: Branch) -> None:
        if self.codebooks is not None and branch.codebook_set is None:
            branch.codebook_set = self.codebooks.take(branch.owner.codebook_sets)

    def _plan_span(
        self, branch: Branch, num_pages: int
    ) -> tuple[SpanPlan | None, NDArray[np.int32] | None]:
        """Which codebooks, and which refinement pages, a commit of so many pages uses."""
        if self.codebooks is None:
            return None, None
        codebook_set = branch.codebook_set
        assert codebook_set is not None
        return self.codebooks.plan(codebook_set), self.codebooks.refined(codebook_set, num_pages)

    def _count_live_tokens(self, owner: Owner) -> int:
        tables = [self._branches[branch_id].table for branch_id in owner.branch_ids]
        if len(tables) < 2:
            return sum(table.num_tokens for table in tables)
        entries = [table.entries() for table in tables]
        page_id = np.concatenate([table.page_id for table in entries])
        begin = np.concatenate([table.begin for table in entries])
        end = np.concatenate([table.end for table in entries])
        return int(count_distinct_slots(page_id, begin, end, np.lexsort((begin, page_id))))
