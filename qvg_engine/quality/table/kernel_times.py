"""What storing and reading rows takes, in processor time of one thread."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import msgspec
import numpy as np
import torch

from qvg_engine.block_manager.format import PageFormat
from qvg_engine.kernels.codec import CodedPages, encode_span, fit_codebook
from qvg_engine.kernels.paged_attention import decode, encode
from qvg_engine.quality.capture import Capture
from qvg_engine.quality.comparison import with_centroids
from qvg_engine.quality.stored import KMEANS_ITERATIONS, StoredRows, store_rows


class TimeFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds for K and V of one layer, all heads, by one thread.

    `encode_ms`, `decode_ms` (K rotated): for 1,000 tokens; `decode_ratio`: over the baseline's, of
    times that were taken in turns, None without a baseline; `fit_ms`: for one codebook of K and one
    of V, fitted to one chunk, 0 where there is none.
    """

    encode_ms: float
    decode_ms: float
    decode_ratio: float | None
    fit_ms: float


def measure_times(
    page_format: PageFormat,
    capture: Capture,
    layer: int,
    *,
    centroids: int,
    baseline: PageFormat | None,
    repeats: int = 51,
) -> TimeFigures:
    """Medians over `repeats` calls, after one that warms up.

    Stored is one chunk at a time, as commits do; read is what the last chunk sees of its window.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        compared = [
            [
                _Part(with_centroids(item, centroids), capture, layer, is_key=is_key)
                for is_key in (True, False)
            ]
            for item in (page_format, baseline)
            if item is not None
        ]
        ours, tokens = compared[0], compared[0][0].num_read
        reads = _in_turns([partial(_decode_all, parts) for parts in compared], repeats)
        decode_ms, *baseline_ms = map(median, reads)
        return TimeFigures(
            encode_ms=sum(part.encode_ms(repeats) for part in ours),
            decode_ms=decode_ms * (1000 / tokens),
            decode_ratio=decode_ms / baseline_ms[0] if baseline_ms else None,
            fit_ms=sum(
                _fit_ms(part.page_format, part.stored, part.chunk, repeats) for part in ours
            ),
        )
    finally:
        torch.set_num_threads(before)


class _Part:
    """K or V of a captured layer, stored."""

    def __init__(
        self, page_format: PageFormat, capture: Capture, layer: int, *, is_key: bool
    ) -> None:
        recorded = capture.layers[layer]
        rows = (recorded.keys if is_key else recorded.values).float()
        last = len(capture.chunk_tokens) - 1
        self.page_format = page_format
        self.stored = store_rows(
            rows, page_format, is_key=is_key, seed=0, fit_tokens=capture.chunk_tokens[0]
        )
        self.chunk = rows[capture.chunk(last)].contiguous()
        self._runs = self.stored.runs(*capture.seen_by(last))
        self.num_read = self._runs.num_tokens
        pages = self.stored.pages
        self._out = torch.empty(pages.num_heads, self.num_read, pages.head_dim)
        self._rope = capture.transform.rope if is_key else None

    def decode(self) -> None:
        decode(self.stored.pages, self._runs, self._out, start=0, rope=self._rope)

    def encode_ms(self, repeats: int) -> float:
        """For 1,000 tokens."""
        pages = self.stored.pages
        page_ids = np.arange(-(-len(self.chunk) // pages.page_size))

        def store() -> None:
            if isinstance(pages, CodedPages):
                encode_span(pages, page_ids, self.chunk, slot=0)
            else:
                encode(pages, page_ids, self.chunk)

        return _milliseconds(store, repeats) * (1000 / len(self.chunk))


def _decode_all(parts: list[_Part]) -> None:
    for part in parts:
        part.decode()


def _fit_ms(
    page_format: PageFormat, stored: StoredRows, chunk: torch.Tensor, repeats: int
) -> float:
    pages, codec = stored.pages, page_format.codec
    if not isinstance(pages, CodedPages) or codec is None or not codec.stages:
        return 0.0

    def fit() -> None:
        fit_codebook(
            pages,
            chunk,
            slot=0,
            num_centroids=codec.centroids,
            seed=0,
            warm_from=None,
            iterations=KMEANS_ITERATIONS,
        )

    return _milliseconds(fit, repeats)


def _milliseconds(call: Callable[[], None], repeats: int) -> float:
    return median(_in_turns([call], repeats)[0])


def _in_turns(calls: Sequence[Callable[[], None]], repeats: int) -> list[list[float]]:
    """Milliseconds of each of the calls, which a machine that is slow for a while slows alike."""
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, found in zip(calls, times, strict=True):
            start = time.process_time()
            call()
            found.append(1000 * (time.process_time() - start))
    return times
