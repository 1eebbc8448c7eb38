"""Fitting a codebook to the rows that will be encoded with it."""

import torch
from torch import Tensor

from qvg_engine.kernels import kmeans
from qvg_engine.kernels.codec.pages import Codebooks, CodedPages
from qvg_engine.kernels.codec.residual import stage_centroids, subtract, to_points

LEAST_WIDTH = 2.0**-6
"""Least width of a channel, as a part of the head's root mean square.

A channel that is quiet in these rows may not be so in later ones: its width may then be too small
by any factor. The floor costs nothing now, since such a channel has next to none of the energy.
"""

FEWEST_ROWS = 2
"""Rows of a fit for each of its centroids, at least.

Where every row has a centroid to itself nothing is left, and the widths say nothing of later rows.
"""

_ROWS_AT_A_TIME = 256


def fit_codebook(
    pages: CodedPages,
    rows: Tensor,
    *,
    slot: int,
    num_centroids: int,
    seed: int,
    warm_from: int | None,
    iterations: int,
    name: str = "keys",
) -> None:
    """Fill the codebook in `slot`: k-means a stage, and the widths of what the last stage leaves.

    Args:
        pages: K or V of one layer.
        rows: [tokens, heads, head_dim], at least one token.
        slot: which codebook to replace; no page that is still read may refer to it.
        num_centroids: centroids of each stage, at most those of the spec. There will be fewer where
            there are not `FEWEST_ROWS` rows for each.
        seed: any whole number; the same rows and seed give the same codebook.
        warm_from: a codebook, maybe `slot`, whose centroids the fit starts from; if it has too few,
            the others are drawn, as all are for None.
        iterations: how often centroids move at most.
        name: what an error calls the rows.

    Each stage is fitted to what the one before left, with centroids as they are stored: rounded to
    nearest even, and within the range of their type. Raises `NonFiniteError` for NaN or infinity,
    before anything is written.
    """
    books = pages.codebooks
    assert rows.shape[0] > 0
    assert rows.shape[1:] == (pages.num_heads, pages.head_dim), rows.shape
    assert 1 <= num_centroids <= pages.spec.centroids, num_centroids
    assert 0 <= slot < books.num_slots, slot
    settings = kmeans.KMeansSettings(iterations=iterations)
    num_centroids = min(num_centroids, max(1, rows.shape[0] // FEWEST_ROWS))
    residual = to_points(rows, name).values
    known, old = _known_centroids(books, warm_from, num_centroids)
    books.counts[slot] = num_centroids
    for stage in range(pages.spec.stages):
        initial = residual.new_empty((pages.num_heads, num_centroids, pages.head_dim))
        if known < num_centroids:
            # Far apart from other seeds, and from other stages.
            stage_seed = seed + (stage << 120)
            initial.copy_(kmeans.initial_centroids(residual, num_centroids, seed=stage_seed))
        if known:
            initial[:, :known] = old[stage][:, :known]
        centroids = kmeans.fit(residual, initial, settings, name=name).centroids
        books.set_stage(slot, stage, centroids)
        stored = stage_centroids(pages, slot, stage)
        taken = kmeans.assign(residual, stored).ids
        residual = subtract(residual, stored, taken).points.values
    _fit_widths(books, residual, slot)


def _fit_widths(books: Codebooks, residual: Tensor, slot: int) -> None:
    """The root mean square of each channel, with floors."""
    if not books.has_widths:
        return
    power = _mean_squares(residual)
    of_head = power.mean(dim=1, keepdim=True).sqrt()
    widths = torch.maximum(power.sqrt(), LEAST_WIDTH * of_head)
    if books.rows.dtype == torch.uint8:
        widths = torch.where(of_head > 0, widths / of_head, 1.0)
    books.set_widths(slot, widths.float())


def _mean_squares(rows: Tensor) -> Tensor:
    """Over the tokens of fp32 [heads, tokens, head_dim], added up in fp64; [heads, head_dim]."""
    total = rows.new_zeros((rows.shape[0], rows.shape[2]), dtype=torch.float64)
    # Part by part: squares of all rows in fp64 would be twice the rows, in memory not used before.
    for part in rows.split(_ROWS_AT_A_TIME, dim=1):
        total += part.double().square_().sum(dim=1)
    return total / rows.shape[1]


def _known_centroids(
    books: Codebooks, warm_from: int | None, num_centroids: int
) -> tuple[int, list[Tensor]]:
    """How many centroids of each stage a fit starts from, and copies of them, stage by stage."""
    if warm_from is None:
        return 0, []
    old = [books.stage(warm_from, stage) for stage in range(books.num_stages)]
    return min(num_centroids, int(books.counts[warm_from])), old
