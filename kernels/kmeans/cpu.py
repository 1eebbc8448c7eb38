"""K-means on the CPU, in Numba: heads one after the other, or on several threads.

Scores find, distances decide. |x - c|^2 / 2 is |x|^2 / 2 plus the score |c|^2 / 2 - x.c, which
products give quickly, but with an error that depends on the machine and may exceed what separates
two centroids. That error has a bound, so there are centroids that can be the nearest: nearly always
one; where there are more, their distances in fp64 decide. So ids are those of exact distances,
however a product adds. Scores work on rows from which the mean of the points is subtracted, which
makes the bound small, and which are scaled by a power of two, which keeps their squares in fp32's
range.

A head is the work of one thread, so that results do not depend on how many there are. Compiled code
is cached, see `kernels/rope/cpu.py`.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from qvg_engine.kernels.kmeans.clusters import Assignment, Clusters
from qvg_engine.kernels.kmeans.rows import largest, lesser, transpose
from qvg_engine.kernels.kmeans.settings import KMeansSettings
from qvg_engine.kernels.products import HALF_TILE, ROWS, TILE, multiply
from qvg_engine.kernels.threads import for_heads

# Products of a block, 16 KB for 256 centroids, and a tile stay in the L1 cache.
_BLOCK = 16
# How a sum adds may be chosen to suit the machine.
_ANY_ORDER = {"reassoc", "nsz", "contract"}


class _Scratch(NamedTuple):
    """What a head is worked on with: made once for all the heads of a thread.

    mean: fp32 [head_dim], of the scaled points.
    rows, norms: fp32 [tokens, head_dim], [tokens], the moved points and their lengths; the number
        of rows is rounded up to whole `ROWS`.
    centroids: fp32 [tiles * TILE, head_dim], the moved centroids, and zeros.
    tiles: fp32 [tiles, head_dim, TILE], the same by channel.
    lower, upper, slack: fp32 [width], see `_bound`; the width is the number of centroids, rounded
        up to whole `HALF_TILE`.
    products: fp32 [_BLOCK, width].
    distances: squared, fp64 [tokens].
    sums, counts: fp64 [centroids, head_dim], int64 [centroids], of each centroid's points.
    """

    mean: Any
    rows: Any
    norms: Any
    centroids: Any
    tiles: Any
    lower: Any
    upper: Any
    slack: Any
    products: Any
    distances: Any
    sums: Any
    counts: Any


@njit(nogil=True, cache=True)
def _make_scratch(num_tokens: Any, num_centroids: Any, head_dim: Any) -> Any:
    num_tiles = -(-num_centroids // TILE)
    width = -(-num_centroids // HALF_TILE) * HALF_TILE
    rows = np.empty((-(-num_tokens // ROWS) * ROWS, head_dim), np.float32)
    rows[num_tokens:] = 0
    centroids = np.empty((num_tiles * TILE, head_dim), np.float32)
    centroids[num_centroids:] = 0
    return _Scratch(
        np.empty(head_dim, np.float32),
        rows,
        np.empty(num_tokens, np.float32),
        centroids,
        np.empty((num_tiles, head_dim, TILE), np.float32),
        # Those that only fill the last vector are never the nearest.
        np.full(width, np.inf, np.float32),
        np.full(width, np.inf, np.float32),
        np.zeros(width, np.float32),
        np.empty((_BLOCK, width), np.float32),
        np.empty(num_tokens, np.float64),
        np.empty((num_centroids, head_dim), np.float64),
        np.empty(num_centroids, np.int64),
    )


@njit(nogil=True, cache=True)
def _choose_scale(points: Any, centroids: Any) -> Any:
    """The power of two that brings all magnitudes below 1.

    It may be too large for fp32 where they are tiny; a smaller one does then.
    """
    magnitude = np.float64(max(largest(points), largest(centroids)))
    return np.float32(math.ldexp(1.0, min(-math.frexp(magnitude)[1], 126)))


@njit(nogil=True, cache=True, fastmath=_ANY_ORDER)
def _load(points: Any, scale: Any, scratch: Any) -> None:
    """Move the points of a head: scaled, minus their mean, each rounded once."""
    mean, rows, norms = scratch.mean, scratch.rows, scratch.norms
    num_tokens, head_dim = points.shape
    total = np.zeros(head_dim, np.float64)
    for token in range(num_tokens):
        for i in range(head_dim):
            total[i] += points[token, i]
    for i in range(head_dim):
        mean[i] = np.float32(total[i] / num_tokens * np.float64(scale))
    for token in range(num_tokens):
        square = np.float32(0)
        for i in range(head_dim):
            moved = points[token, i] * scale - mean[i]
            rows[token, i] = moved
            square += moved * moved
        norms[token] = math.sqrt(square)


@njit(nogil=True, cache=True, fastmath=_ANY_ORDER)
def _pack(centroids: Any, scale: Any, scratch: Any) -> None:
    """Move the centroids as the points were moved, into tiles, and bound their scores."""
    mean, moved = scratch.mean, scratch.centroids
    num_centroids, head_dim = centroids.shape
    for centroid in range(num_centroids):
        square = 0.0
        for i in range(head_dim):
            value = centroids[centroid, i] * scale - mean[i]
            moved[centroid, i] = value
            square += np.float64(value) * np.float64(value)
        _bound(centroid, square, head_dim, scratch.lower, scratch.upper, scratch.slack)
    for tile in range(scratch.tiles.shape[0]):
        transpose(moved, tile * TILE, scratch.tiles[tile])


@njit(nogil=True, cache=True)
def _bound(centroid: Any, square: Any, head_dim: Any, lower: Any, upper: Any, slack: Any) -> None:
    """Bound a centroid's scores, from its squared length.

    The score of a point x is at least `lower - |x| slack - product` and at most
    `upper + |x| slack - product`. In units of fp32's rounding, 2^-24: the product x.c is within
    (head_dim + 4) |x| |c|, in whatever order it adds, the rest within 7 |c|^2 / 2, and the computed
    |x| within (head_dim / 2 + 2) |x|. What underflows is below 2^-120.
    """
    error = (head_dim + 32) * 2.0**-24
    lower[centroid] = np.float32(square / 2 * (1 - error) - 2.0**-120)
    upper[centroid] = np.float32(square / 2 * (1 + error) + 2.0**-120)
    slack[centroid] = np.float32(error * math.sqrt(square))


@njit(nogil=True, cache=True, fastmath=_ANY_ORDER)
def _squared_distance(points: Any, token: Any, centroids: Any, centroid: Any) -> Any:
    total = 0.0
    for i in range(points.shape[1]):
        difference = np.float64(points[token, i]) - np.float64(centroids[centroid, i])
        total += difference * difference
    return total


@njit(nogil=True, cache=True)
def _choose(points: Any, token: Any, centroids: Any, bounds: Any, limit: Any) -> Any:
    """The nearest of the centroids whose bound is within the limit."""
    least, nearest = np.inf, 0
    for centroid in range(centroids.shape[0]):
        if bounds[centroid] <= limit:
            distance = _squared_distance(points, token, centroids, centroid)
            if distance < least:
                least, nearest = distance, centroid
    return nearest


@njit(nogil=True, cache=True, fastmath=_ANY_ORDER)
def _settle(
    products: Any,
    first: Any,
    count: Any,
    points: Any,
    norms: Any,
    centroids: Any,
    lower: Any,
    upper: Any,
    slack: Any,
    ids: Any,
) -> Any:
    """Assign `count` tokens from `first` on, whose products with the centroids are given.

    Returns how many ids changed. Centroids whose score may be as low as the least that a score can
    be at most may be the nearest. Overwrites the products with lower bounds.
    """
    width = products.shape[1]
    num_changed = 0
    for row in range(count):
        token = first + row
        norm = norms[token]
        limit = np.float32(np.inf)
        for centroid in range(width):
            product = products[row, centroid]
            limit = lesser(limit, upper[centroid] + norm * slack[centroid] - product)
            products[row, centroid] = lower[centroid] - norm * slack[centroid] - product
        # The number of candidates in the upper half, the sum of their ids in the lower: one
        # candidate's id stands there.
        found = np.int32(0)
        for centroid in range(width):
            one = np.int32(65536 + centroid)
            found = np.int32(found + (one if products[row, centroid] <= limit else np.int32(0)))
        nearest = np.int64(found & 65535)
        if found >> 16 != 1:
            nearest = _choose(points, token, centroids, products[row], limit)
        num_changed += np.int64(ids[token]) != nearest
        ids[token] = nearest
    return num_changed


@njit(nogil=True, cache=True)
def _assign(points: Any, centroids: Any, scale: Any, scratch: Any, ids: Any) -> Any:
    """Find the nearest centroid of the points that were loaded; how many ids that changed."""
    _pack(centroids, scale, scratch)
    num_changed = 0
    for first in range(0, points.shape[0], _BLOCK):
        count = min(_BLOCK, points.shape[0] - first)
        multiply(scratch.rows, first, count, scratch.tiles, scratch.products)
        num_changed += _settle(
            scratch.products,
            first,
            count,
            points,
            scratch.norms,
            centroids,
            scratch.lower,
            scratch.upper,
            scratch.slack,
            ids,
        )
    return num_changed


@njit(nogil=True, cache=True)
def _measure(points: Any, centroids: Any, ids: Any, distances: Any) -> None:
    """Squared distances [tokens], as exact as their type, from the points to their centroids."""
    for token in range(points.shape[0]):
        distances[token] = _squared_distance(points, token, centroids, np.int64(ids[token]))


@njit(nogil=True, cache=True)
def _add_up(points: Any, ids: Any, sums: Any, counts: Any) -> None:
    """Sum and number of each centroid's points, added token by token."""
    sums[:] = 0
    counts[:] = 0
    for token in range(points.shape[0]):
        nearest = np.int64(ids[token])
        counts[nearest] += 1
        for i in range(points.shape[1]):
            sums[nearest, i] += points[token, i]


