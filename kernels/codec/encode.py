"""Encoding rows into pages with a codebook that exists, by the fastest kernels there are."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels import kmeans
from qvg_engine.kernels.codec import cpu, cpu_store, reference
from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.kmeans.finite import require_finite


@dataclass(frozen=True, slots=True)
class SpanFigures:
    """What encoding a span has shown, on the host.

    energy, residual_energy, error_energy: fp64 [heads], sums of squares of the rows, of what the
        centroids left of them, and of what the codes left of that.
    counts: int64 [heads, stages, centroids], how many rows took each centroid.
    """

    energy: NDArray[np.float64]
    residual_energy: NDArray[np.float64]
    error_energy: NDArray[np.float64]
    counts: NDArray[np.int64]


def encode_span(
    pages: CodedPages,
    page_ids: NDArray[np.integer],
    rows: Tensor,
    *,
    slot: int,
    name: str = "keys",
) -> SpanFigures:
    """Store rows in order into the pages `page_ids`, with the codebook in `slot`.

    Args:
        pages: K or V of one layer.
        page_ids: the pages to fill, in order, each at most once.
        rows: [tokens, heads, head_dim], at most as many tokens as the pages have slots.
        slot: a codebook that `fit_codebook` has filled; none is needed where there are no stages.
        name: what an error calls the rows.

    The last page may stay part full, and pages beyond the rows untouched: slots that get no row
    keep what they held. All arithmetic is in fp32 and starts from the centroids as they are stored.
    Raises `NonFiniteError` for NaN or infinity, before anything is written.
    """
    _check(pages, page_ids, rows, slot)
    num_tokens = rows.shape[0]
    points = to_points(rows)
    if num_tokens:
        require_finite(points, name)
    ids, residual = assign_stages(pages, points, slot)
    store = cpu_store.store if cpu.supports(pages.codes) else reference.store
    used = np.ascontiguousarray(page_ids[: -(-num_tokens // pages.page_size)], dtype=np.int64)
    pages.slot_of_page[used] = slot
    error_energy = store(pages, used, residual, ids, slot=slot)
    return SpanFigures(
        energy=_energy(points),
        residual_energy=_energy(residual),
        error_energy=error_energy,
        counts=_counts(ids, pages.spec.centroids),
    )


def to_points(rows: Tensor) -> Tensor:
    """Rows [tokens, heads, head_dim] as new fp32 [heads, tokens, head_dim], contiguous."""
    points = torch.empty(
        (rows.shape[1], rows.shape[0], rows.shape[2]), dtype=torch.float32, device=rows.device
    )
    return points.copy_(rows.transpose(0, 1))


def assign_stages(pages: CodedPages, points: Tensor, slot: int) -> tuple[Tensor, Tensor]:
    """Ids, uint8 [heads, stages, tokens], and what the centroids leave of the points.

    points: fp32 [heads, tokens, head_dim].
    """
    num_heads, num_tokens, _ = points.shape
    num_stages = pages.spec.stages
    ids = points.new_empty((num_heads, num_stages, num_tokens), dtype=torch.uint8)
    residual = points
    for stage in range(num_stages if num_tokens else 0):
        centroids = pages.codebooks.stage(slot, stage)
        ids[:, stage] = kmeans.assign(residual, centroids, name="residuals").ids
        residual = subtract(residual, centroids, ids[:, stage])
    return ids, residual


def subtract(points: Tensor, centroids: Tensor, ids: Tensor) -> Tensor:
    """Points [heads, tokens, head_dim] minus their centroids, in fp32."""
    heads = torch.arange(points.shape[0], device=points.device)[:, None]
    return points - centroids.float()[heads, ids.long()]


def _energy(x: Tensor) -> NDArray[np.float64]:
    norms: Tensor = torch.linalg.vector_norm(x, dim=(1, 2), dtype=torch.float64)
    return np.asarray(norms.square().cpu().numpy())


def _counts(ids: Tensor, num_centroids: int) -> NDArray[np.int64]:
    num_heads, num_stages, _ = ids.shape
    first = torch.arange(num_heads * num_stages, device=ids.device) * num_centroids
    numbers = ids.flatten(0, 1).long() + first[:, None]
    counts = numbers.flatten().bincount(minlength=num_heads * num_stages * num_centroids)
    return np.asarray(counts.cpu().numpy().reshape(num_heads, num_stages, num_centroids))


def _check(pages: CodedPages, page_ids: NDArray[np.integer], rows: Tensor, slot: int) -> None:
    """The kernels do not check bounds."""
    assert rows.shape[1:] == (pages.num_heads, pages.head_dim), rows.shape
    assert rows.shape[0] <= len(page_ids) * pages.page_size, (rows.shape, page_ids)
    if len(page_ids):
        assert 0 <= page_ids.min() <= page_ids.max() < pages.num_pages, page_ids
    assert 0 <= slot < pages.codebooks.num_slots, slot
    assert pages.codebooks.counts[slot] > 0 or not pages.spec.stages, slot
