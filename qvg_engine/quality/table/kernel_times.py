"""What storing and reading rows takes, in processor time of one thread."""

import time
from collections.abc import Callable
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

    `encode_ms`, `decode_ms` (K rotated): for 1,000 tokens; `fit_ms`: for one codebook of K and one
    of V, fitted to one chunk, 0 where there is none.
    """

    encode_ms: float
    decode_ms: float
    fit_ms: float


def measure_times(
    page_format: PageFormat,
    capture: Capture,
    layer: int,
    *,
    centroids: int,
    repeats: int = 51,
) -> TimeFigures:
    """Medians over `repeats` calls, after one that warms up.

    Stored is one chunk at a time, as commits do; read is what the last chunk sees of its window.
    """
    page_format = with_centroids(page_format, centroids)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        keys, values = (
            _part_times(page_format, capture, layer, is_key=is_key, repeats=repeats)
            for is_key in (True, False)
        )
    finally:
        torch.set_num_threads(before)
    return TimeFigures(
        encode_ms=keys.encode_ms + values.encode_ms,
        decode_ms=keys.decode_ms + values.decode_ms,
        fit_ms=keys.fit_ms + values.fit_ms,
    )


def _part_times(
    page_format: PageFormat, capture: Capture, layer: int, *, is_key: bool, repeats: int
) -> TimeFigures:
    recorded = capture.layers[layer]
    rows = (recorded.keys if is_key else recorded.values).float()
    stored = store_rows(
        rows, page_format, is_key=is_key, seed=0, fit_tokens=capture.chunk_tokens[0]
    )
    last = len(capture.chunk_tokens) - 1
    chunk = rows[capture.chunk(last)].contiguous()
    page_ids = np.arange(-(-len(chunk) // stored.pages.page_size))
    runs = stored.runs(*capture.seen_by(last))
    out = torch.empty(stored.pages.num_heads, runs.num_tokens, stored.pages.head_dim)
    rope = capture.transform.rope if is_key else None

    def store() -> None:
        pages = stored.pages
        if isinstance(pages, CodedPages):
            encode_span(pages, page_ids, chunk, slot=0)
        else:
            encode(pages, page_ids, chunk)

    return TimeFigures(
        decode_ms=_milliseconds(
            lambda: decode(stored.pages, runs, out, start=0, rope=rope), repeats
        )
        * (1000 / runs.num_tokens),
        encode_ms=_milliseconds(store, repeats) * (1000 / len(chunk)),
        fit_ms=_fit_ms(page_format, stored, chunk, repeats),
    )


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
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1000 * median(times)
