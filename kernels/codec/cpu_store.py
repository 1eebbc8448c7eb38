"""Encoding on the CPU (Numba), bit-equal to the reference.

Goes through blocks of tokens with the token innermost: every step is then the same for a vector of
them, and a sum over the channels of a token adds in their order.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.codec.arrays import page_arrays
from qvg_engine.kernels.codec.cpu_trellis_store import ABSMAX, SEARCHED, SPREAD, code_block
from qvg_engine.kernels.codec.elements import read, write
from qvg_engine.kernels.codec.packing import pack_row
from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.codec.spec import PEAK_FACTORS, SPREAD_FACTORS, CodecSpec
from qvg_engine.kernels.codec.trellis import channel_order
from qvg_engine.kernels.threads import for_heads

# Scratch buffers of 128 channels and a block of tokens stay in the L1 and L2 caches.
_BLOCK = 64
_TRELLIS_WORK, _PLAIN_WORK = 768, 256


class _Grid(NamedTuple):
    """The numbers of `CodecSpec` that scales and codes are chosen with."""

    levels: Any
    thresholds: Any
    top: Any
    zero_code: Any
    rule: Any
    normal_scale: Any
    spread_factors: Any
    peak_factors: Any
    order: Any


@njit(nogil=True, cache=True, error_model="numpy")
def _choose_levels(normal: Any, scale: Any, grid: Any, ratio: Any, level: Any) -> None:
    """The levels of one channel of a block of tokens."""
    for i in range(normal.shape[0]):
        ratio[i] = normal[i] / scale[i]
        level[i] = grid.levels[0]
    for code in range(grid.thresholds.shape[0]):
        threshold, above = grid.thresholds[code], grid.levels[code + 1]
        for i in range(normal.shape[0]):
            level[i] = above if ratio[i] > threshold else level[i]


@njit(nogil=True, cache=True)
def _measure(
    channels: Any,
    residual: Any,
    normal: Any,
    widths: Any,
    scale: Any,
    grid: Any,
    ratio: Any,
    level: Any,
    error: Any,
) -> None:
    """The squared errors [tokens] of one group with these scales."""
    for i in range(error.shape[0]):
        error[i] = 0.0
    for channel in channels:
        _choose_levels(normal[channel], scale, grid, ratio, level)
        row, width = residual[channel], widths[channel]
        for i in range(error.shape[0]):
            left = np.float64(row[i] - level[i] * scale[i] * width)
            error[i] += left * left


@njit(nogil=True, cache=True, error_model="numpy")
def _fit_scale(
    channels: Any,
    residual: Any,
    normal: Any,
    widths: Any,
    scale: Any,
    grid: Any,
    ratio: Any,
    level: Any,
    fitted: Any,
) -> None:
    """The scales [tokens] with the least squared error for the levels chosen with `scale`."""
    product = np.zeros(scale.shape[0], np.float64)
    square = np.zeros(scale.shape[0], np.float64)
    for channel in channels:
        _choose_levels(normal[channel], scale, grid, ratio, level)
        row, width = residual[channel], widths[channel]
        for i in range(scale.shape[0]):
            along = np.float64(level[i] * width)
            product[i] += np.float64(row[i]) * along
            square[i] += along * along
    for i in range(scale.shape[0]):
        is_fit = product[i] > 0 and square[i] > 0
        fitted[i] = product[i] / square[i] if is_fit else np.float64(scale[i])


@njit(nogil=True, cache=True, error_model="numpy")
def _fill_spread(channels: Any, residual: Any, widths: Any, grid: Any, spread: Any) -> None:
    """The best scales fp64 [tokens] for normally distributed channels of a group's energy."""
    weight = 0.0
    spread[:] = 0.0
    for channel in channels:
        weight += np.float64(widths[channel]) * np.float64(widths[channel])
        row = residual[channel]
        for i in range(spread.shape[0]):
            spread[i] += np.float64(row[i]) * np.float64(row[i])
    for i in range(spread.shape[0]):
        spread[i] = grid.normal_scale * np.sqrt(spread[i] / weight)


