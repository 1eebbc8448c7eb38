"""Assigning tokens to centroids and fitting the centroids, by the fastest kernel there is."""

from typing import Any

import torch
from torch import Tensor

from qvg_engine.kernels.gpu import runs_on_cpu
from qvg_engine.kernels.gpu import supports as gpu_supports
from qvg_engine.kernels.kmeans import cpu, reference
from qvg_engine.kernels.kmeans.clusters import Assignment, Clusters
from qvg_engine.kernels.kmeans.finite import require_finite
from qvg_engine.kernels.kmeans.settings import MAX_CENTROIDS, KMeansSettings


def assign(
    points: Tensor, centroids: Tensor, *, name: str = "points", checked: bool = False
) -> Assignment:
    """The nearest centroid of every point, by Euclidean distance.

    Args:
        points: [heads, tokens, head_dim], fp32, bf16 or fp16, at least one token.
        centroids: [heads, centroids, head_dim], likewise, 1 to 256 of them.
        name: what an error calls the points.
        checked: whether the caller knows that points and centroids are finite.

    Distances are those of the fp32 values, so that neither an offset nor a scale that the points
    share costs precision. A squared distance beyond the range of fp32 is 0 or infinite, its id
    right all the same. Raises `NonFiniteError` for NaN or infinity.
    """
    points, centroids = _check(points, centroids, name, checked)
    found: Assignment = _kernels(points).assign(points, centroids)
    return found


def fit(
    points: Tensor,
    initial: Tensor,
    settings: KMeansSettings,
    *,
    name: str = "points",
    checked: bool = False,
) -> Clusters:
    """Lloyd's algorithm: move every centroid to the mean of its points, assign anew, repeat.

    Args:
        points: [heads, tokens, head_dim], fp32, bf16 or fp16, at least one token.
        initial: [heads, centroids, head_dim], likewise, 1 to 256 of them: of `initial_centroids`,
            or of an old codebook.
        settings: when to stop; each head stops for itself, so that heads do not depend on others.
        name: what an error calls the points.
        checked: whether the caller knows that points and centroids are finite.

    A centroid without points moves to the point that is farthest from its own centroid; several of
    them take the farthest points in order, the lowest token first among equals. It stays where it
    is once every other point lies on its centroid.

    The ids are those of a last assignment to the centroids that are returned. (The published code
    of QVG returns means that their points were not assigned to again, if it stops by the number of
    iterations.) Raises `NonFiniteError` for NaN or infinity; returns neither, ever.
    """
    points, initial = _check(points, initial, name, checked)
    clusters: Clusters = _kernels(points).fit(points, initial, settings)
    return clusters


def _kernels(points: Tensor) -> Any:
    """The module whose `assign` and `fit` are the fastest for these points."""
    if gpu_supports(points):
        from qvg_engine.kernels.kmeans import gpu

        return gpu
    return cpu if runs_on_cpu(points.device) else reference


def _check(points: Tensor, centroids: Tensor, name: str, checked: bool) -> tuple[Tensor, Tensor]:
    """Both in fp32, contiguous."""
    assert points.dim() == centroids.dim() == 3, (points.shape, centroids.shape)
    assert points.shape[::2] == centroids.shape[::2], (points.shape, centroids.shape)
    assert points.numel(), points.shape
    assert 1 <= centroids.shape[1] <= MAX_CENTROIDS, centroids.shape
    for x in (points, centroids):
        assert x.dtype in (torch.float32, torch.bfloat16, torch.float16), x.dtype
    points, centroids = points.float().contiguous(), centroids.float().contiguous()
    if not checked:
        require_finite(points, name)
        require_finite(centroids, f"centroids for {name}")
    return points, centroids