@njit(nogil=True, cache=True)
def _update(points: Any, ids: Any, centroids: Any, scratch: Any) -> None:
    """Move centroids to the means of their points, empty ones to the farthest points."""
    sums, counts, distances = scratch.sums, scratch.counts, scratch.distances
    _add_up(points, ids, sums, counts)
    if counts.min() == 0:
        _measure(points, centroids, ids, distances)
    for centroid in range(centroids.shape[0]):
        count = counts[centroid]
        if count > 0:
            part = 1.0 / count
            for i in range(centroids.shape[1]):
                centroids[centroid, i] = np.float32(sums[centroid, i] * part)
            continue
        farthest = np.argmax(distances)
        if distances[farthest] > 0:
            for i in range(centroids.shape[1]):
                centroids[centroid, i] = points[farthest, i]
            distances[farthest] = 0.0


@njit(nogil=True, cache=True)
def _fit_head(
    points: Any, centroids: Any, iterations: Any, enough: Any, scratch: Any, ids: Any
) -> Any:
    """Fit `centroids` in place until fewer than `enough` ids change; how often they moved."""
    scale = _choose_scale(points, centroids)
    _load(points, scale, scratch)
    _assign(points, centroids, scale, scratch, ids)
    for iteration in range(1, iterations + 1):
        _update(points, ids, centroids, scratch)
        if _assign(points, centroids, scale, scratch, ids) < enough:
            return iteration
    return iterations


