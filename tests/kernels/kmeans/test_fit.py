"""Lloyd's algorithm: both kernels against each other, and what holds of every fit."""

from collections.abc import Callable
from dataclasses import astuple
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from qvg_engine.errors import NonFiniteError
from qvg_engine.kernels.kmeans import (
    Clusters,
    KMeansSettings,
    assign,
    cpu,
    fit,
    initial_centroids,
    reference,
)

MakePoints = Callable[..., Tensor]

# Heads, tokens, head_dim, centroids.
SHAPES = {
    "one point": (2, 1, 24, 3),
    "more centroids than points": (1, 5, 40, 17),
    "odd": (2, 301, 40, 13),
    "head_dim 128": (1, 150, 128, 32),
}
CASES = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
KERNELS = pytest.mark.parametrize("kernel", [cpu.fit, reference.fit], ids=["cpu", "ref"])
UNTIL_NONE_CHANGES = KMeansSettings(iterations=200, tolerance=0)

FitKernel = Callable[[Tensor, Tensor, KMeansSettings], Clusters]


def on_a_line(*values: float) -> Tensor:
    """One head of points with one channel."""
    return torch.tensor(values, dtype=torch.float32)[None, :, None]


def assert_same(clusters: Clusters, expected: Clusters) -> None:
    for one, other in zip(astuple(clusters), astuple(expected), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@CASES
def test_kernels_agree(
    make_points: MakePoints, kind: str, shape: tuple[int, int, int, int]
) -> None:
    points = make_points(kind, *shape[:3])
    initial = initial_centroids(points, shape[3], seed=0)
    # Two equal ones, so that one is empty.
    initial[:, -1] = initial[:, 0]
    settings = KMeansSettings(iterations=5)
    clusters = cpu.fit(points, initial, settings)
    expected = reference.fit(points, initial, settings)
    assert torch.equal(clusters.ids, expected.ids)
    assert torch.equal(clusters.counts, expected.counts)
    assert torch.equal(clusters.iterations, expected.iterations)
    # A mean that lies between two fp32 numbers may be rounded to either.
    torch.testing.assert_close(clusters.centroids, expected.centroids, rtol=2**-22, atol=0)
    torch.testing.assert_close(clusters.inertia, expected.inertia, rtol=1e-6, atol=0)


@KERNELS
@CASES
def test_ids_are_those_of_the_returned_centroids(
    make_points: MakePoints, kind: str, shape: tuple[int, int, int, int], kernel: FitKernel
) -> None:
    points = make_points(kind, *shape[:3])
    initial = initial_centroids(points, shape[3], seed=0)
    clusters = kernel(points, initial, KMeansSettings(iterations=2))
    ids, distances = assign(points, clusters.centroids)
    assert torch.equal(clusters.ids, ids)
    assert clusters.centroids.isfinite().all()
    assert clusters.centroids.dtype == torch.float32
    for head, counts in zip(ids, clusters.counts, strict=True):
        assert torch.equal(head.long().bincount(minlength=shape[3]), counts)
    if kind not in ("1e-30", "1e37"):
        torch.testing.assert_close(clusters.inertia, distances.double().sum(dim=1))
    else:
        assert clusters.inertia.isfinite().all()


@KERNELS
def test_inertia_never_rises(make_points: MakePoints, kind: str, kernel: FitKernel) -> None:
    points = make_points(kind, 2, 200, 24)
    initial = points[:, torch.randint(200, (20,))].contiguous()
    inertia = [
        kernel(points, initial, KMeansSettings(iterations=count, tolerance=0)).inertia
        for count in range(1, 7)
    ]
    assert inertia[0].isfinite().all()
    for before, after in pairwise(inertia):
        # Means are rounded to fp32.
        assert (after <= before * (1 + 1e-6)).all()
    if kind in ("normal", "clusters", "offset", "1e-6", "1e6"):
        assert (inertia[-1] < inertia[0]).all()


@KERNELS
def test_a_finished_fit_has_its_means_as_centroids(
    make_points: MakePoints, kernel: FitKernel
) -> None:
    points = make_points("offset", 2, 200, 24)
    clusters = kernel(points, initial_centroids(points, 10, seed=0), UNTIL_NONE_CHANGES)
    assert (clusters.iterations < UNTIL_NONE_CHANGES.iterations).all()
    for rows, ids, centroids in zip(points, clusters.ids, clusters.centroids, strict=True):
        means = torch.stack([rows[ids == k].double().mean(dim=0) for k in range(10)])
        assert torch.equal(centroids, means.float())


@KERNELS
def test_separate_clusters_are_found(kernel: FitKernel) -> None:
    centres = 10 * torch.randn(2, 20, 40)
    points = centres.repeat_interleave(30, dim=1) + 0.1 * torch.randn(2, 600, 40)
    initial = initial_centroids(points, 20, seed=0)
    clusters = kernel(points, initial, KMeansSettings(iterations=20))
    assert (clusters.counts == 30).all()
    torch.testing.assert_close(
        clusters.inertia / points[0].numel(), torch.full((2,), 0.01).double(), rtol=0.1, atol=0
    )


@KERNELS
def test_empty_centroids_take_the_farthest_points_in_order(kernel: FitKernel) -> None:
    points = on_a_line(0, 1, 2, 9, -9, 4)
    initial = on_a_line(0, 70, 0, 80)
    moved = kernel(points, initial, KMeansSettings(iterations=1)).centroids
    mean = 7 / 6
    torch.testing.assert_close(moved, on_a_line(mean, 9, -9, 4), rtol=1e-6, atol=0)


@KERNELS
def test_empty_centroids_stay_when_no_point_is_far(kernel: FitKernel) -> None:
    points = on_a_line(5, 5, 3)
    clusters = kernel(points, on_a_line(5, 3, 5, -8), KMeansSettings(iterations=3))
    assert torch.equal(clusters.centroids, on_a_line(5, 3, 5, -8))
    assert clusters.counts.tolist() == [[2, 1, 0, 0]]
    assert clusters.iterations.tolist() == [1]


@KERNELS
def test_every_distinct_point_gets_a_centroid_if_there_are_enough(
    make_points: MakePoints, kernel: FitKernel
) -> None:
    points = make_points("duplicates", 2, 100, 24)
    initial = points[:, :1].expand(-1, 9, -1).contiguous()
    clusters = kernel(points, initial, UNTIL_NONE_CHANGES)
    # Their means may be rounded.
    assert (clusters.inertia < 1e-9).all()
    assert ((clusters.counts > 0).sum(dim=1) == 6).all()


def test_a_warm_start_goes_on_where_the_first_fit_ended(make_points: MakePoints) -> None:
    points = make_points("normal", 2, 300, 24)
    initial = initial_centroids(points, 12, seed=0)
    whole = fit(points, initial, KMeansSettings(iterations=7, tolerance=0))
    part = fit(points, initial, KMeansSettings(iterations=3, tolerance=0))
    rest = fit(points, part.centroids, KMeansSettings(iterations=4, tolerance=0))
    assert torch.equal(whole.centroids, rest.centroids)
    assert torch.equal(whole.ids, rest.ids)
    done = fit(points, initial, UNTIL_NONE_CHANGES)
    again = fit(points, done.centroids, UNTIL_NONE_CHANGES)
    assert again.iterations.tolist() == [1, 1]
    assert torch.equal(done.centroids, again.centroids)


@KERNELS
def test_the_tolerance_ends_a_fit(make_points: MakePoints, kernel: FitKernel) -> None:
    points = make_points("normal", 2, 300, 24)
    initial = initial_centroids(points, 12, seed=0)
    lengths = [
        kernel(points, initial, KMeansSettings(iterations=100, tolerance=tolerance)).iterations
        for tolerance in (1, 0.05, 0)
    ]
    assert lengths[0].tolist() == [1, 1]
    assert (lengths[0] < lengths[1]).all()
    assert (lengths[1] < lengths[2]).all()
    assert (lengths[2] < 100).all()


def test_heads_do_not_depend_on_each_other(make_points: MakePoints) -> None:
    points = torch.cat([make_points(kind, 1, 200, 24) for kind in ("normal", "outliers", "1e6")])
    initial = torch.cat([initial_centroids(head[None], 12, seed=0) for head in points])
    settings = KMeansSettings(iterations=30)
    together = fit(points, initial, settings)
    assert len(set(together.iterations.tolist())) > 1
    for head in range(3):
        one = slice(head, head + 1)
        alone = fit(points[one], initial[one], settings)
        assert_same(alone, Clusters(*(part[one] for part in astuple(together))))


def test_a_fit_is_deterministic_and_leaves_its_arguments(make_points: MakePoints) -> None:
    points = make_points("normal", 2, 300, 24)
    initial = initial_centroids(points, 12, seed=0)
    kept = points.clone(), initial.clone()
    assert_same(*(fit(points, initial, KMeansSettings(iterations=5)) for _ in range(2)))
    assert torch.equal(points, kept[0])
    assert torch.equal(initial, kept[1])


def test_narrow_and_strided_points_count_as_their_fp32_values() -> None:
    points = torch.randn(100, 3, 24).bfloat16().transpose(0, 1)
    initial = points[:, :8]
    settings = KMeansSettings(iterations=3)
    expected = fit(points.float().contiguous(), initial.float().contiguous(), settings)
    assert_same(fit(points, initial, settings), expected)


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_what_is_not_finite_is_refused_by_name(value: float) -> None:
    points, initial = torch.randn(2, 30, 24), torch.randn(2, 4, 24)
    spoiled = points.clone()
    spoiled[1, 29, 23] = value
    settings = KMeansSettings(iterations=1)
    with pytest.raises(NonFiniteError, match=r"^keys of layer 3: 1 of 1,440 values are"):
        fit(spoiled, initial, settings, name="keys of layer 3")
    with pytest.raises(NonFiniteError, match=r"^centroids for keys of layer 3: "):
        fit(points, spoiled, settings, name="keys of layer 3")
