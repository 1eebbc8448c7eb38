"""K-means++ on the CPU, in Numba; see `cpu.py` for threads and the cache of compiled code."""

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.kmeans.rows import largest, lesser, transpose
from qvg_engine.kernels.threads import for_heads

# Points whose distances are added up at a time, in the L1 cache.
_BLOCK = 512


@njit(nogil=True, cache=True)
def _scale(points: Any, scaled: Any) -> None:
    """Write points times a power of two to `scaled`, so that no square leaves fp32's range."""
    # In fp64: the factor of tiny numbers may exceed fp32's range.
    factor = math.ldexp(1.0, -math.frexp(np.float64(largest(points)))[1])
    for point in range(points.shape[0]):
        for i in range(points.shape[1]):
            scaled[point, i] = np.float32(np.float64(points[point, i]) * factor)


@njit(nogil=True, cache=True)
def _approach(channels: Any, pick: Any, nearest: Any, distance: Any) -> None:
    """Lower `nearest` [points] to the squared distances from the point `pick`.

    channels: [head_dim, points]; distance: [_BLOCK], overwritten. Adds channel by channel on every
    machine.
    """
    head_dim, num_points = channels.shape
    whole = head_dim - head_dim % 4
    for first in range(0, num_points, _BLOCK):
        last = min(first + _BLOCK, num_points)
        for j in range(last - first):
            distance[j] = np.float32(0)
        # Four at a time: half of the time goes into reading and writing sums.
        for i in range(0, whole, 4):
            row_0, row_1 = channels[i, first:last], channels[i + 1, first:last]
            row_2, row_3 = channels[i + 2, first:last], channels[i + 3, first:last]
            at_0, at_1 = channels[i, pick], channels[i + 1, pick]
            at_2, at_3 = channels[i + 2, pick], channels[i + 3, pick]
            for j in range(last - first):
                total = distance[j] + (row_0[j] - at_0) * (row_0[j] - at_0)
                total = total + (row_1[j] - at_1) * (row_1[j] - at_1)
                total = total + (row_2[j] - at_2) * (row_2[j] - at_2)
                distance[j] = total + (row_3[j] - at_3) * (row_3[j] - at_3)
        for i in range(whole, head_dim):
            row_0, at_0 = channels[i, first:last], channels[i, pick]
            for j in range(last - first):
                distance[j] += (row_0[j] - at_0) * (row_0[j] - at_0)
        for j in range(last - first):
            nearest[first + j] = lesser(nearest[first + j], distance[j])


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
def _pick_heads(points: Any, uniforms: Any, picks: Any, first: Any, last: Any) -> None:
    """See `pick`: heads [first, last)."""
    _, num_points, head_dim = points.shape
    scaled = np.empty((num_points, head_dim), np.float32)
    channels = np.empty((head_dim, num_points), np.float32)
    nearest = np.empty(num_points, np.float32)
    distance = np.empty(_BLOCK, np.float32)
    for head in range(first, last):
        _scale(points[head], scaled)
        transpose(scaled, 0, channels)
        nearest[:] = np.inf
        picks[head, 0] = np.int64(uniforms[head, 0] * num_points)
        for index in range(1, uniforms.shape[1]):
            _approach(channels, picks[head, index - 1], nearest, distance)
            picks[head, index] = _draw(nearest, uniforms[head, index])


def pick(points: Tensor, uniforms: NDArray[np.float64]) -> Tensor:
    """K-means++ seeding.

    Args:
        points: fp32 [heads, points, head_dim], contiguous, finite; at most 4,096 points.
        uniforms: [heads, centroids], in [0, 1): what decides each pick.

    Returns the picked points, int64 [heads, centroids].
    """
    picks = torch.empty(uniforms.shape, dtype=torch.int64)
    arrays = points.numpy(), uniforms, picks.numpy()
    work = points.numel() * uniforms.shape[1]
    for_heads(lambda first, last: _pick_heads(*arrays, first, last), len(points), work)
    return picks
