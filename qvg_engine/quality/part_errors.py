"""What each format costs each layer's K and V: the error of attention, part by part.

A part is the K or the V of one layer. Its error in a format is the squared relative error of the
layer's attention output, teacher-forced, with that part alone stored in the format, chunk by chunk
and with codebooks that live as the engine's do: the mean over the passes of a chunk, those of
denoising and the commit, whose queries differ much.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.block_manager.codebook_policy import CodebookPolicy
from qvg_engine.block_manager.format import PageFormat
from qvg_engine.errors import ConfigError
from qvg_engine.quality.capture import Capture
from qvg_engine.quality.codebook_life import Life, replay
from qvg_engine.quality.kv_prices import KvPrices
from qvg_engine.quality.teacher_forced import TeacherForced

NUM_ATTENDING = 2
"""Chunks whose queries attend, at most: spread over the capture, and its last one among them."""

PartErrors = NDArray[np.float64]
"""[overheads, layers, K or V, candidates]: see above; NaN where it was not measured."""


class LayerParts:
    """One layer of a capture, read back as formats store it.

    Args:
        captures: of the commit passes of at least two chunks, the first of which reads no cache;
            and of denoising passes of the same chunks, see `record_passes`.
        layer: one that was captured.
        policy: when codebooks are fitted anew.

    Raises `ConfigError` for a capture of a single chunk.
    """

    def __init__(self, captures: Sequence[Capture], layer: int, policy: CodebookPolicy) -> None:
        capture = captures[0]
        num_chunks = len(capture.chunk_tokens)
        if num_chunks < 2:
            raise ConfigError("the capture has 1 chunk: give at least 2, the first reads no cache")
        self._capture = capture
        self._layer = layer
        window = capture.info.window_tokens
        tokens = max(capture.chunk_tokens)
        self._kept = num_chunks if window is None else max(1, window // tokens)
        # The engine fits to tokens that are evenly spread over what is kept, this to the newest:
        # the same, where a policy asks for as many as a window keeps.
        fitted = 1 + min(self._kept - 1, policy.fit_tokens // tokens)
        engine = policy.for_streams(windowed=window is not None)
        self._life = Life(policy=engine, fit_chunks=fitted)
        step = -(-(num_chunks - 1) // NUM_ATTENDING)
        self.rows = capture.layers[layer]
        chunks = range(num_chunks - 1, 0, -step)
        self.passes = tuple(
            TeacherForced(capture, layer, chunks, asking=asking.layers[layer])
            for asking in captures
        )

    def read(self, page_format: PageFormat, centroids: int, *, is_key: bool) -> Tensor:
        """K or V with codebooks of so many centroids a stage, fp32 [tokens, heads, head_dim]."""
        return replay(
            self.rows.keys if is_key else self.rows.values,
            self._capture.chunk_tokens,
            page_format,
            self._life,
            kept_chunks=self._kept,
            centroids=centroids,
            is_key=is_key,
            # The engine's, where K and V both have codebooks.
            seed=2 * self._layer + (not is_key),
        ).decoded

    def error(self, page_format: PageFormat, centroids: int, *, is_key: bool) -> float:
        """The squared error of attention with K or V alone in a format."""
        read = self.read(page_format, centroids, is_key=is_key)
        keys, values = (read, self.rows.values) if is_key else (self.rows.keys, read)
        return float(np.mean([forced.error(keys, values) ** 2 for forced in self.passes]))


def measure_parts(
    captures: Sequence[Capture],
    prices: KvPrices,
    policy: CodebookPolicy,
    *,
    overheads: tuple[float, ...],
    on_part: Callable[[int, int], None] = lambda done, total: None,
) -> PartErrors:
    """The errors of all candidates under some of the overheads, in all layers.

    `captures` are as in `LayerParts`. `on_part` is told how many parts of how many are done. Raises
    `ConfigError` for a capture of some layers only, or of one chunk.
    """
    num_layers = prices.num_layers
    if sorted(captures[0].layers) != list(range(num_layers)):
        raise ConfigError(
            f"the capture has layers {', '.join(map(str, captures[0].layers))}: capture all "
            f"{num_layers} of the model"
        )
    shape = (len(prices.overheads), num_layers, 2, len(prices.candidates))
    errors = np.full(shape, np.nan)
    done, total = 0, 2 * num_layers
    on_part(done, total)
    for layer in range(num_layers):
        parts = LayerParts(captures, layer, policy)
        for is_key in (True, False):
            for place, overhead in enumerate(prices.overheads):
                if overhead not in overheads:
                    continue
                for index, candidate in enumerate(prices.candidates):
                    centroids = prices.centroids(candidate, overhead)
                    found = parts.error(candidate, centroids, is_key=is_key)
                    errors[place, layer, int(not is_key), index] = found
            done += 1
            on_part(done, total)
    return errors
