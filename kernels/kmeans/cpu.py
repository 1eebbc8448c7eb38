"""K-means on the CPU: scores by torch's matrix product, the rest in Numba, a head at a time.

Scores find, distances decide. |x - c|^2 / 2 is |x|^2 / 2 plus the score |c|^2 / 2 - x.c, which a
matrix product gives for all centroids at once, but with an error that depends on the machine and
may exceed what separates two centroids. That error has a bound, so there are centroids that can be
the nearest: nearly always one; where there are more, their distances in fp64 decide. So ids are
those of exact distances, however a matrix product adds. Scores work on rows from which the mean of
the points is subtracted, which makes the bound small, and which are scaled by a power of two, which
keeps their squares in fp32's range.

Compiled code is cached, see `kernels/rope/cpu.py`.
"""

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.kmeans.clusters import Assignment, Clusters
from qvg_engine.kernels.kmeans.scale import unit_scale
from qvg_engine.kernels.kmeans.settings import KMeansSettings

# Half a megabyte: the scores of a block of tokens stay in the L2 cache.
_BLOCK_SCORES = 128 * 1024
_SEEDING_BLOCK = 512
# How a sum adds may be chosen to suit the machine.
_ANY_ORDER = {"reassoc", "nsz", "contract"}


@njit(nogil=True, cache=True)
def _approach(channels: Any, pick: Any, nearest: Any) -> None:
    """Lower `nearest` [points] to the squared distances from the point `pick`.

    channels: [head_dim, points]. Adds channel by channel on every machine.
    """
    distance = np.empty(_SEEDING_BLOCK, np.float32)
    for first in range(0, nearest.shape[0], _SEEDING_BLOCK):
        count = min(_SEEDING_BLOCK, nearest.shape[0] - first)
        for i in range(count):
            distance[i] = np.float32(0)
        for channel in range(channels.shape[0]):
            row = channels[channel, first : first + count]
            centre = channels[channel, pick]
            for i in range(count):
                difference = row[i] - centre
                distance[i] += difference * difference
        for i in range(count):
            at = first + i
            nearest[at] = distance[i] if distance[i] < nearest[at] else nearest[at]


@njit(nogil=True, cache=True)
def _draw(nearest: Any, uniform: Any) -> Any:
    """The point at the part `uniform` of the sum of `nearest`."""
    # Whole numbers add up to the same in any order.
    factor = math.ldexp(1.0, 40 - math.frexp(np.float64(nearest.max()))[1])
    total = np.int64(0)
    for i in range(nearest.shape[0]):
        total += np.int64(nearest[i] * factor)
    if total == 0:
        return np.int64(uniform * nearest.shape[0])
    target = min(np.int64(uniform * total), total - 1)
    for i in range(nearest.shape[0]):
        target -= np.int64(nearest[i] * factor)
        if target < 0:
            return np.int64(i)
    return np.int64(-1)


@njit(nogil=True, cache=True)
def _pick(channels: Any, uniforms: Any, picks: Any) -> None:
    nearest = np.full(channels.shape[1], np.inf, np.float32)
    picks[0] = np.int64(uniforms[0] * channels.shape[1])
    for index in range(1, uniforms.shape[0]):
        _approach(channels, picks[index - 1], nearest)
        picks[index] = _draw(nearest, uniforms[index])


@njit(nogil=True, cache=True)
def _add_up(rows: Any, total: Any) -> None:
    for row in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            total[i] += rows[row, i]


@njit(nogil=True, cache=True, fastmath=_ANY_ORDER)
def _move(rows: Any, mean: Any, scale: Any, moved: Any, norms: Any) -> None:
    """Write (rows - mean) * scale to `moved`, rounded once, and its rows' lengths to `norms`."""
    for row in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            moved[row, i] = np.float32((np.float64(rows[row, i]) - mean[i]) * scale)
        total = 0.0
        for i in range(rows.shape[1]):
            total += np.float64(moved[row, i]) * np.float64(moved[row, i])
        norms[row] = np.float32(math.sqrt(total))


@njit(nogil=True, cache=True, fastmath=_ANY_ORDER)
def _squared_distance(point: Any, centroid: Any) -> Any:
    total = 0.0
    for i in range(point.shape[0]):
        difference = np.float64(point[i]) - np.float64(centroid[i])
        total += difference * difference
    return total