@njit(nogil=True, cache=True, error_model="numpy")
def _search(
    channels: Any,
    residual: Any,
    normal: Any,
    widths: Any,
    peak: Any,
    grid: Any,
    like: Any,
    best: Any,
) -> None:
    """The scales [tokens] of one group by the rule "searched", as values."""
    count = peak.shape[0]
    ratio = np.empty(count, np.float32)
    level = np.empty(count, np.float32)
    trial = np.empty(count, np.float32)
    wanted = np.empty(count, np.float64)
    error = np.empty(count, np.float64)
    best_error = np.full(count, np.inf)
    spread = np.empty(count, np.float64)
    _fill_spread(channels, residual, widths, grid, spread)
    num_spreads = grid.spread_factors.shape[0]
    num_candidates = num_spreads + grid.peak_factors.shape[0]
    for candidate in range(num_candidates + 1):
        if candidate < num_spreads:
            for i in range(count):
                wanted[i] = spread[i] * grid.spread_factors[candidate]
        elif candidate < num_candidates:
            factor = grid.peak_factors[candidate - num_spreads]
            for i in range(count):
                wanted[i] = np.float64(peak[i]) / np.float64(grid.top) * factor
        else:
            _fit_scale(channels, residual, normal, widths, best, grid, ratio, level, wanted)
        for i in range(count):
            trial[i] = read(write(np.float32(wanted[i]), like))
        _measure(channels, residual, normal, widths, trial, grid, ratio, level, error)
        for i in range(count):
            if error[i] < best_error[i]:
                best_error[i] = error[i]
                best[i] = trial[i]


@njit(nogil=True, cache=True, error_model="numpy")
def _choose_scales(
    channels: Any,
    residual: Any,
    normal: Any,
    widths: Any,
    grid: Any,
    like: Any,
    scale: Any,
) -> None:
    """The scales [tokens] of one group, as values."""
    peak = np.zeros(scale.shape[0], np.float32)
    for channel in channels:
        row = normal[channel]
        for i in range(peak.shape[0]):
            peak[i] = max(peak[i], abs(row[i]))
    if grid.rule == SEARCHED:
        _search(channels, residual, normal, widths, peak, grid, like, scale)
        return
    if grid.rule == SPREAD:
        spread = np.empty(scale.shape[0], np.float64)
        _fill_spread(channels, residual, widths, grid, spread)
        for i in range(peak.shape[0]):
            scale[i] = read(write(np.float32(spread[i]), like))
        return
    for i in range(peak.shape[0]):
        # The published floor of 1e-10 is lost when the scale is rounded.
        scale[i] = read(write(peak[i] / grid.top, like))


@njit(nogil=True, cache=True, error_model="numpy")
def _choose_codes(
    channels: Any, residual: Any, normal: Any, widths: Any, grid: Any, scale: Any, codes: Any
) -> Any:
    """Codes [tokens, head_dim] of one group; returns the squared error."""
    ratio = np.empty(scale.shape[0], np.float32)
    code = np.empty(scale.shape[0], np.int32)
    total = 0.0
    for channel in channels:
        row, width = residual[channel], widths[channel]
        for i in range(scale.shape[0]):
            ratio[i] = normal[channel, i] / scale[i]
            code[i] = 0
        for threshold in grid.thresholds:
            for i in range(scale.shape[0]):
                code[i] += np.int32(ratio[i] > threshold)
        for i in range(scale.shape[0]):
            chosen = code[i] if scale[i] > 0 else np.int32(grid.zero_code)
            left = np.float64(row[i] - grid.levels[chosen] * scale[i] * width)
            total += left * left
            codes[i, channel] = np.uint8(chosen)
    return total