@njit(nogil=True, cache=True)
def _fit_heads(
    points: Any,
    centroids: Any,
    iterations: Any,
    enough: Any,
    ids: Any,
    counts: Any,
    inertia: Any,
    moves: Any,
    first: Any,
    last: Any,
) -> None:
    """See `fit`: heads [first, last)."""
    scratch = _make_scratch(points.shape[1], centroids.shape[1], points.shape[2])
    for head in range(first, last):
        rows, means, nearest = points[head], centroids[head], ids[head]
        moves[head] = _fit_head(rows, means, iterations, enough, scratch, nearest)
        _measure(rows, means, nearest, scratch.distances)
        inertia[head] = scratch.distances.sum()
        counts[head] = 0
        for token in range(nearest.shape[0]):
            counts[head, nearest[token]] += 1


@njit(nogil=True, cache=True)
def _assign_heads(
    points: Any, centroids: Any, ids: Any, distances: Any, first: Any, last: Any
) -> None:
    """See `assign`: heads [first, last)."""
    scratch = _make_scratch(points.shape[1], centroids.shape[1], points.shape[2])
    for head in range(first, last):
        rows, nearest = points[head], ids[head]
        scale = _choose_scale(rows, centroids[head])
        _load(rows, scale, scratch)
        _assign(rows, centroids[head], scale, scratch, nearest)
        for token in range(rows.shape[0]):
            distance = _squared_distance(rows, token, centroids[head], np.int64(nearest[token]))
            distances[head, token] = np.float32(distance)


def assign(points: Tensor, centroids: Tensor) -> Assignment:
    """See `lloyd.assign`; fp32, contiguous."""
    num_heads, num_tokens, _ = points.shape
    ids = torch.empty((num_heads, num_tokens), dtype=torch.uint8)
    distances = torch.empty((num_heads, num_tokens), dtype=torch.float32)
    arrays = points.numpy(), centroids.numpy(), ids.numpy(), distances.numpy()
    work = points.numel() * centroids.shape[1]
    for_heads(lambda first, last: _assign_heads(*arrays, first, last), num_heads, work)
    return Assignment(ids, distances)


def fit(points: Tensor, initial: Tensor, settings: KMeansSettings) -> Clusters:
    """See `lloyd.fit`; fp32, contiguous."""
    num_heads, num_tokens, _ = points.shape
    num_centroids = initial.shape[1]
    clusters = Clusters(
        centroids=initial.clone(),
        ids=torch.zeros((num_heads, num_tokens), dtype=torch.uint8),
        counts=torch.empty((num_heads, num_centroids), dtype=torch.int64),
        inertia=torch.empty(num_heads, dtype=torch.float64),
        iterations=torch.empty(num_heads, dtype=torch.int64),
    )
    arrays = points.numpy(), clusters.centroids.numpy()
    stop = settings.iterations, settings.enough_changes(num_tokens)
    found = (clusters.ids, clusters.counts, clusters.inertia, clusters.iterations)
    results = [tensor.numpy() for tensor in found]
    # At least one move, and the assignments before and after it.
    work = 2 * points.numel() * num_centroids
    for_heads(
        lambda first, last: _fit_heads(*arrays, *stop, *results, first, last), num_heads, work
    )
    return clusters
