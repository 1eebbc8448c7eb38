"""The block manager against a naive model that keeps a dict of tokens for every branch."""

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qvg_engine.block_manager.commit import PendingCommit
from qvg_engine.block_manager.manager import BlockManager
from qvg_engine.errors import OutOfPagesError

Slot = tuple[int, int]  # page id, slot
PICK = st.integers(min_value=0, max_value=2**16)


@dataclass
class ModelBranch:
    """The branch's tokens by number, in order, each with where it is stored."""

    owner_id: str
    next_token: int = 0
    tokens: dict[int, Slot] = field(default_factory=dict)

    def drop(self, low: int, high: int) -> None:
        """Drop the tokens `low <= t < high`."""
        self.tokens = {t: slot for t, slot in self.tokens.items() if not low <= t < high}


class ManagerMachine(RuleBasedStateMachine):
    """Runs manager and model side by side; `pick` arguments choose among what is open."""

    @initialize(
        num_pages=st.integers(8, 40), page_size=st.sampled_from((1, 3, 8)), filled=st.booleans()
    )
    def start(self, num_pages: int, page_size: int, filled: bool) -> None:
        self.page_size = page_size
        self.manager = BlockManager(num_pages, page_size)
        self.owners: dict[str, int] = {}
        self.branches: dict[int, ModelBranch] = {}
        self.commits: list[PendingCommit] = []
        self.num_opened = 0
        if filled:
            self.open_owner(num_pages)
            self.open_branch(0)
            for _ in range(3):
                self.begin_commit(0, 1, 2 * page_size, None, False)
                self.publish(0)

    def pages_of(self, owner_id: str | None = None) -> set[int]:
        """Pages with a visible token, or in a commit under way."""
        pages = set()
        for branch in self.branches.values():
            if owner_id in (None, branch.owner_id):
                pages |= {page for page, _ in branch.tokens.values()}
        for commit in self.commits:
            if owner_id in (None, self.branches[commit.branch_ids[0]].owner_id):
                pages |= set(commit.page_ids.tolist())
        return pages

    def idle_branches(self, owner_id: str) -> list[int]:
        busy = {branch_id for commit in self.commits for branch_id in commit.branch_ids}
        return [
            branch_id
            for branch_id, branch in self.branches.items()
            if branch.owner_id == owner_id and branch_id not in busy
        ]

    def pick_branch(self, pick: int) -> int:
        return list(self.branches)[pick % len(self.branches)]

    def pick_owner(self, pick: int) -> str:
        return list(self.owners)[pick % len(self.owners)]

    @rule(reserved_pages=st.integers(0, 40))
    def open_owner(self, reserved_pages: int) -> None:
        owner_id = f"owner {self.num_opened}"
        fits = sum(self.owners.values()) + reserved_pages <= self.manager.num_pages
        assert self.manager.can_reserve(reserved_pages) == fits
        try:
            self.manager.open_owner(owner_id, reserved_pages)
        except OutOfPagesError:
            assert not fits
        else:
            assert fits
            self.owners[owner_id] = reserved_pages
            self.num_opened += 1

    @precondition(lambda self: self.owners)
    @rule(pick=PICK)
    def close_owner(self, pick: int) -> None:
        owner_id = self.pick_owner(pick)
        num_used = len(self.pages_of(owner_id))
        assert self.manager.close_owner(owner_id) == num_used
        del self.owners[owner_id]
        closed = {b for b, branch in self.branches.items() if branch.owner_id == owner_id}
        self.commits = [c for c in self.commits if c.branch_ids[0] not in closed]
        self.branches = {b: branch for b, branch in self.branches.items() if b not in closed}

    @precondition(lambda self: self.owners)
    @rule(pick=PICK)
    def open_branch(self, pick: int) -> None:
        owner_id = self.pick_owner(pick)
        branch_id = self.manager.open_branch(owner_id)
        assert branch_id not in self.branches
        self.branches[branch_id] = ModelBranch(owner_id)

    @precondition(lambda self: self.branches)
    @rule(pick=PICK)
    def fork_branch(self, pick: int) -> None:
        parent_id = self.pick_branch(pick)
        branch_id = self.manager.fork_branch(parent_id)
        assert branch_id not in self.branches
        parent = self.branches[parent_id]
        self.branches[branch_id] = ModelBranch(
            parent.owner_id, parent.next_token, dict(parent.tokens)
        )

    @precondition(lambda self: self.branches)
    @rule(pick=PICK)
    def close_branch(self, pick: int) -> None:
        branch_id = self.pick_branch(pick)
        if branch_id in self.idle_branches(self.branches[branch_id].owner_id):
            before = len(self.pages_of())
            num_freed = self.manager.close_branch(branch_id)
            del self.branches[branch_id]
            assert num_freed == before - len(self.pages_of())

    @precondition(lambda self: self.branches)
    @rule(
        pick=PICK,
        num_branches=st.integers(1, 3),
        num_tokens=st.integers(1, 30),
        back=st.none() | st.integers(0, 40),
        free_first=st.booleans(),
    )
    def begin_commit(
        self, pick: int, num_branches: int, num_tokens: int, back: int | None, free_first: bool
    ) -> None:
        owner_id = self.branches[self.pick_branch(pick)].owner_id
        branch_ids = self.idle_branches(owner_id)[:num_branches]
        if not branch_ids:
            return
        at_token = None
        if back is not None:
            at_token = max(0, min(self.branches[b].next_token for b in branch_ids) - back)
        free_first = free_first and at_token is not None
        saved = {b: (br.next_token, dict(br.tokens)) for b, br in self.branches.items()}
        if free_first and at_token is not None:
            self.truncate(branch_ids, at_token)
        num_pages = -(-num_tokens // self.page_size)
        fits = len(self.pages_of(owner_id)) + num_pages <= self.owners[owner_id]
        try:
            commit = self.manager.begin_commit(
                branch_ids, num_tokens, at_token, free_first=free_first
            )
        except OutOfPagesError:
            assert not fits
            for branch_id, (next_token, tokens) in saved.items():
                self.branches[branch_id].next_token = next_token
                self.branches[branch_id].tokens = tokens
            return
        assert fits
        assert not self.pages_of() & set(commit.page_ids.tolist()), "a page was given out twice"
        assert len(set(commit.page_ids.tolist())) == num_pages
        self.commits.append(commit)

    def truncate(self, branch_ids: list[int] | tuple[int, ...], at_token: int) -> None:
        for branch_id in branch_ids:
            branch = self.branches[branch_id]
            branch.drop(at_token, branch.next_token)
            branch.next_token = at_token

    @precondition(lambda self: self.branches)
    @rule(pick=PICK, num_branches=st.integers(1, 3), num_tokens=st.integers(1, 30))
    def commit_at_once(self, pick: int, num_branches: int, num_tokens: int) -> None:
        num_commits = len(self.commits)
        self.begin_commit(pick, num_branches, num_tokens, None, False)
        if len(self.commits) > num_commits:
            self.publish(num_commits)

    @precondition(lambda self: self.commits)
    @rule(pick=PICK)
    def publish(self, pick: int) -> None:
        commit = self.commits.pop(pick % len(self.commits))
        self.manager.publish(commit)
        if commit.at_token is not None:
            self.truncate(commit.branch_ids, commit.at_token)
        for branch_id in commit.branch_ids:
            branch = self.branches[branch_id]
            for index in range(commit.num_tokens):
                page_id = int(commit.page_ids[index // self.page_size])
                branch.tokens[branch.next_token + index] = page_id, index % self.page_size
            branch.next_token += commit.num_tokens

    @precondition(lambda self: self.commits)
    @rule(pick=PICK)
    def rollback(self, pick: int) -> None:
        self.manager.rollback(self.commits.pop(pick % len(self.commits)))

    @precondition(lambda self: self.branches)
    @rule(pick=PICK, sink_tokens=st.integers(0, 20), window_tokens=st.integers(-5, 40))
    def evict(self, pick: int, sink_tokens: int, window_tokens: int) -> None:
        branch_id = self.pick_branch(pick)
        window_start = self.branches[branch_id].next_token - window_tokens
        before = len(self.pages_of())
        num_freed = self.manager.evict(branch_id, sink_tokens, window_start)
        self.branches[branch_id].drop(sink_tokens, window_start)
        assert num_freed == before - len(self.pages_of())

    @precondition(lambda self: self.branches)
    @rule(pick=PICK, back=st.integers(-3, 40))
    def read_a_part(self, pick: int, back: int) -> None:
        branch_id = self.pick_branch(pick)
        upto_token = max(0, self.branches[branch_id].next_token - back)
        tokens = self.branches[branch_id].tokens
        expected = {t: slot for t, slot in tokens.items() if t < upto_token}
        assert self.read(branch_id, upto_token) == list(expected.items())

    def read(self, branch_id: int, upto_token: int | None = None) -> list[tuple[int, Slot]]:
        entries = self.manager.read_table(branch_id, upto_token)
        tokens = [
            (first_token + slot, (page_id, slot))
            for page_id, first_token, begin, end in entries.packed.tolist()
            for slot in range(begin, end)
        ]
        assert entries.num_tokens == len(tokens)
        return tokens

    @invariant()
    def branches_read_their_own_tokens(self) -> None:
        for branch_id, branch in self.branches.items():
            assert self.read(branch_id) == list(branch.tokens.items())
            assert self.manager.next_token(branch_id) == branch.next_token

    @invariant()
    def pages_are_accounted_for(self) -> None:
        manager = self.manager
        assert manager.num_used == len(self.pages_of())
        assert manager.num_free + manager.num_used == manager.num_pages
        assert manager.num_unreserved == manager.num_pages - sum(self.owners.values())
        for owner_id in self.owners:
            assert manager.num_used_by(owner_id) == len(self.pages_of(owner_id))
        slots = {slot for branch in self.branches.values() for slot in branch.tokens.values()}
        assert manager.num_live_tokens() == len(slots)
        manager.check_integrity()

    def teardown(self) -> None:
        if hasattr(self, "manager"):
            for owner_id in self.owners:
                self.manager.close_owner(owner_id)
            self.manager.check_integrity()
            assert self.manager.num_free == self.manager.num_unreserved == self.manager.num_pages


TestManagerAgainstModel = ManagerMachine.TestCase
TestManagerAgainstModel.settings = settings(
    max_examples=300,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
