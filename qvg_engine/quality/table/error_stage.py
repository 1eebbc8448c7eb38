"""Errors of all contenders on the captures, and the times of those that the engine stores."""

from functools import partial

from qvg_engine.block_manager.format import PageFormat
from qvg_engine.quality.contenders.format import FormatContender
from qvg_engine.quality.contenders.registry import contender
from qvg_engine.quality.table.books import BookFigures, LayerBooks
from qvg_engine.quality.table.context import TableContext
from qvg_engine.quality.table.kernel_times import TimeFigures, measure_times


def measure_errors(context: TableContext) -> None:
    """The errors of every contender in every layer of every capture."""
    layers = _Layers(context)
    for centroids in context.names.settings.centroids:
        wanted = list(context.names.all_errors())
        what = f"errors, {centroids} centroids"
        context.on_progress(what, 0, len(wanted))
        for done, (name, video, layer) in enumerate(wanted, start=1):
            part = context.names.errors(name, centroids, video, layer)
            measure = partial(layers.measure, name, centroids, video, layer)
            context.measure(part, BookFigures, measure)
            context.on_progress(what, done, len(wanted))


class _Layers:
    """Holds the layer of a capture that is being measured: its exact attention is made once."""

    def __init__(self, context: TableContext) -> None:
        self._context = context
        self._held: tuple[int, int, LayerBooks] | None = None

    def measure(self, name: str, centroids: int, video: int, layer: int) -> BookFigures:
        if self._held is None or self._held[:2] != (video, layer):
            self._held = None
            settings = self._context.names.settings
            books = LayerBooks(
                self._context.capture(video),
                layer,
                video=video,
                seed=settings.seed,
                attend_every=settings.attend_every,
            )
            self._held = video, layer, books
        return self._held[2].measure(contender(name), centroids=centroids)


def measure_all_times(context: TableContext) -> None:
    """The times of every contender that is a page format, on the first layer captured."""
    settings = context.names.settings
    formats = [
        item.page_format
        for item in map(contender, settings.contenders)
        if isinstance(item, FormatContender)
    ]
    wanted = [(item, centroids) for centroids in settings.centroids for item in formats]
    context.on_progress("times", 0, len(wanted))
    for done, (page_format, centroids) in enumerate(wanted, start=1):
        part = context.names.times(page_format.name, centroids)
        context.measure(part, TimeFigures, partial(_times, context, page_format, centroids))
        context.on_progress("times", done, len(wanted))


def _times(context: TableContext, page_format: PageFormat, centroids: int) -> TimeFigures:
    baseline = contender(context.names.settings.baseline)
    return measure_times(
        page_format,
        context.capture(0),
        context.names.layers[0],
        centroids=centroids,
        # One that is simulated has no pages to read.
        baseline=baseline.page_format if isinstance(baseline, FormatContender) else None,
    )
