"""Formats for every layer's K and V under a budget of bits, from the errors of each part.

Squared errors of parts are taken to add up: the choice is the one with the least sum, under the
best of the overheads.
"""

import math
from fractions import Fraction

import msgspec
import numpy as np

from qvg_engine.allocation import Allocation
from qvg_engine.block_manager.format import LayerFormats
from qvg_engine.quality.allocate import Choice, allocate
from qvg_engine.quality.kv_prices import KvPrices
from qvg_engine.quality.part_errors import PartErrors


class KvChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The best allocation, all its bits an element, and the error that is predicted.

    `predicted_error` is the root of the sum of the parts' squared errors.
    """

    allocation: Allocation
    bits: float
    predicted_error: float


def affordable_overheads(prices: KvPrices, kv_bits: Fraction) -> tuple[float, ...]:
    """Those that leave enough bits for the leanest formats."""
    least = 2 * prices.num_layers * min(prices.row_bytes)
    return tuple(item for item in prices.overheads if prices.capacity(kv_bits, item) >= least)


def choose_formats(prices: KvPrices, errors: PartErrors, kv_bits: Fraction) -> KvChoice:
    """The choice with the least sum of errors that takes `kv_bits` an element or less.

    All overheads that are affordable must have been measured; see `KvPrices.check` for the bits.
    """
    choices = [
        _choose(prices, errors, overhead, prices.capacity(kv_bits, overhead))
        for overhead in affordable_overheads(prices, kv_bits)
    ]
    assert choices, f"{float(kv_bits)} bits are too few"
    best = min(choices, key=lambda choice: choice.predicted_error)
    assert best.bits <= kv_bits, (best.bits, kv_bits)
    return best


def _choose(prices: KvPrices, errors: PartErrors, overhead: float, capacity: int) -> KvChoice:
    found = errors[prices.overheads.index(overhead)]
    assert np.isfinite(found).all(), f"overhead {overhead} was not measured"
    parts = [
        [Choice(cost, float(error)) for cost, error in zip(prices.row_bytes, part, strict=True)]
        for part in found.reshape(-1, len(prices.candidates))
    ]
    # More than the dearest choice needs would only cost time.
    chosen = allocate(parts, min(capacity, len(parts) * max(prices.row_bytes)))
    assert chosen is not None, "the overhead is affordable"
    formats = [prices.candidates[index] for index in chosen]
    layers = tuple(
        LayerFormats(keys=keys, values=values)
        for keys, values in zip(formats[::2], formats[1::2], strict=True)
    )
    total = sum(part[index].error for part, index in zip(parts, chosen, strict=True))
    return KvChoice(
        allocation=prices.allocation(layers, overhead),
        bits=float(prices.bits(layers, overhead)),
        predicted_error=math.sqrt(total),
    )
