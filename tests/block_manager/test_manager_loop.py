"""More than a million random operations, after which no page may be missing."""

import random

import pytest

from qvg_engine.block_manager.commit import PendingCommit
from qvg_engine.block_manager.manager import BlockManager
from qvg_engine.errors import OutOfPagesError

NUM_SEEDS = 128
OPERATIONS_PER_SEED = 8_192
OPERATIONS_PER_CHECK = 1_024
MAX_OWNERS = 5
MAX_BRANCHES = 4


class RandomEngine:
    """Calls a block manager in a random order, as a badly behaved engine would.

    It remembers what is open, and nothing of which pages ought to be where. Its operations
    return whether there was something to do.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.manager = BlockManager(
            num_pages=self.random.choice((24, 80, 300)), page_size=self.random.choice((1, 5, 64))
        )
        self.owner_ids: list[str] = []
        self.branches: dict[str, list[int]] = {}
        self.commits: dict[str, list[PendingCommit]] = {}
        self.num_opened = 0
        self.num_refused = 0
        self.num_freed_by_eviction = 0
        self.operations = random.Random(seed).choices(
            (self.append, self.replace, self.publish, self.rollback, self.evict, self.read),
            weights=(10, 5, 14, 2, 8, 4),
            k=200,
        )
        self.operations += [self.open_owner, self.open_owner, self.close_owner, self.open_branch]
        self.operations += [self.open_branch, self.fork, self.fork, self.close_branch] * 2

    def operate(self) -> None:
        while not self.random.choice(self.operations)():
            pass

    def count_pages(self) -> int:
        """Free pages, and used pages as the owners' accounts have them."""
        return self.manager.num_free + sum(map(self.manager.num_used_by, self.owner_ids))

    def open_owner(self) -> bool:
        if len(self.owner_ids) >= MAX_OWNERS:
            return False
        owner_id = str(self.num_opened)
        num_pages = self.random.randint(4, self.manager.num_pages // 2)
        if not self.manager.can_reserve(num_pages):
            with pytest.raises(OutOfPagesError):
                self.manager.open_owner(owner_id, num_pages)
            return True
        self.manager.open_owner(owner_id, num_pages)
        self.num_opened += 1
        self.owner_ids.append(owner_id)
        self.branches[owner_id] = [self.manager.open_branch(owner_id)]
        self.commits[owner_id] = []
        return True

    def close_owner(self) -> bool:
        if not self.owner_ids:
            return False
        self.close(self.random.choice(self.owner_ids))
        return True

    def close(self, owner_id: str) -> None:
        self.manager.close_owner(owner_id)
        self.owner_ids.remove(owner_id)
        del self.branches[owner_id], self.commits[owner_id]

    def open_branch(self) -> bool:
        owner_id = self.pick_owner()
        if owner_id is None or len(self.branches[owner_id]) >= MAX_BRANCHES:
            return False
        self.branches[owner_id].append(self.manager.open_branch(owner_id))
        return True

    def fork(self) -> bool:
        owner_id = self.pick_owner()
        if owner_id is None or not 0 < len(self.branches[owner_id]) < MAX_BRANCHES:
            return False
        branch_id = self.random.choice(self.branches[owner_id])
        self.branches[owner_id].append(self.manager.fork_branch(branch_id))
        return True

    def close_branch(self) -> bool:
        owner_id = self.pick_owner()
        idle = self.idle_branches(owner_id)
        if owner_id is None or not idle:
            return False
        branch_id = self.random.choice(idle)
        self.branches[owner_id].remove(branch_id)
        self.manager.close_branch(branch_id)
        return True

    def append(self) -> bool:
        return self.begin(replaces=False)

    def replace(self) -> bool:
        return self.begin(replaces=True)

    def begin(self, *, replaces: bool) -> bool:
        owner_id = self.pick_owner()
        idle = self.idle_branches(owner_id)
        if owner_id is None or not idle:
            return False
        branch_ids = idle[: self.random.randint(1, len(idle))]
        num_tokens = self.random.randint(1, 3 * self.manager.page_size)
        at_token = None
        if replaces:
            shortest = min(map(self.manager.next_token, branch_ids))
            at_token = self.random.randint(max(0, shortest - 2 * num_tokens), shortest)
        free_first = replaces and self.random.random() < 0.5
        try:
            commit = self.manager.begin_commit(
                branch_ids, num_tokens, at_token, free_first=free_first
            )
        except OutOfPagesError:
            self.num_refused += 1
        else:
            self.commits[owner_id].append(commit)
        return True

    def publish(self) -> bool:
        commit = self.take_commit()
        if commit is not None:
            self.manager.publish(commit)
        return commit is not None

    def rollback(self) -> bool:
        commit = self.take_commit()
        if commit is not None:
            self.manager.rollback(commit)
        return commit is not None

    def evict(self) -> bool:
        branch_id = self.pick_branch()
        if branch_id is None:
            return False
        sink = self.random.randint(0, 2 * self.manager.page_size)
        window = self.random.randint(0, 6 * self.manager.page_size)
        next_token = self.manager.next_token(branch_id)
        self.num_freed_by_eviction += self.manager.evict(branch_id, sink, next_token - window)
        return True

    def read(self) -> bool:
        branch_id = self.pick_branch()
        if branch_id is None:
            return False
        upto_token = self.random.randint(0, 1 + self.manager.next_token(branch_id))
        self.manager.read_table(branch_id, upto_token)
        return True

    def pick_owner(self) -> str | None:
        return self.random.choice(self.owner_ids) if self.owner_ids else None

    def pick_branch(self) -> int | None:
        branches = self.branches.get(self.pick_owner() or "")
        return self.random.choice(branches) if branches else None

    def idle_branches(self, owner_id: str | None) -> list[int]:
        if owner_id is None:
            return []
        busy = {branch for commit in self.commits[owner_id] for branch in commit.branch_ids}
        return [branch for branch in self.branches[owner_id] if branch not in busy]

    def take_commit(self) -> PendingCommit | None:
        commits = self.commits.get(self.pick_owner() or "")
        return commits.pop(self.random.randrange(len(commits))) if commits else None


def test_a_million_operations_leak_no_page() -> None:
    for seed in range(NUM_SEEDS):
        engine = RandomEngine(seed)
        manager = engine.manager
        for index in range(OPERATIONS_PER_SEED):
            engine.operate()
            assert engine.count_pages() == manager.num_pages
            if index % OPERATIONS_PER_CHECK == 0:
                manager.check_integrity()
        for owner_id in tuple(engine.owner_ids):
            engine.close(owner_id)
        manager.check_integrity()
        assert manager.num_free == manager.num_unreserved == manager.num_pages
        # A pool that never runs short, or is never evicted from, would show nothing.
        assert engine.num_refused > 0
        assert engine.num_freed_by_eviction > 0
