"""Centroids and a coded residual, in all the ways that are compared."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from qvg_engine.checks import check_choice, check_range
from qvg_engine.kernels import kmeans
from qvg_engine.quality.contender import RoundTrip
from qvg_engine.quality.contenders.centroids import CENTROID_BITS, CentroidType, stored_centroids
from qvg_engine.quality.contenders.residual import ResidualCoder, ResidualFormat
from qvg_engine.quality.stored import KMEANS_ITERATIONS

_ID_BITS = 8


class SmoothedContender(msgspec.Struct, frozen=True, kw_only=True):
    """Stages of k-means, and a format of what they leave; each stage is fitted as the engine does.

    With one candidate, no refits and `TokenGroups` it stores what a page format of the same
    settings does.

    * `residual`: how the residual of the last stage is stored.
    * `stages`: 1 to 8.
    * `centroid_type`: see `stored_centroids`. Ids are of the centroids as they are stored.
    * `candidates`: how many of the nearest centroids a token tries in each stage, 1 to 8: the
      residual of every path through the stages is stored, and the path with the least error after
      that is kept. Needs a residual whose tokens do not depend on each other.
    * `refits`: 0 to 100: so often every centroid, stage after stage, moves to the mean of what its
      tokens' stored residuals and other centroids leave of them, widths are fitted anew, and all is
      stored again with the nearest centroids. The codebook with the least error is kept, and used
      with all `candidates`. It costs time, and no bits.

    Raises `ConfigError` naming field, value and range.
    """

    name: str
    residual: ResidualFormat
    stages: int = 1
    centroid_type: CentroidType = "float16"
    candidates: int = 1
    refits: int = 0

    def __post_init__(self) -> None:
        check_range("stages", self.stages, 1, 8)
        check_range("candidates", self.candidates, 1, 8)
        check_range("refits", self.refits, 0, 100)
        check_choice("centroid_type", self.centroid_type, tuple(CENTROID_BITS))
        assert self.candidates == 1 or self.residual.tokens_are_apart, self.residual

    def round_trip(self, rows: Tensor, *, is_key: bool, seed: int, centroids: int) -> RoundTrip:
        """See `Contender`. Raises `NonFiniteError` for NaN or infinity."""
        num_tokens, _, head_dim = rows.shape
        count = min(centroids, kmeans.MAX_CENTROIDS)
        points = rows.float().transpose(0, 1).contiguous()
        books, left = self._fit(points, count, seed=seed, name="keys" if is_key else "values")
        coder = self.residual.fit(left.transpose(0, 1), is_key=is_key)
        if self.refits:
            books, coder = self._refitted(points, books, coder, is_key=is_key)
        read = _store(points, books, coder, self.candidates).rows
        per_centroid, per_channel = CENTROID_BITS[self.centroid_type]
        codebook_bits = self.stages * (count * per_centroid + per_channel) / num_tokens
        return RoundTrip(
            rows=read.transpose(0, 1).contiguous(),
            bits=coder.bits + self.stages * _ID_BITS / head_dim,
            shared_bits=coder.shared_bits + codebook_bits,
        )

    def _fit(
        self, points: Tensor, count: int, *, seed: int, name: str
    ) -> tuple[list[Tensor], Tensor]:
        """Stored centroids of each stage, and what the nearest ones leave [heads, tokens, dim]."""
        settings = kmeans.KMeansSettings(iterations=KMEANS_ITERATIONS)
        books = []
        for stage in range(self.stages):
            # The same seeds as the engine's.
            initial = kmeans.initial_centroids(points, count, seed=seed + (stage << 120), name=name)
            fitted = kmeans.fit(points, initial, settings, name=name).centroids
            stored = stored_centroids(fitted, self.centroid_type)
            points = points - _taken(stored, kmeans.assign(points, stored).ids)
            books.append(stored)
        return books, points

    def _refitted(
        self, points: Tensor, books: list[Tensor], coder: ResidualCoder, *, is_key: bool
    ) -> tuple[list[Tensor], ResidualCoder]:
        """The best of these books and widths, and of all refits."""
        stored = _store(points, books, coder, 1)
        best, least = (books, coder), stored.error
        for _ in range(self.refits):
            books, left = self._moved(points, books, stored)
            coder = self.residual.fit(left.transpose(0, 1), is_key=is_key)
            stored = _store(points, books, coder, 1)
            if stored.error < least:
                best, least = (books, coder), stored.error
        return best

    def _moved(
        self, points: Tensor, books: Sequence[Tensor], stored: "_Stored"
    ) -> tuple[list[Tensor], Tensor]:
        """As `_fit`, from codes and ids; the ids stay."""
        moved, error = [], points - stored.rows
        for book, ids in zip(books, stored.ids, strict=True):
            old = _taken(book, ids)
            means = _means(error + old, ids, book)
            moved.append(stored_centroids(means, self.centroid_type))
            error = error + old - _taken(moved[-1], ids)
        return moved, error + stored.residual


class _Stored(NamedTuple):
    """Points as they are stored.

    rows: [heads, tokens, head_dim], as they are read back; residual: without centroids.
    ids: [heads, tokens] of each stage.
    error: the energy of what is lost.
    """

    rows: Tensor
    residual: Tensor
    ids: tuple[Tensor, ...]
    error: float


class _Path(NamedTuple):
    """A choice of centroids: what it leaves, the centroids and their ids, stage by stage."""

    left: Tensor
    taken: tuple[Tensor, ...]
    ids: tuple[Tensor, ...]


def _store(
    points: Tensor, books: Sequence[Tensor], coder: ResidualCoder, candidates: int
) -> _Stored:
    """Every point by its best path."""
    rows = residual = torch.zeros_like(points)
    ids = [points.new_zeros(points.shape[:2], dtype=torch.uint8)] * len(books)
    least = points.new_full((*points.shape[:2], 1), torch.inf, dtype=torch.float64)
    for path in _paths(points, books, candidates):
        read = coder.read_back(path.left.transpose(0, 1)).transpose(0, 1)
        error = (path.left - read).double().square().sum(dim=-1, keepdim=True)
        better = error < least
        residual = torch.where(better, read, residual)
        ids = [torch.where(better[..., 0], *pair) for pair in zip(path.ids, ids, strict=True)]
        for centroid in path.taken:
            read = read + centroid
        rows = torch.where(better, read, rows)
        least = torch.minimum(error, least)
    return _Stored(rows, residual, tuple(ids), float(least.sum()))


def _paths(points: Tensor, books: Sequence[Tensor], candidates: int) -> Iterator[_Path]:
    """All paths of the nearest centroids; the first takes the very nearest in every stage."""
    if not books:
        yield _Path(points, (), ())
        return
    for ids in _nearest(points, books[0], candidates):
        taken = _taken(books[0], ids)
        for rest in _paths(points - taken, books[1:], candidates):
            yield _Path(rest.left, (taken, *rest.taken), (ids, *rest.ids))


def _nearest(points: Tensor, centroids: Tensor, candidates: int) -> Iterator[Tensor]:
    """Ids uint8 [heads, tokens] of the nearest centroid, of the next nearest, and so on."""
    first = kmeans.assign(points, centroids).ids
    yield first
    if candidates == 1:
        return
    # About the mean of the centroids an offset that all points share costs no precision.
    mean = centroids.mean(dim=1, keepdim=True)
    centred = centroids - mean
    distances = torch.baddbmm(
        centred.square().sum(dim=-1)[:, None], points - mean, centred.transpose(1, 2), alpha=-2
    )
    distances.scatter_(2, first.long()[..., None], torch.inf)
    others = min(candidates, centroids.shape[1]) - 1
    yield from distances.topk(others, dim=2, largest=False).indices.to(torch.uint8).unbind(2)


def _taken(centroids: Tensor, ids: Tensor) -> Tensor:
    """The centroid of every token, [heads, tokens, head_dim]."""
    heads = torch.arange(centroids.shape[0], device=ids.device)
    return centroids[heads[:, None], ids.long()]


def _means(points: Tensor, ids: Tensor, old: Tensor) -> Tensor:
    """The mean of the points of each id, fp32 like `old`, which stays where there are none."""
    heads, count, head_dim = old.shape
    first = torch.arange(heads, device=ids.device)[:, None] * count
    places = (first + ids.long()).flatten()
    sums = points.new_zeros((heads * count, head_dim), dtype=torch.float64)
    sums.index_add_(0, places, points.flatten(0, 1).double())
    sizes = places.bincount(minlength=heads * count)[:, None]
    means = (sums / sizes.clamp(min=1)).float().view_as(old)
    return torch.where(sizes.view(heads, count, 1) > 0, means, old)
