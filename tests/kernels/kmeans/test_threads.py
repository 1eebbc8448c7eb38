"""Heads on several threads, and that nothing but the time shows it."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import astuple

import pytest
import torch
from torch import Tensor

from qvg_engine.kernels import threads
from qvg_engine.kernels.kmeans import KMeansSettings, assign, fit, initial_centroids
from qvg_engine.kernels.threads import for_heads

MUCH = 1 << 40


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch may use three, and no work is too little."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(threads, "_LEAST_WORK", 1)
    yield
    torch.set_num_threads(before)


def calls_of(num_heads: int, work: int) -> list[tuple[int, int]]:
    calls: list[tuple[int, int]] = []
    for_heads(lambda first, last: calls.append((first, last)), num_heads, work)
    return sorted(calls)


def run(points: Tensor) -> list[Tensor]:
    initial = initial_centroids(points, 12, seed=0)
    clusters = fit(points, initial, KMeansSettings(iterations=5))
    return [initial, *astuple(clusters), *assign(points, clusters.centroids)]


@pytest.mark.parametrize("num_heads", [1, 2, 7])
@pytest.mark.usefixtures("three_threads")
def test_results_are_the_same_bits(make_points: Callable[..., Tensor], num_heads: int) -> None:
    points = make_points("normal", num_heads, 300, 24)
    results = run(points)
    torch.set_num_threads(1)
    for one, other in zip(run(points), results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("three_threads")
def test_every_head_is_worked_on_once() -> None:
    assert calls_of(7, MUCH) == [(head, head + 1) for head in range(7)]
    assert calls_of(1, MUCH) == [(0, 1)]


@pytest.mark.usefixtures("three_threads")
def test_as_many_heads_at_a_time_as_torch_has_threads() -> None:
    # Raises if three tasks never wait at once.
    barrier = threading.Barrier(3, timeout=10)

    def wait(first: int, last: int) -> None:
        barrier.wait()

    for_heads(wait, 3, MUCH)


def test_little_work_stays_in_the_calling_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert calls_of(7, 2 * threads._LEAST_WORK - 1) == [(0, 7)]
    assert len(calls_of(7, 2 * threads._LEAST_WORK)) == 7


@pytest.mark.usefixtures("three_threads")
def test_errors_reach_the_caller() -> None:
    def fail(first: int, last: int) -> None:
        raise OSError(f"head {first}")

    with pytest.raises(OSError, match="head 0"):
        for_heads(fail, 4, MUCH)