@njit(nogil=True, cache=True, error_model="numpy")
def _code_block(
    residual: Any, widths: Any, group_channels: Any, grid: Any, like: Any, scales: Any, codes: Any
) -> Any:
    """Scales [groups, tokens], as values, and codes [tokens, head_dim] of residual [tokens,
    head_dim]; returns the squared error.
    """
    num_tokens, head_dim = residual.shape
    columns = np.empty((head_dim, num_tokens), np.float32)
    normal = np.empty((head_dim, num_tokens), np.float32)
    for channel in range(head_dim):
        for i in range(num_tokens):
            columns[channel, i] = residual[i, channel]
            normal[channel, i] = residual[i, channel] / widths[channel]
    total = 0.0
    for group in range(group_channels.shape[0]):
        channels, scale = group_channels[group], scales[group]
        _choose_scales(channels, columns, normal, widths, grid, like, scale)
        total += _choose_codes(channels, columns, normal, widths, grid, scale, codes)
    return total


@njit(nogil=True, cache=True)
def _store(
    pages: Any,
    page_ids: Any,
    widths: Any,
    residual: Any,
    ids: Any,
    group_channels: Any,
    grid: Any,
    errors: Any,
    first_head: Any,
    last_head: Any,
) -> None:
    """Store the rows of some heads, and add up their squared errors fp64 [heads]."""
    num_tokens = residual.shape[1]
    num_groups = group_channels.shape[0]
    page_size = pages.codes.shape[2]
    for head in range(first_head, last_head):
        for first in range(0, num_tokens, _BLOCK):
            block = residual[head, first : min(first + _BLOCK, num_tokens)]
            codes = np.empty(block.shape, np.uint8)
            scales = np.empty((num_groups, block.shape[0]), np.float32)
            if pages.trellis:
                errors[head] += code_block(
                    block,
                    widths[head],
                    group_channels,
                    pages.channel_groups,
                    grid,
                    pages.scales,
                    scales,
                    codes,
                )
            else:
                errors[head] += _code_block(
                    block, widths[head], group_channels, grid, pages.scales, scales, codes
                )
            for i in range(block.shape[0]):
                page, row = page_ids[(first + i) // page_size], (first + i) % page_size
                pack_row(codes[i], pages.bits, pages.codes[page, head, row])
                for group in range(num_groups):
                    pages.scales[page, head, row, group] = write(scales[group, i], pages.scales)
                for stage in range(ids.shape[1]):
                    pages.ids[page, head, stage, row] = ids[head, stage, first + i]


def store(
    pages: CodedPages, page_ids: NDArray[np.int64], residual: Tensor, ids: Tensor, *, slot: int
) -> NDArray[np.float64]:
    """See `reference.store`."""
    errors = np.zeros(pages.num_heads)
    if not residual.shape[1]:
        return errors
    arguments = (
        page_arrays(pages),
        page_ids,
        _widths(pages, slot),
        residual.numpy(),
        ids.numpy(),
        pages.group_channels,
        _grid(pages.spec, pages.head_dim),
        errors,
    )
    work = residual.numel() * _work(pages.spec)
    for_heads(lambda first, last: _store(*arguments, first, last), pages.num_heads, work)
    return errors


def _work(spec: CodecSpec) -> int:
    """What an element costs, in multiply-adds of `for_heads`: by the time that it takes."""
    of_trial = _TRELLIS_WORK if spec.trellis else _PLAIN_WORK
    return of_trial * (4 if spec.scale_rule == "searched" else 1)


@functools.cache
def _grid(spec: CodecSpec, head_dim: int) -> _Grid:
    order = channel_order(head_dim, spec.bits) if spec.trellis else np.arange(head_dim)
    return _Grid(
        levels=np.array(spec.levels, np.float32),
        thresholds=np.array(spec.thresholds, np.float32),
        top=np.float32(spec.top),
        zero_code=spec.zero_code,
        rule={"absmax": ABSMAX, "spread": SPREAD, "searched": SEARCHED}[spec.scale_rule],
        normal_scale=spec.normal_scale,
        spread_factors=np.array(SPREAD_FACTORS),
        peak_factors=np.array(PEAK_FACTORS),
        order=order,
    )


def _widths(pages: CodedPages, slot: int) -> NDArray[np.float32]:
    """fp32 [heads, head_dim]; ones where a format has no widths."""
    widths = pages.codebooks.widths(slot)
    if widths is None:
        return np.ones((pages.num_heads, pages.head_dim), np.float32)
    return np.asarray(widths.float().numpy())
