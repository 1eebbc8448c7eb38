"""Errors of attention with everything stored, to be compared with those of parts alone."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.block_manager.codebook_policy import CodebookPolicy
from qvg_engine.block_manager.format import LayerFormats
from qvg_engine.quality.capture import Capture
from qvg_engine.quality.kv_prices import KvPrices
from qvg_engine.quality.part_errors import LayerParts
from qvg_engine.quality.teacher_forced import TeacherForced, merged

Floats = NDArray[np.float64]


class JointErrors:
    """All candidates of all parts of one capture as they are read back, and their errors.

    `errors` and `head_errors` are [overheads, layers, K or V, candidates (, heads)]: of a part, or
    of one of its heads, alone, squared and relative to the whole output of the layer.
    """

    def __init__(self, captures: Sequence[Capture], prices: KvPrices) -> None:
        self._prices = prices
        layers = captures[0].layers
        self._parts = [LayerParts(captures, layer, CodebookPolicy()) for layer in layers]
        heads = layers[0].keys.shape[1]
        shape = (len(prices.overheads), prices.num_layers, 2, len(prices.candidates))
        self.head_errors = np.empty((*shape, heads))
        self._read: dict[tuple[int, ...], Tensor] = {}
        for place in np.ndindex(*shape):
            overhead, layer, part, index = place
            candidate = prices.candidates[index]
            read = self._parts[layer].read(
                candidate,
                prices.centroids(candidate, prices.overheads[overhead]),
                is_key=part == 0,
            )
            self._read[place] = read
            self.head_errors[place] = self._lost(layer, {part: read})
        self.errors = self.head_errors.sum(axis=-1)

    def joint_error(self, layers: Sequence[LayerFormats], overhead: float) -> float:
        """The error with everything stored: the root of the mean square over layers."""
        place = self._prices.overheads.index(overhead)
        names = [item.name for item in self._prices.candidates]
        lost = [
            self._lost(
                layer,
                {
                    part: self._read[place, layer, part, names.index(item.name)]
                    for part, item in enumerate((pair.keys, pair.values))
                },
            ).sum()
            for layer, pair in enumerate(layers)
        ]
        return math.sqrt(sum(lost) / len(lost))

    def joint_head_error(self, chosen: Sequence[int], overhead: float) -> float:
        """The same with a choice for every head, in the order of `head_errors`."""
        place = self._prices.overheads.index(overhead)
        picks = np.reshape(chosen, (self._prices.num_layers, 2, -1))
        lost = []
        for layer, parts in enumerate(picks):
            read = {
                part: torch.stack(
                    [self._read[place, layer, part, int(x)][:, head] for head, x in enumerate(row)],
                    dim=1,
                )
                for part, row in enumerate(parts)
            }
            lost.append(self._lost(layer, read).sum())
        return math.sqrt(sum(lost) / len(lost))

    def _lost(self, layer: int, read: dict[int, Tensor]) -> Floats:
        """By head: the energy that reading these parts changes, over that of the layer's output."""
        parts = self._parts[layer]
        keys = read.get(0, parts.rows.keys)
        values = read.get(1, parts.rows.values)
        lost = [_lost_by_head(one, keys, values) for one in parts.passes]
        by_head: Floats = np.mean(lost, axis=0)
        return by_head


def _lost_by_head(forced: TeacherForced, keys: Tensor, values: Tensor) -> Floats:
    """By KV head: the energy of what is lost in one pass, over that of the layer's output."""
    lost: Floats = np.zeros(forced.queries(forced.chunks[0]).shape[0])
    total = 0.0
    for chunk in forced.chunks:
        exact = forced.exact(chunk)
        out = merged(forced.cached(chunk, keys, values), forced.own(chunk))
        lost += (out - exact).double().square().sum(dim=(1, 2)).numpy()
        total += float(exact.double().square().sum())
    by_head: Floats = lost.reshape(keys.shape[1], -1).sum(axis=1) / total
    return by_head
