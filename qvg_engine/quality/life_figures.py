"""What a life of codebooks costs and is worth, on one capture."""

import time
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from qvg_engine.block_manager.format import PageFormat
from qvg_engine.config import EngineConfig
from qvg_engine.engine import VideoEngine
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.capture import Capture
from qvg_engine.quality.codebook_life import (
    Life,
    Replay,
    codebook_bits,
    codebook_centroids,
    replay,
)
from qvg_engine.quality.format_errors import squared_error
from qvg_engine.quality.teacher_forced import TeacherForced
from qvg_engine.request import VideoRequest


class LifeFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Means over layers.

    * `live`: codebooks that a book has at most; `centroids`: of a stage of each, 0 where the budget
      does not give so many codebooks a single one: then there are no other figures.
    * `bits`: of codes, scales and ids, an element; `codebook_bits`: of codebooks.
    * `key_error`, `value_error`: squared and relative; `attention_error`: relative.
    * `fits`: fits of a book; `fit_ms`: processor time of fitting a book once; `encode_ms`: of
      storing a chunk in one.
    """

    name: str
    live: int
    centroids: int
    bits: float
    codebook_bits: float
    key_error: float = 0.0
    value_error: float = 0.0
    attention_error: float = 0.0
    fits: float = 0.0
    fit_ms: float = 0.0
    encode_ms: float = 0.0

    @property
    def total_bits(self) -> float:
        """All bits of an element."""
        return self.bits + self.codebook_bits


def measure_life(
    name: str,
    capture: Capture,
    forced: Mapping[int, TeacherForced],
    page_format: PageFormat,
    life: Life,
    *,
    overhead: float,
    kept_chunks: int,
    seed: int = 0,
) -> LifeFigures:
    """Store every layer of `forced` under a life, and compare what is read back.

    Args:
        name: what the figures are called.
        capture: of chunks of equal length.
        forced: the chunks of each layer whose attention is compared.
        page_format: one with centroids.
        life: of its codebooks.
        overhead: bits an element that they may take.
        kept_chunks: chunks that are kept at a time.
        seed: of k-means.
    """
    chunk_tokens = capture.chunk_tokens
    assert len(set(chunk_tokens)) == 1, "chunks of several lengths"
    chunks = len(chunk_tokens)
    kept = min(kept_chunks, chunks)
    held = {"kept": kept, "chunks": chunks, "tokens": kept * chunk_tokens[0]}
    centroids = codebook_centroids(page_format, life, overhead=overhead, **held)
    spec = page_format.codec
    assert spec is not None
    head_dim = capture.layers[next(iter(forced))].keys.shape[2]
    figures = LifeFigures(
        name=name,
        live=life.live(kept_chunks=kept, num_chunks=chunks),
        centroids=centroids,
        bits=spec.for_head_dim(head_dim).bits_per_element(head_dim),
        codebook_bits=codebook_bits(page_format, life, centroids, **held),
    )
    if not centroids:
        return figures
    errors, books = [], []
    for layer, attends in forced.items():
        rows = capture.layers[layer]
        keys, values = (
            replay(
                part,
                chunk_tokens,
                page_format,
                life,
                kept_chunks=kept,
                centroids=centroids,
                is_key=is_key,
                seed=2 * layer + (not is_key) + (seed << 32),
            )
            for part, is_key in ((rows.keys, True), (rows.values, False))
        )
        books += [keys, values]
        errors.append(
            (
                squared_error(keys.decoded, rows.keys),
                squared_error(values.decoded, rows.values),
                attends.error(keys.decoded, values.decoded),
            )
        )
    key_error, value_error, attention_error = np.mean(errors, axis=0).tolist()
    return msgspec.structs.replace(
        figures,
        key_error=key_error,
        value_error=value_error,
        attention_error=attention_error,
        **_costs(books, chunks),
    )


def _costs(books: Sequence[Replay], chunks: int) -> dict[str, float]:
    fits = sum(book.fits for book in books)
    fit_seconds = sum(book.fit_seconds for book in books)
    encode_seconds = sum(book.encode_seconds for book in books)
    return {
        "fits": fits / len(books),
        "fit_ms": 1000 * fit_seconds / fits,
        "encode_ms": 1000 * encode_seconds / (chunks * len(books)),
    }


def passes_ms(family: ModelFamily, config: EngineConfig, request: VideoRequest) -> float:
    """Processor time of the engine's steps for a chunk that sees a full window, in milliseconds.

    Of the last third of the chunks; the request should be long enough for those to see one.
    """
    engine = VideoEngine(config, family=family)
    engine.add_request(request)
    seconds = []
    while engine.has_unfinished_requests():
        started = time.process_time()
        outputs = engine.step()
        seconds.append((time.process_time() - started, len(outputs)))
    last = seconds[len(seconds) - len(seconds) // 3 :]
    return 1000 * sum(spent for spent, _ in last) / sum(number for _, number in last)
