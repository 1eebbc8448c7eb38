"""K-means in plain torch: slow, short, on any device."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.kmeans.clusters import Assignment, Clusters
from qvg_engine.kernels.kmeans.scale import unit_scale
from qvg_engine.kernels.kmeans.settings import KMeansSettings

# Bounds the differences to 64 * centroids * head_dim elements.
_TOKEN_BLOCK = 64


def pick(points: Tensor, uniforms: NDArray[np.float64]) -> Tensor:
    """See `cpu_seeding.pick`."""
    points = _to_unit_scale(points)
    num_heads, num_points, _ = points.shape
    heads = torch.arange(num_heads, device=points.device)
    draws = torch.from_numpy(uniforms).to(points.device)
    picks = torch.empty(draws.shape, dtype=torch.int64, device=points.device)
    picks[:, 0] = (draws[:, 0] * num_points).long()
    nearest = points.new_full((num_heads, num_points), torch.inf)
    for index in range(1, draws.shape[1]):
        centroid = points[heads, picks[:, index - 1]]
        distance = torch.zeros_like(nearest)
        # Channel by channel: the order in which a sum adds is not the same everywhere.
        for channel in range(points.shape[2]):
            difference = points[:, :, channel] - centroid[:, channel, None]
            distance += difference * difference
        nearest = torch.minimum(nearest, distance)
        picks[:, index] = _draw(nearest, draws[:, index])
    return picks


def _to_unit_scale(x: Tensor) -> Tensor:
    """x with each head scaled by a power of two, so that no square of it leaves fp32's range."""
    largest: list[float] = x.abs().amax(dim=(1, 2)).tolist()
    scales = torch.tensor([unit_scale(value) for value in largest], dtype=torch.float64)
    return (x.double() * scales.to(x.device)[:, None, None]).float()


def _draw(nearest: Tensor, uniform: Tensor) -> Tensor:
    """Draw a point in each head: nearest [heads, points], uniform [heads]."""
    # Whole numbers add up to the same in any order.
    largest: list[float] = nearest.amax(dim=1).tolist()
    factors = [2.0**40 * unit_scale(value) for value in largest]
    weights = (nearest.double() * nearest.new_tensor(factors, dtype=torch.float64)[:, None]).long()
    total = weights.sum(dim=1)
    target = torch.minimum((uniform * total).long(), total - 1)
    found = torch.searchsorted(weights.cumsum(dim=1), target[:, None], right=True)[:, 0]
    return torch.where(total > 0, found, (uniform * nearest.shape[1]).long())


def assign(points: Tensor, centroids: Tensor) -> Assignment:
    """See `lloyd.assign`; fp32 only."""
    found = [_nearest(*head) for head in zip(points, centroids, strict=True)]
    ids, distances = (torch.stack(parts) for parts in zip(*found, strict=True))
    return Assignment(ids.to(torch.uint8), distances.float())


def fit(points: Tensor, initial: Tensor, settings: KMeansSettings) -> Clusters:
    """See `lloyd.fit`; fp32 only."""
    heads = [_fit_head(*head, settings) for head in zip(points, initial, strict=True)]
    return Clusters(*(torch.stack(parts) for parts in zip(*heads, strict=True)))


def _fit_head(
    points: Tensor, centroids: Tensor, settings: KMeansSettings
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    ids, distances = _nearest(points, centroids)
    iterations, converged = 0, False
    while iterations < settings.iterations and not converged:
        centroids = _moved(points, centroids, ids, distances)
        last_ids = ids
        ids, distances = _nearest(points, centroids)
        converged = settings.has_converged(int((ids != last_ids).sum()), len(points))
        iterations += 1
    counts = ids.bincount(minlength=len(centroids))
    inertia = distances.sum()
    return centroids, ids.to(torch.uint8), counts, inertia, counts.new_tensor(iterations)


def _nearest(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Ids int64 [tokens] and squared distances fp64 [tokens] of one head."""
    ids, distances = [], []
    for block in points.double().split(_TOKEN_BLOCK):
        squared = (block[:, None] - centroids.double()).square().sum(dim=-1)
        ids.append(squared.argmin(dim=-1))
        distances.append(squared.amin(dim=-1))
    return torch.cat(ids), torch.cat(distances)


def _moved(points: Tensor, centroids: Tensor, ids: Tensor, distances: Tensor) -> Tensor:
    """Means of the points, and for empty centroids the farthest points."""
    members = torch.nn.functional.one_hot(ids, len(centroids)).double()
    counts = members.sum(dim=0)
    means = members.T @ points.double() / counts.clamp(min=1)[:, None]
    moved = torch.where(counts[:, None] > 0, means.float(), centroids)
    empty = (counts == 0).nonzero()[:, 0]
    farthest = distances.argsort(descending=True, stable=True)[: len(empty)]
    farthest = farthest[distances[farthest] > 0]
    moved[empty[: len(farthest)]] = points[farthest]
    return moved
