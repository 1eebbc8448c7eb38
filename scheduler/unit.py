"""What a stream asks the scheduler for: passes, and the gangs that they run in.

A pass is one forward of the network for one branch of a stream. A model family describes its passes
with these values; nothing here knows of a model, a tensor or a page.
"""

import enum

import msgspec


class PassKind(enum.Enum):
    """Whether a pass only reads the cache, or also writes it."""

    DENOISE = "denoise"
    COMMIT = "commit"


class CommitIntent(msgspec.Struct, frozen=True, kw_only=True):
    """What a commit pass writes, and where.

    `branches` are indices within the stream; several branches share the pages that are written.
    `num_tokens` is the number of tokens to store. With `at_token` None they are appended; else
    they replace each branch's tokens from number `at_token` on (tokens of a branch are numbered
    in order of commit). `free_first` drops the replaced tokens when the pass is scheduled, not
    when it is published, so that old and new never need pages at the same time; a step that then
    fails leaves the branches truncated at `at_token`.
    """

    branches: tuple[int, ...]
    num_tokens: int
    at_token: int | None = None
    free_first: bool = False

    def __post_init__(self) -> None:
        assert self.branches, "a commit must write at least one branch"
        assert len(set(self.branches)) == len(self.branches), f"branches repeat: {self.branches}"
        assert min(self.branches) >= 0, f"branches must be >= 0: {self.branches}"
        assert self.num_tokens > 0, f"num_tokens must be > 0: {self.num_tokens}"
        assert self.at_token is None or self.at_token >= 0, f"at_token: {self.at_token}"
        assert self.at_token is not None or not self.free_first, "an append has nothing to free"


class PassUnit(msgspec.Struct, frozen=True, kw_only=True):
    """One pass: `num_tokens` tokens of one branch (an index within the stream).

    A commit pass has a `commit`, which stores at most the tokens of the pass; a denoising pass has
    none.
    """

    branch: int
    kind: PassKind
    num_tokens: int
    commit: CommitIntent | None = None

    def __post_init__(self) -> None:
        assert self.branch >= 0, f"branch must be >= 0: {self.branch}"
        assert self.num_tokens > 0, f"num_tokens must be > 0: {self.num_tokens}"
        is_commit = self.kind is PassKind.COMMIT
        assert is_commit == (self.commit is not None), f"{self.kind} with commit={self.commit}"
        if self.commit is not None:
            assert self.commit.num_tokens <= self.num_tokens, "a pass stores only its own tokens"


Gang = tuple[PassUnit, ...]
"""Passes of one stream that run in the same step or not at all."""


def count_tokens(gang: Gang) -> int:
    """The tokens that `gang` adds to a step."""
    return sum(unit.num_tokens for unit in gang)


def check_gang(gang: Gang, *, num_branches: int) -> None:
    """Assert that `gang` is one that a stream of `num_branches` branches may offer.

    Its branches exist, and no branch is written by two of its passes: each would compute its keys
    and values without having seen the other's.
    """
    assert gang, "a gang has at least one pass; offer None for a stream that is not ready"
    written: set[int] = set()
    for unit in gang:
        assert unit.branch < num_branches, f"branch {unit.branch} of {num_branches}"
        if unit.commit is None:
            continue
        assert max(unit.commit.branches) < num_branches, f"{unit.commit} of {num_branches} branches"
        assert written.isdisjoint(unit.commit.branches), f"a branch is written twice: {gang}"
        written.update(unit.commit.branches)
