"""Nothing but the time shows on how many threads heads are."""

from collections.abc import Callable, Iterator
from dataclasses import astuple

import pytest
import torch
from torch import Tensor

from qvg_engine.kernels import threads
from qvg_engine.kernels.kmeans import KMeansSettings, assign, fit, initial_centroids


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch may use three, and no work is too little."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(threads, "_LEAST_WORK", 1)
    yield
    torch.set_num_threads(before)


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
