"""Heads are shared out over threads: each of them once, and no failure is lost."""

import threading
from collections.abc import Iterator

import pytest
import torch

from qvg_engine.kernels import threads

MUCH = 1 << 40


@pytest.fixture(params=["torch", "pool"], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "pool":
        monkeypatch.setattr(threads, "_torch_threads", lambda: None)
    elif threads._torch_threads() is None:
        pytest.skip("this torch runs its loops without an OpenMP that can be asked")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("is_even", [False, True])
@pytest.mark.parametrize("num_heads", [1, 2, 3, 10])
def test_every_head_is_worked_on_once(num_heads: int, is_even: bool) -> None:
    ranges: list[tuple[int, int]] = []
    threads.for_heads(
        lambda first, last: ranges.append((first, last)), num_heads, MUCH, is_even=is_even
    )
    heads = [head for first, last in sorted(ranges) for head in range(first, last)]
    assert heads == list(range(num_heads))
    assert len(ranges) == (min(3, num_heads) if is_even or num_heads == 1 else num_heads)


def test_heads_are_worked_on_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=60)

    def meet(first: int, last: int) -> None:
        together.wait()

    threads.for_heads(meet, 3, MUCH)
    assert not together.broken


def test_little_work_stays_in_the_calling_thread() -> None:
    seen = []
    threads.for_heads(lambda *heads: seen.append((*heads, threading.get_ident())), 10, 1000)
    assert seen == [(0, 10, threading.get_ident())]


def test_how_much_work_is_worth_a_second_thread() -> None:
    ranges: list[tuple[int, int]] = []
    threads.for_heads(lambda *heads: ranges.append(heads), 7, 2 * threads._LEAST_WORK - 1)
    assert ranges == [(0, 7)]
    ranges.clear()
    threads.for_heads(lambda *heads: ranges.append(heads), 7, 2 * threads._LEAST_WORK)
    assert len(ranges) == 7


def test_a_failure_is_raised_where_it_is_waited_for() -> None:
    def fail(first: int, last: int) -> None:
        if first == 2:
            raise KeyError("head 2")

    with pytest.raises(KeyError, match="head 2"):
        threads.for_heads(fail, 5, MUCH)
    seen: list[int] = []
    threads.for_heads(lambda first, last: seen.append(first), 3, MUCH)
    assert sorted(seen) == [0, 1, 2]


def test_other_threads_may_share_out_heads_too() -> None:
    seen: list[tuple[str, int]] = []

    def share(name: str) -> None:
        for _ in range(20):
            threads.for_heads(lambda first, last: seen.append((name, first)), 3, MUCH)

    callers = [threading.Thread(target=share, args=(name,)) for name in "ab"]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    expected = [(name, first) for name in "ab" for first in range(3) for _ in range(20)]
    assert sorted(seen) == expected
