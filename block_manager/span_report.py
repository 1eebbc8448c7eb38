"""What writing one span's pages says, while it may still be computed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from torch import Tensor

from qvg_engine.block_manager.cache_layout import CacheLayout
from qvg_engine.block_manager.codebooks import SpanFigures
from qvg_engine.kernels.codec import PendingFigures
from qvg_engine.kernels.kmeans.finite import DeferredChecks, deferred_checks


class SpanReport:
    """Filled by `PageStore.write`, layer by layer; read once its tensors are on the host."""

    def __init__(self, layout: CacheLayout) -> None:
        self._layout = layout
        self._checks = DeferredChecks()
        self._books: dict[int, tuple[PendingFigures, int]] = {}

    @contextmanager
    def checking(self) -> Iterator[None]:
        """Within it, rows on a GPU that may be NaN or infinite are noted; `read` tells."""
        with deferred_checks(self._checks):
            yield

    def note(self, book: int, figures: PendingFigures, num_centroids: int) -> None:
        """Take in what encoding one book's rows says."""
        self._books[book] = figures, num_centroids

    @property
    def tensors(self) -> list[Tensor]:
        """All that `read` needs, where it is computed."""
        figures = [x for pending, _ in self._books.values() for x in pending.tensors]
        return [*self._checks.flags, *figures]

    def read(self, tensors: Sequence[Tensor]) -> SpanFigures:
        """The figures of all books; `tensors` are those of the property, on the host.

        Raises `NonFiniteError` if a row was NaN or infinite: its pages are not to be used.
        """
        num_checks = len(self._checks.flags)
        self._checks.require(tensors[:num_checks])
        found = self._empty()
        rest = iter(tensors[num_checks:])
        for book, (_, num_centroids) in self._books.items():
            energy, residual, _, counts = (next(rest).numpy() for _ in range(4))
            found.energy[book] = energy.sum()
            found.residual[book] = residual.sum()
            taken = counts.reshape(-1, counts.shape[-1])
            found.counts[book, : taken.shape[0], : taken.shape[1]] = taken
            found.num_centroids[book] = num_centroids
        return found

    def _empty(self) -> SpanFigures:
        books = self._layout.num_books
        specs = [f.codec for f in self._layout.coded_formats if f.codec is not None]
        groups = max(spec.stages for spec in specs) * self._layout.geometry.num_kv_heads
        centroids = max(spec.centroids for spec in specs)
        return SpanFigures(
            energy=np.zeros(books, np.float32),
            residual=np.zeros(books, np.float32),
            counts=np.zeros((books, groups, centroids), np.int32),
            num_centroids=np.zeros(books, np.int32),
        )
