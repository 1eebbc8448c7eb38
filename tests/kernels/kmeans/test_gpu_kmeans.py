"""Triton's k-means against the reference, in the interpreter or on a GPU."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from qvg_engine.kernels.gpu import has_triton
from qvg_engine.kernels.kmeans import KMeansSettings, cpu_seeding, reference
from qvg_engine.kernels.kmeans.seeding import _uniforms

if not has_triton():
    pytest.skip("Triton is not installed", allow_module_level=True)

from qvg_engine.kernels.kmeans import gpu, gpu_seeding

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MakePoints = Callable[..., Tensor]

# The interpreter computes with NumPy, which warns of infinite distances and of NaN.
pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow encountered"),
    pytest.mark.filterwarnings("ignore:invalid value encountered"),
]


def distances_to(points: Tensor, centroids: Tensor, ids: Tensor) -> Tensor:
    """Squared, fp64 [heads, tokens]."""
    chosen = centroids.gather(1, ids.long()[..., None].expand(-1, -1, points.shape[2]))
    return (points.double() - chosen.double()).square().sum(dim=-1)


def check_nearest(points: Tensor, centroids: Tensor, ids: Tensor) -> None:
    """Every point has the nearest centroid, or one as near to within rounding; the lowest first."""
    expected = reference.assign(points, centroids).ids
    own, least = (distances_to(points, centroids, x) for x in (ids, expected))
    assert (own <= least * (1 + 1e-5)).all()
    exact = torch.equal(points, points.round()) and points.abs().max() < 100
    if exact:
        assert torch.equal(ids, expected)


@pytest.mark.parametrize(
    ("tokens", "centroids", "head_dim"), [(1, 1, 4), (70, 65, 24), (150, 7, 64), (65, 256, 128)]
)
def test_points_get_their_nearest_centroid(tokens: int, centroids: int, head_dim: int) -> None:
    torch.manual_seed(0)
    points, means = torch.randn(2, tokens, head_dim), torch.randn(2, centroids, head_dim)
    found = gpu.assign(points.to(DEVICE), means.to(DEVICE))
    check_nearest(points, means, found.ids.cpu())
    expected = distances_to(points, means, found.ids.cpu())
    torch.testing.assert_close(found.squared_distances.cpu().double(), expected, rtol=1e-5, atol=0)


def test_neither_offset_nor_scale_costs_precision(make_points: MakePoints, kind: str) -> None:
    torch.manual_seed(1)
    points = make_points(kind, 2, 130, 24)
    # Some twice: the lower of two equal centroids is taken.
    means = points[:, torch.randint(130, (70,))].clone()
    means[:, ::3] *= 1.01
    found = gpu.assign(points.to(DEVICE), means.to(DEVICE))
    check_nearest(points, means, found.ids.cpu())
    expected = reference.assign(points, means)
    torch.testing.assert_close(
        found.squared_distances.cpu(), expected.squared_distances, rtol=1e-5, atol=0
    )


def test_a_fit_is_that_of_the_reference(make_points: MakePoints, kind: str) -> None:
    torch.manual_seed(2)
    points = make_points(kind, 2, 150, 24)
    initial = points[:, :20].clone()
    # Never the nearest, or one of several: they move to the farthest points.
    initial[:, 3:7] = initial[:, :1]
    settings = KMeansSettings(iterations=3)
    found = gpu.fit(points.to(DEVICE), initial.to(DEVICE), settings)
    expected = reference.fit(points, initial, settings)
    for name, tolerance in (("centroids", 1e-5), ("inertia", 1e-5)):
        close = getattr(found, name).cpu(), getattr(expected, name)
        largest = close[1].abs().max().item()
        torch.testing.assert_close(*close, rtol=tolerance, atol=tolerance * largest)
    for name in ("ids", "counts", "iterations"):
        one, other = getattr(found, name).cpu(), getattr(expected, name)
        assert one.dtype == other.dtype
        assert torch.equal(one, other), name
    assert found.inertia.dtype == torch.float64
    check_nearest(points, found.centroids.cpu(), found.ids.cpu())


def test_more_centroids_than_points_and_few_distinct_ones() -> None:
    torch.manual_seed(3)
    points = torch.randn(2, 5, 8)[:, [0, 1, 0, 1, 2, 2]].contiguous()
    initial = torch.randn(2, 9, 8)
    settings = KMeansSettings(iterations=4)
    found = gpu.fit(points.to(DEVICE), initial.to(DEVICE), settings)
    expected = reference.fit(points, initial, settings)
    assert torch.equal(found.ids.cpu(), expected.ids)
    torch.testing.assert_close(found.centroids.cpu(), expected.centroids)


def test_a_head_that_is_done_stays_as_it_is() -> None:
    torch.manual_seed(4)
    # The first head is done at once, the second is not.
    points = torch.randn(2, 120, 16)
    points[0] = points[0, :4].repeat(30, 1)
    initial = points[:, :4].clone()
    few, many = (
        gpu.fit(points.to(DEVICE), initial.to(DEVICE), KMeansSettings(iterations=i, tolerance=0))
        for i in (1, 5)
    )
    assert few.iterations.tolist() == [1, 1]
    assert many.iterations[0] == 1
    assert many.iterations[1] > 1
    assert torch.equal(few.centroids[0], many.centroids[0])
    assert not torch.equal(few.centroids[1], many.centroids[1])


def test_runs_are_equal_bit_by_bit() -> None:
    torch.manual_seed(5)
    points = torch.randn(2, 120, 24).to(DEVICE)
    one, other = (gpu.fit(points, points[:, :9], KMeansSettings(iterations=2)) for _ in range(2))
    assert torch.equal(one.centroids, other.centroids)
    assert torch.equal(one.inertia, other.inertia)


def test_picks_are_those_of_the_cpu(make_points: MakePoints, kind: str) -> None:
    torch.manual_seed(6)
    points = make_points(kind, 2, 150, 20)
    uniforms = np.stack([_uniforms(3, head, 7) for head in range(2)])
    found = gpu_seeding.pick(points.to(DEVICE), uniforms)
    assert torch.equal(found.cpu(), cpu_seeding.pick(points, uniforms))


@pytest.mark.parametrize(("points", "head_dim"), [(1, 64), (7, 3), (300, 128)])
def test_picks_of_other_sizes(points: int, head_dim: int) -> None:
    torch.manual_seed(7)
    rows = 1e-42 * torch.randn(1, points, head_dim)
    uniforms = _uniforms(8, 0, 6)[None]
    found = gpu_seeding.pick(rows.to(DEVICE), uniforms)
    assert torch.equal(found.cpu(), cpu_seeding.pick(rows, uniforms))


def test_nan_leads_to_points_and_centroids_that_exist() -> None:
    rows = torch.full((1, 70, 16), torch.nan).to(DEVICE)
    picks = gpu_seeding.pick(rows, _uniforms(8, 0, 6)[None])
    assert ((picks >= 0) & (picks < 70)).all()
    assert (gpu.assign(rows, rows[:, :5].contiguous()).ids < 5).all()


def test_the_host_does_not_wait() -> None:
    if DEVICE == "cpu":
        pytest.skip("no CUDA device")
    points, uniforms = torch.randn(2, 200, 64, device="cuda"), _uniforms(1, 0, 9)[None]
    gpu.fit(points, points[:, :9], KMeansSettings(iterations=3))
    torch.cuda.set_sync_debug_mode("error")
    try:
        gpu.fit(points, points[:, :9], KMeansSettings(iterations=3))
        gpu_seeding.pick(points, np.repeat(uniforms, 2, axis=0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
