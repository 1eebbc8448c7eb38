"""Rows on their way to codes: as points of each head, and what centroids leave of them."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from qvg_engine.kernels.codec.arrays import page_arrays
from qvg_engine.kernels.codec.elements import read
from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.gpu import runs_on_cpu
from qvg_engine.kernels.gpu import supports as gpu_supports
from qvg_engine.kernels.kmeans.finite import require_finite
from qvg_engine.kernels.rope.cpu import SUPPORTED_DTYPES, as_array, widen

# Sums for figures, not for what is stored.
_ANY_ORDER = {"reassoc", "nsz", "contract"}


class Points(NamedTuple):
    """Rows of a span, head by head.

    values: fp32 [heads, tokens, head_dim], contiguous.
    energy: fp64 [heads], the sums of their squares, where the values are.
    """

    values: Tensor
    energy: Tensor


class Residual(NamedTuple):
    """What one centroid a row leaves.

    points: the rows minus their centroids.
    counts: int64 [heads, centroids], rows of each centroid, where the points are.
    """

    points: Points
    counts: Tensor


def to_points(rows: Tensor, name: str) -> Points:
    """Rows [tokens, heads, head_dim] of any floating dtype as new points.

    Raises `NonFiniteError` that says `name` for NaN or infinity; see `kmeans.finite` for how a GPU
    does without the host's waiting.
    """
    shape = (rows.shape[1], rows.shape[0], rows.shape[2])
    values = torch.empty(shape, dtype=torch.float32, device=rows.device)
    if runs_on_cpu(rows.device) and rows.dtype in SUPPORTED_DTYPES:
        energy = torch.empty(shape[0], dtype=torch.float64)
        _load(as_array(rows), values.numpy(), energy.numpy())
    else:
        values.copy_(rows.transpose(0, 1))
        energy = _energy(values)
    if not runs_on_cpu(energy.device) or not np.isfinite(energy.numpy()).all():
        require_finite(values, name)
    return Points(values, energy)


def stage_centroids(pages: CodedPages, slot: int, stage: int) -> Tensor:
    """The centroids of one stage that exist, fp32 [heads, centroids, head_dim], a copy."""
    if not runs_on_cpu(pages.codes.device):
        return pages.codebooks.stage(slot, stage).float()
    count = int(pages.codebooks.counts[slot])
    centroids = torch.empty(pages.num_heads, count, pages.head_dim)
    _load_stage(page_arrays(pages), slot, stage, centroids.numpy())
    return centroids


def subtract(points: Tensor, centroids: Tensor, ids: Tensor) -> Residual:
    """Points fp32 [heads, tokens, head_dim] minus their centroids fp32 [heads, n, head_dim].

    `ids` uint8 [heads, tokens].
    """
    num_heads, num_centroids, _ = centroids.shape
    if gpu_supports(points):
        from qvg_engine.kernels.codec import gpu_residual

        left, energy, taken = gpu_residual.subtract(points, centroids, ids)
        return Residual(Points(left, energy), taken.long())
    if runs_on_cpu(points.device):
        left = torch.empty_like(points)
        energy = torch.empty(num_heads, dtype=torch.float64)
        counts = torch.zeros((num_heads, num_centroids), dtype=torch.int64)
        arrays = (x.numpy() for x in (points, centroids, ids, left, energy, counts))
        _subtract(*arrays)
        return Residual(Points(left, energy), counts)
    heads = torch.arange(num_heads, device=points.device)[:, None]
    left = points - centroids[heads, ids.long()]
    numbers = ids.long() + num_centroids * heads
    counted = numbers.flatten().bincount(minlength=num_heads * num_centroids)
    return Residual(Points(left, _energy(left)), counted.view(num_heads, num_centroids))


def _energy(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x, dim=(1, 2), dtype=torch.float64)
    return norms.square()


@njit(nogil=True, cache=True, fastmath=_ANY_ORDER)
def _load(rows: Any, out: Any, energy: Any) -> None:
    for head in range(out.shape[0]):
        total = 0.0
        for token in range(out.shape[1]):
            source, target = rows[token, head], out[head, token]
            square = 0.0
            for i in range(target.shape[0]):
                value = widen(source[i])
                target[i] = value
                square += np.float64(value) * np.float64(value)
            total += square
        energy[head] = total


@njit(nogil=True, cache=True)
def _load_stage(pages: Any, slot: Any, stage: Any, out: Any) -> None:
    table, count = pages.row_table[slot], out.shape[1]
    first = stage * count + (1 if pages.has_widths else 0)
    for centroid in range(count):
        row = table[first + centroid]
        assert row >= 0
        for head in range(out.shape[0]):
            source, target = pages.rows[row, head], out[head, centroid]
            for i in range(target.shape[0]):
                target[i] = read(source[i])


@njit(nogil=True, cache=True, fastmath=_ANY_ORDER)
def _subtract(points: Any, centroids: Any, ids: Any, out: Any, energy: Any, counts: Any) -> None:
    for head in range(out.shape[0]):
        total = 0.0
        for token in range(out.shape[1]):
            index = np.int64(ids[head, token])
            counts[head, index] += 1
            source, target = points[head, token], out[head, token]
            centroid = centroids[head, index]
            square = 0.0
            for i in range(target.shape[0]):
                value = source[i] - centroid[i]
                target[i] = value
                square += np.float64(value) * np.float64(value)
            total += square
        energy[head] = total
