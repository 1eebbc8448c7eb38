import pytest

from qvg_engine.scheduler.unit import (
    CommitIntent,
    Gang,
    PassKind,
    PassUnit,
    check_gang,
    count_tokens,
)


def denoise(branch: int, num_tokens: int = 12) -> PassUnit:
    return PassUnit(branch=branch, kind=PassKind.DENOISE, num_tokens=num_tokens)


def commit(branch: int, branches: tuple[int, ...]) -> PassUnit:
    intent = CommitIntent(branches=branches, num_tokens=12)
    return PassUnit(branch=branch, kind=PassKind.COMMIT, num_tokens=12, commit=intent)


@pytest.mark.parametrize(
    ("branches", "num_tokens", "at_token", "free_first"),
    [
        pytest.param((), 1, None, False, id="no branch"),
        pytest.param((0, 0), 1, None, False, id="branch twice"),
        pytest.param((-1,), 1, None, False, id="negative branch"),
        pytest.param((0,), 0, None, False, id="no token"),
        pytest.param((0,), 1, -1, False, id="negative place"),
        pytest.param((0,), 1, None, True, id="append that frees"),
    ],
)
def test_intent_rejects(
    branches: tuple[int, ...], num_tokens: int, at_token: int | None, free_first: bool
) -> None:
    with pytest.raises(AssertionError):
        CommitIntent(
            branches=branches, num_tokens=num_tokens, at_token=at_token, free_first=free_first
        )


def test_kind_and_intent_agree() -> None:
    intent = CommitIntent(branches=(0,), num_tokens=1)
    with pytest.raises(AssertionError):
        PassUnit(branch=0, kind=PassKind.DENOISE, num_tokens=1, commit=intent)
    with pytest.raises(AssertionError):
        PassUnit(branch=0, kind=PassKind.COMMIT, num_tokens=1)


def test_a_pass_stores_only_its_own_tokens() -> None:
    intent = CommitIntent(branches=(0,), num_tokens=13)
    with pytest.raises(AssertionError, match="only its own tokens"):
        PassUnit(branch=0, kind=PassKind.COMMIT, num_tokens=12, commit=intent)


def test_count_tokens() -> None:
    assert count_tokens((denoise(0, 12), denoise(1, 5))) == 17


@pytest.mark.parametrize(
    "gang",
    [
        pytest.param((), id="empty"),
        pytest.param((denoise(2),), id="branch out of range"),
        pytest.param((commit(0, (0, 2)),), id="written branch out of range"),
        pytest.param((commit(0, (0, 1)), commit(1, (1,))), id="branch written twice"),
    ],
)
def test_check_gang_rejects(gang: Gang) -> None:
    with pytest.raises(AssertionError):
        check_gang(gang, num_branches=2)


def test_check_gang_accepts_what_branches_write_apart() -> None:
    check_gang((denoise(0), denoise(1)), num_branches=2)
    check_gang((commit(0, (0,)), commit(1, (1,))), num_branches=2)
    check_gang((commit(0, (0, 1)), denoise(1)), num_branches=2)