@njit(nogil=True, cache=True)
def _find(
    products: Any, norms: Any, lower: Any, upper: Any, slack: Any, limit: Any, found: Any
) -> None:
    """Which centroids may be the nearest of each token of a block.

    products: fp32 [centroids, tokens]. A score is at least `lower - norm * slack - product` and at
    most `upper + norm * slack - product`. `limit` gets the least upper bound of a token's scores;
    centroids whose lower bound is within it may be the nearest. `found` gets their number in the
    upper half of an int32 and the sum of their ids in the lower: one candidate's id stands there.
    """
    num_centroids, num_tokens = products.shape
    none = np.int32(0)
    for i in range(num_tokens):
        limit[i] = np.float32(np.inf)
        found[i] = none
    # Tokens innermost: every step is then the same for a vector of them.
    for centroid in range(num_centroids):
        for i in range(num_tokens):
            bound = upper[centroid] + norms[i] * slack[centroid] - products[centroid, i]
            limit[i] = bound if bound < limit[i] else limit[i]
    for centroid in range(num_centroids):
        one = np.int32(65536 + centroid)
        for i in range(num_tokens):
            bound = lower[centroid] - norms[i] * slack[centroid] - products[centroid, i]
            found[i] += one if bound <= limit[i] else none


@njit(nogil=True, cache=True)
def _settle(
    products: Any,
    first: Any,
    points: Any,
    norms: Any,
    centroids: Any,
    lower: Any,
    upper: Any,
    slack: Any,
    ids: Any,
    distances: Any,
    sums: Any,
    counts: Any,
) -> Any:
    """Assign the tokens of a block, from `first` on; returns how many ids changed."""
    num_centroids, num_tokens = products.shape
    limit = np.empty(num_tokens, np.float32)
    found = np.empty(num_tokens, np.int32)
    _find(products, norms[first : first + num_tokens], lower, upper, slack, limit, found)
    num_changed = 0
    for i in range(num_tokens):
        token = first + i
        point = points[token]
        nearest = np.int64(found[i] & 65535)
        if found[i] >> 16 == 1:
            least = _squared_distance(point, centroids[nearest])
        else:
            least = np.inf
            for centroid in range(num_centroids):
                margin = norms[token] * slack[centroid]
                if lower[centroid] - margin - products[centroid, i] <= limit[i]:
                    distance = _squared_distance(point, centroids[centroid])
                    if distance < least:
                        least = distance
                        nearest = np.int64(centroid)
        num_changed += np.int64(ids[token]) != nearest
        ids[token] = nearest
        distances[token] = least
        counts[nearest] += 1
        for channel in range(point.shape[0]):
            sums[nearest, channel] += point[channel]
    return num_changed


@njit(nogil=True, cache=True)
def _update(points: Any, distances: Any, sums: Any, counts: Any, centroids: Any) -> None:
    """Move centroids to the means of their points, empty ones to the farthest points.

    The distances of the points that are taken become 0.
    """
    for centroid in range(centroids.shape[0]):
        count = counts[centroid]
        if count > 0:
            for channel in range(centroids.shape[1]):
                centroids[centroid, channel] = np.float32(sums[centroid, channel] / count)
            continue
        farthest = np.argmax(distances)
        if distances[farthest] > 0:
            for channel in range(centroids.shape[1]):
                centroids[centroid, channel] = points[farthest, channel]
            distances[farthest] = 0.0


