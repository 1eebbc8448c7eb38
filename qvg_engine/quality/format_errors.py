"""What a format does to captured K and V, and to attention over them.

* Error of K (before RoPE, which changes no norm) and of V: the energy of what is lost over that of
  the rows, all heads and tokens of a layer together.
* Error of attention's output, teacher-forced: the captured queries of every chunk but the first
  see the cached tokens of their window as the format stores them, rotated, and the chunk's own
  tokens exactly; the norm of the difference to exact attention over the norm of that, over all
  these chunks.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from qvg_engine.block_manager.format import PageFormat
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.paged_attention import (
    DenseSegment,
    EightBitWorkspace,
    LayerPages,
    PagedSegment,
    Segment,
    Strategy,
    Workspace,
    paged_attention,
)
from qvg_engine.quality.capture import Capture
from qvg_engine.quality.comparison import without_centroids
from qvg_engine.quality.figures import BookErrors, EightBitErrors, FormatErrors
from qvg_engine.quality.stored import StoredRows, store_rows


class LayerErrors:
    """Measures formats on one layer of a capture.

    Args:
        capture: at least two chunks.
        layer: one that was captured.
        video: the capture's number, for the figures and for the seeds of k-means.
        seed: of k-means.
        fit_tokens: fit codebooks to so many of the first tokens; None: to all.

    Raises `ConfigError` for a capture of a single chunk, which reads no cache.
    """

    def __init__(
        self,
        capture: Capture,
        layer: int,
        *,
        video: int = 0,
        seed: int = 0,
        fit_tokens: int | None = None,
    ) -> None:
        if len(capture.chunk_tokens) < 2:
            raise ConfigError("the capture has 1 chunk: give at least 2, the first reads no cache")
        self._capture = capture
        self._layer = layer
        self._video = video
        self._seed = 2 * layer + (seed << 32) + (video << 64)
        self._fit_tokens = fit_tokens
        self._rows = capture.layers[layer]
        self._transform = capture.transform
        _, heads, head_dim = self._rows.keys.shape
        self._workspace = Workspace(
            num_heads=heads,
            head_dim=head_dim,
            max_tokens=capture.num_tokens,
            device=self._rows.keys.device,
            dtype=torch.float32,
        )
        self._exact = list(self._outputs(None))

    def measure(self, page_format: PageFormat) -> tuple[BookErrors, StoredRows]:
        """The errors of a format, and its keys as they were stored (for their bits)."""
        keys = self._store(page_format, is_key=True)
        values = self._store(page_format, is_key=False)
        codec = page_format.codec
        plain = None
        if codec is not None and codec.stages:
            plain = PageFormat(name=page_format.name, codec=without_centroids(codec))
        figures = BookErrors(
            video=self._video,
            layer=self._layer,
            key_error=squared_error(keys.decoded(), self._rows.keys),
            value_error=squared_error(values.decoded(), self._rows.values),
            attention_error=self._attention_error(LayerPages(keys.pages, values.pages), keys),
            key_error_unsmoothed=self._own_error(plain, is_key=True),
            value_error_unsmoothed=self._own_error(plain, is_key=False),
        )
        return figures, keys

    def measure_eight_bit(self, page_format: PageFormat) -> EightBitErrors:
        """What 8-bit attention over pages of a format adds to the format's own error.

        The codebooks are those of `measure`. Raises `ConfigError` for heads that 8-bit attention
        does not take.
        """
        keys = self._store(page_format, is_key=True)
        values = self._store(page_format, is_key=False)
        cached = (LayerPages(keys.pages, values.pages), keys)
        _, heads, head_dim = self._rows.keys.shape
        narrow, halves = (
            list(
                self._outputs(
                    cached,
                    EightBitWorkspace(
                        num_heads=heads,
                        head_dim=head_dim,
                        max_tokens=self._capture.num_tokens,
                        device=self._rows.keys.device,
                        value_dtype=value_dtype,
                    ),
                )
            )
            for value_dtype in (torch.uint8, torch.float16)
        )
        plain = list(self._outputs(cached))
        return EightBitErrors(
            name=page_format.name,
            layer=self._layer,
            format_error=self._relative(plain, self._exact),
            total_error=self._relative(narrow, self._exact),
            added_error=self._relative(narrow, plain),
            added_error_fp16=self._relative(halves, plain),
        )

    def exact_outputs(self) -> list[Tensor]:
        """Attention of every chunk but the first, [tokens, heads, head_dim], nothing rounded."""
        return self._exact

    def _store(self, page_format: PageFormat, *, is_key: bool) -> StoredRows:
        return store_rows(
            self._rows.keys if is_key else self._rows.values,
            page_format,
            is_key=is_key,
            seed=self._seed + (not is_key),
            fit_tokens=self._fit_tokens,
        )

    def _own_error(self, plain: PageFormat | None, *, is_key: bool) -> float | None:
        if plain is None:
            return None
        rows = self._rows.keys if is_key else self._rows.values
        return squared_error(self._store(plain, is_key=is_key).decoded(), rows)

    def _attention_error(self, pages: LayerPages, stored: StoredRows) -> float:
        return self._relative(list(self._outputs((pages, stored))), self._exact)

    def _relative(self, outputs: Sequence[Tensor], others: Sequence[Tensor]) -> float:
        """The norm of the difference over that of exact attention, over all chunks."""
        pairs = zip(outputs, others, strict=True)
        lost = sum(_energy(output.double() - other.double()) for output, other in pairs)
        return math.sqrt(lost / sum(_energy(exact.double()) for exact in self._exact))

    def _outputs(
        self,
        cached: tuple[LayerPages, StoredRows] | None,
        eight_bit: EightBitWorkspace | None = None,
    ) -> Iterator[Tensor]:
        strategy: Strategy = "workspace" if eight_bit is None else "eight-bit"
        capture, positions = self._capture, self._capture.positions
        for index in range(1, len(capture.chunk_tokens)):
            own, seen = capture.chunk(index), capture.seen_by(index)
            segments: list[Segment] = []
            if cached is None:
                segments += [self._dense(part) for part in seen]
            else:
                segments.append(PagedSegment(cached[0], cached[1].runs(*seen)))
            yield paged_attention(
                self._rows.queries[own].float(),
                [*segments, self._dense(own)],
                workspace=eight_bit or self._workspace,
                transform=self._transform,
                query_positions=positions[own],
                strategy=strategy,
            )

    def _dense(self, part: slice) -> DenseSegment:
        return DenseSegment(
            keys=self._rows.keys[part],
            values=self._rows.values[part],
            positions=self._capture.positions[part],
        )


def squared_error(read: Tensor, rows: Tensor) -> float:
    """The energy of the difference over that of the rows, in fp64."""
    rows = rows.double()
    return _energy(read.double() - rows) / _energy(rows)


def summarise(
    page_format: PageFormat, measured: Sequence[tuple[BookErrors, StoredRows]]
) -> FormatErrors:
    """The means over layers and videos of what `LayerErrors.measure` returned."""
    books = tuple(figures for figures, _ in measured)
    stored = [keys for _, keys in measured]
    codec = page_format.codec

    def mean(name: str) -> float:
        return float(np.mean([getattr(book, name) for book in books]))

    def gain(name: str) -> float | None:
        if codec is None or not codec.stages:
            return None
        return mean(f"{name}_unsmoothed") / mean(name)

    return FormatErrors(
        name=page_format.name,
        centroids=codec.centroids if codec is not None and codec.stages else 0,
        bits=float(np.mean([keys.bits_per_element for keys in stored])),
        codebook_bits=float(np.mean([keys.codebook_bits for keys in stored])),
        key_error=mean("key_error"),
        value_error=mean("value_error"),
        attention_error=mean("attention_error"),
        key_smoothing_gain=gain("key_error"),
        value_smoothing_gain=gain("value_error"),
        books=books,
    )


def _energy(x: Tensor) -> float:
    return float(x.square().sum())
