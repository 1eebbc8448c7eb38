"""Encoding rows into pages with a codebook that exists, by the fastest kernels there are."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels import kmeans
from qvg_engine.kernels.codec import cpu, cpu_store, reference
from qvg_engine.kernels.codec.decode import decode
from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.codec.refinement import NO_REFINEMENT
from qvg_engine.kernels.codec.residual import Points, stage_centroids, subtract, to_points
from qvg_engine.kernels.device_table import to_device
from qvg_engine.kernels.gpu import supports as gpu_supports
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.readback import Readback


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


@dataclass(frozen=True, slots=True)
class PendingFigures:
    """`SpanFigures` that may still be computed: tensors where the pages are."""

    energy: Tensor
    residual_energy: Tensor
    error_energy: Tensor
    counts: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in the order of `SpanFigures`."""
        return self.energy, self.residual_energy, self.error_energy, self.counts

    def fetch(self) -> SpanFigures:
        """The figures; waits for the device."""
        return SpanFigures(*(x.numpy() for x in Readback(self.tensors).wait()))


def encode_span(
    pages: CodedPages,
    page_ids: NDArray[np.integer],
    rows: Tensor,
    *,
    slot: int,
    name: str = "keys",
    refined: NDArray[np.int32] | None = None,
) -> SpanFigures:
    """`begin_encode`, and then wait for the figures."""
    return begin_encode(pages, page_ids, rows, slot=slot, name=name, refined=refined).fetch()


def begin_encode(
    pages: CodedPages,
    page_ids: NDArray[np.integer],
    rows: Tensor,
    *,
    slot: int,
    name: str = "keys",
    refined: NDArray[np.int32] | None = None,
) -> PendingFigures:
    """Store rows in order into the pages `page_ids`, with the codebook in `slot`.

    Args:
        pages: K or V of one layer.
        page_ids: the pages to fill, in order, each at most once.
        rows: [tokens, heads, head_dim], at most as many tokens as the pages have slots.
        slot: a codebook that `fit_codebook` has filled; none is needed where there are no stages.
        name: what an error calls the rows.
        refined: int32 [pages], a refinement page for each page, -1 for none, each at most once;
            None for no refinement at all.

    The last page may stay part full, and pages beyond the rows untouched: slots that get no row
    keep what they held. A refinement page takes what the codes lose of its page's rows; which page
    it belongs to, `Refinement.page_of`, is not changed. All arithmetic is in fp32 and starts from
    the centroids as they are stored.
    Raises `NonFiniteError` for NaN or infinity, before anything is written, but for what
    `kmeans.finite.deferred_checks` says of GPUs. There the host does not wait within those.
    """
    _check(pages, page_ids, rows, slot)
    if refined is None:
        refined = np.full(len(page_ids), NO_REFINEMENT, np.int32)
    _check_refined(pages, page_ids, refined)
    points = to_points(rows, name)
    ids, left, counts = assign_stages(pages, points, slot)
    used = np.ascontiguousarray(page_ids[: -(-rows.shape[0] // pages.page_size)], dtype=np.int64)
    pages.slot_of_page[used] = slot
    error_energy = _store(pages, used, left.values, ids, slot)
    _refine(pages, used, points.values, refined[: len(used)], slot)
    return PendingFigures(
        energy=points.energy,
        residual_energy=left.energy,
        error_energy=error_energy,
        counts=counts,
    )


def _store(
    pages: CodedPages, page_ids: NDArray[np.int64], residual: Tensor, ids: Tensor, slot: int
) -> Tensor:
    """The squared errors fp64 [heads], where the pages are."""
    if gpu_supports(pages.codes):
        from qvg_engine.kernels.codec import gpu_store

        return gpu_store.store(pages, page_ids, residual, ids, slot=slot)
    store = cpu_store.store if cpu.supports(pages.codes) else reference.store
    errors = store(pages, page_ids, residual, ids, slot=slot)
    return torch.from_numpy(errors).to(pages.device)


def _refine(
    pages: CodedPages,
    page_ids: NDArray[np.int64],
    values: Tensor,
    refined: NDArray[np.int32],
    slot: int,
) -> None:
    """Store what the pages' codes lose of values [heads, tokens, head_dim]."""
    chosen = np.flatnonzero(refined != NO_REFINEMENT)
    if not len(chosen):
        return
    # Only the last of all pages may be part full, which is then the last of these.
    begin = chosen * pages.page_size
    end = np.minimum(begin + pages.page_size, values.shape[1])
    nothing = np.zeros(len(chosen), np.int64)
    runs = PageRuns(page_ids[chosen], nothing, nothing, end - begin)
    decoded = values.new_empty((pages.num_heads, runs.num_tokens, pages.head_dim))
    decode(pages.unrefined(), runs, decoded, start=0, rope=None)
    if len(chosen) < len(page_ids):
        tokens = np.concatenate([np.arange(*ends) for ends in zip(begin, end, strict=True)])
        values = values[:, to_device(tokens, values.device)]
    left = torch.sub(values, decoded, out=decoded)
    no_ids = pages.ids.new_empty((pages.num_heads, 0, runs.num_tokens))
    _store(pages.refinement_pages(), refined[chosen].astype(np.int64), left, no_ids, slot)


def assign_stages(pages: CodedPages, points: Points, slot: int) -> tuple[Tensor, Points, Tensor]:
    """Stage after stage, the nearest centroid of what the one before left.

    Returns the ids, uint8 [heads, stages, tokens]; what is left; and how many rows took each
    centroid, int64 [heads, stages, centroids of the spec].
    """
    num_heads, num_tokens, _ = points.values.shape
    spec = pages.spec
    ids = points.values.new_empty((num_heads, spec.stages, num_tokens), dtype=torch.uint8)
    counts = points.energy.new_zeros((num_heads, spec.stages, spec.centroids), dtype=torch.int64)
    for stage in range(spec.stages if num_tokens else 0):
        centroids = stage_centroids(pages, slot, stage)
        ids[:, stage] = kmeans.assign(points.values, centroids, name="residuals").ids
        points, taken = subtract(points.values, centroids, ids[:, stage])
        counts[:, stage, : taken.shape[1]] = taken
    return ids, points, counts


def _check(pages: CodedPages, page_ids: NDArray[np.integer], rows: Tensor, slot: int) -> None:
    """The kernels do not check bounds."""
    assert rows.shape[1:] == (pages.num_heads, pages.head_dim), rows.shape
    assert rows.shape[0] <= len(page_ids) * pages.page_size, (rows.shape, page_ids)
    if len(page_ids):
        assert 0 <= page_ids.min() <= page_ids.max() < pages.num_pages, page_ids
    assert 0 <= slot < pages.codebooks.num_slots, slot
    assert pages.codebooks.counts[slot] > 0 or not pages.spec.stages, slot


def _check_refined(
    pages: CodedPages, page_ids: NDArray[np.integer], refined: NDArray[np.int32]
) -> None:
    assert refined.shape == (len(page_ids),), (refined.shape, page_ids)
    named = refined[refined != NO_REFINEMENT]
    if len(named):
        assert pages.refinement is not None
        assert 0 <= named.min() <= named.max() < pages.refinement.num_pages, named
        assert len(np.unique(named)) == len(named), named
