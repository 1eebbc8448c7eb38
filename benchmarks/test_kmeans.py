"""What an iteration of k-means costs beside scikit-learn's, and the seeding beside that.

    OMP_NUM_THREADS=1 pytest benchmarks/test_kmeans.py

The keys of one layer of Wan 1.3B: a chunk of 4,680 tokens, 256 centroids a head. Both start from
the same centroids, with one thread, and end with the same inertia. Each round times both, by the
processor's clock, so that other load on the machine counts little. An iteration is the difference
of fits that differ in length only.

The small problems are those of a commit of the embedded model: one layer's keys of 192 tokens.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from qvg_engine.kernels.kmeans import KMeansSettings, assign, fit, initial_centroids

NUM_HEADS, NUM_TOKENS, HEAD_DIM, NUM_CENTROIDS = 12, 4680, 128, 256
SHORT, LONG = 1, 4
NUM_ROUNDS = 3


@pytest.fixture(scope="module")
def points() -> Tensor:
    """Tokens of 400 kinds, with noise and a common offset."""
    torch.manual_seed(0)
    kinds = torch.randn(NUM_HEADS, 400, HEAD_DIM) + 2 * torch.randn(NUM_HEADS, 1, HEAD_DIM)
    chosen = kinds[:, torch.randint(400, (NUM_TOKENS,))]
    return chosen + 0.7 * torch.randn(NUM_HEADS, NUM_TOKENS, HEAD_DIM)


@pytest.fixture(scope="module")
def initial(points: Tensor) -> Tensor:
    torch.manual_seed(1)
    return points[:, torch.randperm(NUM_TOKENS)[:NUM_CENTROIDS]].contiguous()


def fit_with_sklearn(points: Tensor, initial: Tensor, iterations: int) -> float:
    """The sum of all heads' inertia."""
    cluster: Any = pytest.importorskip("sklearn.cluster")
    total = 0.0
    for head, centroids in zip(points.numpy(), initial.numpy(), strict=True):
        kmeans = cluster.KMeans(
            NUM_CENTROIDS, init=centroids, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd"
        )
        total += kmeans.fit(head).inertia_
        assert kmeans.n_iter_ == iterations
    return total


def fit_here(points: Tensor, initial: Tensor, iterations: int) -> float:
    settings = KMeansSettings(iterations=iterations, tolerance=0)
    return float(fit(points, initial, settings).inertia.sum())


class FitTimes:
    """Seconds of fits of two lengths, a few of each."""

    def __init__(self, run: Callable[[int], float]) -> None:
        self._run = run
        self._seconds: dict[int, list[float]] = {SHORT: [], LONG: []}
        self.inertia = 0.0

    def measure(self) -> None:
        """Time a fit of each length; `inertia` is that of the long one."""
        for iterations, seconds in self._seconds.items():
            start = time.process_time()
            self.inertia = self._run(iterations)
            seconds.append(time.process_time() - start)

    @property
    def iteration_s(self) -> float:
        # The least of each length first: the least difference would be that with the most noise.
        difference = min(self._seconds[LONG]) - min(self._seconds[SHORT])
        assert difference > 0, f"noise is larger than what is measured: {self._seconds}"
        return difference / (LONG - SHORT)


@pytest.mark.benchmark(group="k-means, fit", timer=time.process_time)
def test_iteration(benchmark: BenchmarkFixture, points: Tensor, initial: Tensor) -> None:
    limits: Any = pytest.importorskip("threadpoolctl").threadpool_limits
    pytest.importorskip("sklearn.cluster")
    torch.set_num_threads(1)
    ours = FitTimes(lambda iterations: fit_here(points, initial, iterations))
    theirs = FitTimes(lambda iterations: fit_with_sklearn(points, initial, iterations))

    def measure_both() -> None:
        ours.measure()
        theirs.measure()

    # Compiles, or loads from the cache.
    fit_here(points[:1, :NUM_CENTROIDS], initial[:1], SHORT)
    with limits(1):
        pedantic: Callable[..., float] = benchmark.pedantic
        pedantic(lambda: fit_here(points, initial, LONG), setup=measure_both, rounds=NUM_ROUNDS)
    assert ours.inertia == pytest.approx(theirs.inertia, rel=1e-4)
    benchmark.extra_info["iteration_ms"] = ours.iteration_s * 1e3
    benchmark.extra_info["sklearn_iteration_ms"] = theirs.iteration_s * 1e3
    benchmark.extra_info["ratio"] = ours.iteration_s / theirs.iteration_s


@pytest.mark.benchmark(group="k-means, seeding", timer=time.process_time)
def test_seeding(benchmark: BenchmarkFixture, points: Tensor) -> None:
    torch.set_num_threads(1)
    pedantic: Callable[..., Tensor] = benchmark.pedantic
    pedantic(lambda: initial_centroids(points, NUM_CENTROIDS, seed=0), rounds=NUM_ROUNDS)


@pytest.fixture(scope="module")
def small_points() -> Tensor:
    """Two heads of 192 tokens of 60 kinds."""
    torch.manual_seed(0)
    kinds = torch.randn(2, 60, HEAD_DIM) + 2 * torch.randn(2, 1, HEAD_DIM)
    return kinds[:, torch.randint(60, (192,))] + 0.7 * torch.randn(2, 192, HEAD_DIM)


@pytest.mark.benchmark(group="k-means, 2 heads, 192 tokens", timer=time.process_time)
@pytest.mark.parametrize("num_centroids", [30, 48])
@pytest.mark.parametrize("what", ["assign", "fit", "seeding"])
def test_small_problem(
    benchmark: BenchmarkFixture, small_points: Tensor, what: str, num_centroids: int
) -> None:
    torch.set_num_threads(1)
    initial = initial_centroids(small_points, num_centroids, seed=0)
    settings = KMeansSettings(iterations=8)
    calls: dict[str, Callable[[], object]] = {
        "assign": lambda: assign(small_points, initial),
        "fit": lambda: fit(small_points, initial, settings),
        "seeding": lambda: initial_centroids(small_points, num_centroids, seed=0),
    }
    pedantic: Callable[..., object] = benchmark.pedantic
    pedantic(calls[what], warmup_rounds=1, rounds=50, iterations=20)