class _Head:
    """The points of one head at a time, and what their last assignment left.

    ids: uint8 [tokens]; distances: squared, fp64 [tokens]; sums: of each centroid's points, fp64
    [centroids, head_dim]; counts: int64 [centroids].
    """

    def __init__(self, num_tokens: int, num_centroids: int, head_dim: int) -> None:
        self.ids = np.zeros(num_tokens, np.uint8)
        self.distances = np.zeros(num_tokens, np.float64)
        self.sums = np.zeros((num_centroids, head_dim), np.float64)
        self.counts = np.zeros(num_centroids, np.int64)
        self._block = max(1, _BLOCK_SCORES // num_centroids)
        self._products = torch.empty(num_centroids * min(self._block, num_tokens))
        self._moved_points = torch.empty(num_tokens, head_dim)
        self._moved_centroids = torch.empty(num_centroids, head_dim)
        self._point_norms = np.empty(num_tokens, np.float32)
        self._centroid_norms = np.empty(num_centroids, np.float32)

    def load(self, points: Tensor, centroids: Tensor) -> None:
        """Take the points [tokens, head_dim] of a head; `centroids` are the first to be used."""
        self.points: NDArray[np.float32] = points.numpy()
        total = np.zeros(points.shape[1], np.float64)
        _add_up(self.points, total)
        self._mean = total / len(points)
        ends = torch.stack((*torch.aminmax(points), *torch.aminmax(centroids)))
        self._scale = unit_scale(float(ends.abs().max()))
        _move(self.points, self._mean, self._scale, self._moved_points.numpy(), self._point_norms)

    def assign(self, centroids: NDArray[np.float32]) -> int:
        """Find the nearest of the centroids [centroids, head_dim]; how many ids that changed."""
        _move(
            centroids, self._mean, self._scale, self._moved_centroids.numpy(), self._centroid_norms
        )
        bounds = _bounds(self._centroid_norms, centroids.shape[1])
        self.sums.fill(0)
        self.counts.fill(0)
        num_changed = 0
        for first in range(0, len(self.ids), self._block):
            points = self._moved_points[first : first + self._block]
            shape = (len(centroids), len(points))
            products = self._products[: math.prod(shape)].view(shape)
            torch.mm(self._moved_centroids, points.T, out=products)
            num_changed += _settle(
                products.numpy(),
                first,
                self.points,
                self._point_norms,
                centroids,
                *bounds,
                self.ids,
                self.distances,
                self.sums,
                self.counts,
            )
        return num_changed


def _bounds(
    norms: NDArray[np.float32], head_dim: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """What `_find` calls `lower`, `upper` and `slack`, from the lengths of the centroids.

    In units of fp32's rounding, 2^-24: the product x.c is within (head_dim + 4) |x| |c|, in
    whatever order it adds, the rest within 7 |c|^2 / 2. What underflows is below 2^-120.
    """
    error = (head_dim + 32) * 2.0**-24
    backend: Any = torch.backends.mkldnn
    if backend.matmul.fp32_precision not in ("none", "ieee"):
        # Torch was told to round the factors of a product, to bf16 or finer.
        error += 2.0**-7
    half_square = norms.astype(np.float64) ** 2 / 2
    lower = half_square * (1 - error) - 2.0**-120
    upper = half_square * (1 + error) + 2.0**-120
    return lower.astype(np.float32), upper.astype(np.float32), np.float32(error) * norms


def pick(points: Tensor, uniforms: NDArray[np.float64]) -> Tensor:
    """K-means++ seeding.

    Args:
        points: fp32 [heads, points, head_dim], magnitudes up to 1; at most 4,096 points.
        uniforms: [heads, centroids], in [0, 1): what decides each pick.

    Returns the picked points, int64 [heads, centroids].
    """
    picks = torch.empty(uniforms.shape, dtype=torch.int64)
    for head, (rows, out) in enumerate(zip(points, picks, strict=True)):
        _pick(rows.T.contiguous().numpy(), uniforms[head], out.numpy())
    return picks


def assign(points: Tensor, centroids: Tensor) -> Assignment:
    """See `lloyd.assign`; fp32, contiguous."""
    num_heads, num_tokens, head_dim = points.shape
    found = Assignment(
        ids=torch.empty((num_heads, num_tokens), dtype=torch.uint8),
        squared_distances=torch.empty((num_heads, num_tokens)),
    )
    head = _Head(num_tokens, centroids.shape[1], head_dim)
    for index in range(num_heads):
        head.load(points[index], centroids[index])
        head.assign(centroids[index].numpy())
        found.ids[index] = torch.from_numpy(head.ids)
        found.squared_distances[index] = torch.from_numpy(head.distances)
    return found


def fit(points: Tensor, initial: Tensor, settings: KMeansSettings) -> Clusters:
    """See `lloyd.fit`; fp32, contiguous."""
    num_heads, num_tokens, head_dim = points.shape
    num_centroids = initial.shape[1]
    clusters = Clusters(
        centroids=initial.clone(),
        ids=torch.empty((num_heads, num_tokens), dtype=torch.uint8),
        counts=torch.empty((num_heads, num_centroids), dtype=torch.int64),
        inertia=torch.empty(num_heads, dtype=torch.float64),
        iterations=torch.empty(num_heads, dtype=torch.int64),
    )
    head = _Head(num_tokens, num_centroids, head_dim)
    for index in range(num_heads):
        head.load(points[index], initial[index])
        clusters.iterations[index] = _fit_head(head, clusters.centroids[index].numpy(), settings)
        clusters.ids[index] = torch.from_numpy(head.ids)
        clusters.counts[index] = torch.from_numpy(head.counts)
        clusters.inertia[index] = head.distances.sum()
    return clusters


def _fit_head(head: _Head, centroids: NDArray[np.float32], settings: KMeansSettings) -> int:
    """Fit `centroids` [centroids, head_dim] in place; returns how often they moved."""
    head.assign(centroids)
    for iteration in range(1, settings.iterations + 1):
        _update(head.points, head.distances, head.sums, head.counts, centroids)
        if settings.has_converged(head.assign(centroids), len(head.ids)):
            return iteration
    return settings.iterations
