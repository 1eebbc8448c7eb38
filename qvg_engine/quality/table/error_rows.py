"""The errors of contenders over all captures and layers, and against the baseline."""

from collections.abc import Callable, Iterable, Sequence

import msgspec
import numpy as np

from qvg_engine.quality.table.books import BookFigures
from qvg_engine.quality.table.bootstrap import Interval, mean_interval, ratio_interval
from qvg_engine.quality.table.part_names import PartNames
from qvg_engine.quality.table.parts import Parts

_Books = dict[tuple[int, int], BookFigures]
"""By video and layer."""


class LayerErrors(msgspec.Struct, frozen=True, kw_only=True):
    """The mean errors of one layer over the captures."""

    layer: int
    key_error: float
    value_error: float
    attention_error: float


class ErrorRow(msgspec.Struct, frozen=True, kw_only=True):
    """One contender with so many centroids a stage.

    `num_books`: layers of captures that it was measured on; `num_tokens`: of the shortest of them,
    and as many as a codebook served. `bits` and `shared_bits` an element:
    means of K and V. `bytes_per_token`: K and V of all layers captured, what tokens share included.
    `keys` and `values`: squared relative errors; `attention`: the relative error of attention's
    output. The `_ratio` ones are over the baseline's on the same layers of the same captures; None
    for the baseline itself, or without it. `key_chunks`, `value_chunks`, `attention_chunks`: means
    by chunk of a video; the last for the chunks of `attended`.
    """

    name: str
    centroids: int
    num_books: int
    num_tokens: int
    bits: float
    shared_bits: float
    bytes_per_token: float
    keys: Interval
    values: Interval
    attention: Interval
    key_ratio: Interval | None
    value_ratio: Interval | None
    attention_ratio: Interval | None
    layers: tuple[LayerErrors, ...]
    key_chunks: tuple[float, ...]
    value_chunks: tuple[float, ...]
    attended: tuple[int, ...]
    attention_chunks: tuple[float, ...]

    @property
    def total_bits(self) -> float:
        """All bits of an element."""
        return self.bits + self.shared_bits


def error_rows(names: PartNames, parts: Parts) -> Iterable[ErrorRow]:
    """A row for every contender that was measured at all, by number of centroids."""
    settings = names.settings
    for centroids in settings.centroids:
        books: dict[str, _Books] = {}
        for name, video, layer in names.all_errors():
            found = parts.read(names.errors(name, centroids, video, layer), BookFigures)
            if found is not None:
                books.setdefault(name, {})[video, layer] = found
        for name, measured in books.items():
            baseline = books.get(settings.baseline) if name != settings.baseline else None
            yield _row(name, centroids, measured, baseline, seed=settings.seed)


def _row(
    name: str, centroids: int, books: _Books, baseline: _Books | None, *, seed: int
) -> ErrorRow:
    all_books = list(books.values())
    ratios: list[Interval | None] = [None, None, None]
    if baseline is not None and baseline.keys() & books.keys():
        shared = {place: book for place, book in books.items() if place in baseline}
        theirs = {place: baseline[place] for place in shared}
        ratios = [
            ratio_interval(_by_video(shared, figure), _by_video(theirs, figure), seed=seed)
            for figure in _FIGURES
        ]
    keys, values, attention = (
        mean_interval(_by_video(books, figure), seed=seed) for figure in _FIGURES
    )
    layers = sorted({layer for _, layer in books})
    return ErrorRow(
        name=name,
        centroids=centroids,
        num_books=len(books),
        num_tokens=min(book.num_tokens for book in all_books),
        bits=_mean([(book.keys.bits + book.values.bits) / 2 for book in all_books]),
        shared_bits=_mean(
            [(book.keys.shared_bits + book.values.shared_bits) / 2 for book in all_books]
        ),
        bytes_per_token=len(layers)
        * _mean([book.num_bytes / book.num_tokens for book in all_books]),
        keys=keys,
        values=values,
        attention=attention,
        key_ratio=ratios[0],
        value_ratio=ratios[1],
        attention_ratio=ratios[2],
        layers=tuple(_layer(books, layer) for layer in layers),
        key_chunks=_curve([book.keys.chunk_errors for book in all_books]),
        value_chunks=_curve([book.values.chunk_errors for book in all_books]),
        attended=all_books[0].chunks,
        attention_chunks=_curve([book.attention_chunk_errors for book in all_books]),
    )


def _key_error(book: BookFigures) -> float:
    return book.keys.error


def _value_error(book: BookFigures) -> float:
    return book.values.error


def _attention_error(book: BookFigures) -> float:
    return book.attention_error


_FIGURES: tuple[Callable[[BookFigures], float], ...] = (_key_error, _value_error, _attention_error)


def _layer(books: _Books, layer: int) -> LayerErrors:
    chosen = [book for (_, number), book in books.items() if number == layer]
    keys, values, attention = (_mean(list(map(figure, chosen))) for figure in _FIGURES)
    return LayerErrors(layer=layer, key_error=keys, value_error=values, attention_error=attention)


def _by_video(books: _Books, figure: Callable[[BookFigures], float]) -> list[list[float]]:
    """A list of layers for each video."""
    groups: dict[int, list[float]] = {}
    for (video, _), book in books.items():
        groups.setdefault(video, []).append(figure(book))
    return list(groups.values())


def _curve(curves: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(map(float, np.mean(np.asarray(curves), axis=0)))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
