"""One contender on one layer of one capture: bits, and errors, over all tokens and by chunk.

Errors of K and V are squared and relative, that of attention's output (teacher-forced, after RoPE)
is the square root of such a ratio, as in `format_errors.py`.
"""

import math
from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor

from qvg_engine.errors import ConfigError, NonFiniteError
from qvg_engine.quality.capture import Capture
from qvg_engine.quality.contender import Contender, RoundTrip
from qvg_engine.quality.format_errors import squared_error
from qvg_engine.quality.teacher_forced import TeacherForced, merged


class RowFigures(msgspec.Struct, frozen=True, kw_only=True):
    """K or V: `bits` and `shared_bits` as in `RoundTrip`; the error, and that of every chunk."""

    bits: float
    shared_bits: float
    error: float
    chunk_errors: tuple[float, ...]


class BookFigures(msgspec.Struct, frozen=True, kw_only=True):
    """K, V and attention of one layer.

    `num_elements`: of K, and as many of V, all tokens and heads. `chunks`: whose queries attended;
    `attention_chunk_errors`: theirs.
    """

    num_tokens: int
    num_elements: int
    keys: RowFigures
    values: RowFigures
    attention_error: float
    chunks: tuple[int, ...]
    attention_chunk_errors: tuple[float, ...]

    @property
    def num_bytes(self) -> float:
        """Of K and V as they are stored, with all that their tokens share."""
        parts = (self.keys, self.values)
        return sum(part.bits + part.shared_bits for part in parts) * self.num_elements / 8


class LayerBooks:
    """Measures contenders on one layer.

    Args:
        capture: at least two chunks.
        layer: one that was captured.
        video: the capture's number, for seeds.
        seed: of whatever is random.
        attend_every: attend with the queries of every so many-th chunk, from the second one on.

    Raises `ConfigError` for a capture of a single chunk, which reads no cache.
    """

    def __init__(
        self, capture: Capture, layer: int, *, video: int, seed: int, attend_every: int
    ) -> None:
        if len(capture.chunk_tokens) < 2:
            raise ConfigError("the capture has 1 chunk: give at least 2, the first reads no cache")
        self._capture = capture
        self._layer = layer
        self._seed = 2 * layer + (seed << 32) + (video << 64)
        rows = capture.layers[layer]
        self._keys, self._values = rows.keys.float(), rows.values.float()
        chunks = range(1, len(capture.chunk_tokens), attend_every)
        self._teacher = TeacherForced(capture, layer, chunks)

    def measure(self, contender: Contender, *, centroids: int) -> BookFigures:
        """One contender; `NonFiniteError` if it reads back NaN or infinity."""
        keys = self._round_trip(contender, centroids, is_key=True)
        values = self._round_trip(contender, centroids, is_key=False)
        teacher = self._teacher
        lost, total = [], []
        for chunk in teacher.chunks:
            exact = teacher.exact(chunk)
            read = merged(teacher.cached(chunk, keys.rows, values.rows), teacher.own(chunk))
            lost.append(_energy(read - exact))
            total.append(_energy(exact))
        return BookFigures(
            num_tokens=self._capture.num_tokens,
            num_elements=self._keys.numel(),
            keys=self._figures(keys, self._keys),
            values=self._figures(values, self._values),
            attention_error=math.sqrt(sum(lost) / sum(total)),
            chunks=teacher.chunks,
            attention_chunk_errors=tuple(map(_short, map(math.sqrt, _ratios(lost, total)))),
        )

    def _round_trip(self, contender: Contender, centroids: int, *, is_key: bool) -> RoundTrip:
        found = contender.round_trip(
            self._keys if is_key else self._values,
            is_key=is_key,
            seed=self._seed + (not is_key),
            centroids=centroids,
        )
        if not found.rows.isfinite().all():
            part = "K" if is_key else "V"
            raise NonFiniteError(f"{contender.name}: {part} of layer {self._layer} reads back NaN")
        return found

    def _figures(self, found: RoundTrip, rows: Tensor) -> RowFigures:
        chunks = [self._capture.chunk(index) for index in range(len(self._capture.chunk_tokens))]
        difference = found.rows - rows
        lost = [_energy(difference[chunk]) for chunk in chunks]
        total = [_energy(rows[chunk]) for chunk in chunks]
        return RowFigures(
            bits=found.bits,
            shared_bits=found.shared_bits,
            error=squared_error(found.rows, rows),
            chunk_errors=tuple(map(_short, _ratios(lost, total))),
        )


def _ratios(lost: Sequence[float], total: Sequence[float]) -> list[float]:
    return [part / whole for part, whole in zip(lost, total, strict=True)]


def _short(number: float) -> float:
    """Four digits, which are enough for a curve."""
    return float(f"{number:.4g}")


def _energy(x: Tensor) -> float:
    return float(x.square().sum(dtype=torch.float64))
