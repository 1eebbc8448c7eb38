"""Scales and codes of a trellis on the CPU (Numba), bit-equal to the reference."""

from typing import Any

import numpy as np
from numba import njit

from qvg_engine.kernels.codec.cpu_trellis import choose_codes
from qvg_engine.kernels.codec.elements import read, write

ABSMAX, SPREAD, SEARCHED = 0, 1, 2
"""The scale rules of `CodecSpec`."""


@njit(nogil=True, cache=True, error_model="numpy")
def _usual_scales(
    columns: Any, widths: Any, group_channels: Any, grid: Any, spread: Any, peak: Any
) -> None:
    """The scales fp64 [groups, tokens] for the groups' energy, and those of "absmax"."""
    for group in range(group_channels.shape[0]):
        channels, energy, largest = group_channels[group], spread[group], peak[group]
        weight = 0.0
        energy[:] = 0.0
        largest[:] = 0.0
        for channel in channels:
            row, width = columns[channel], widths[channel]
            weight += np.float64(width) * np.float64(width)
            for i in range(energy.shape[0]):
                energy[i] += np.float64(row[i]) * np.float64(row[i])
                largest[i] = max(largest[i], np.float64(abs(row[i] / width)))
        for i in range(energy.shape[0]):
            energy[i] = grid.normal_scale * np.sqrt(energy[i] / weight)
            largest[i] = np.float64(np.float32(largest[i]) / grid.top)


@njit(nogil=True, cache=True, error_model="numpy")
def _measure_trial(
    columns: Any,
    widths: Any,
    channels: Any,
    found: Any,
    scale: Any,
    error: Any,
    fitted: Any,
) -> None:
    """The squared errors fp64 [tokens] of one group, and the best scales for its levels."""
    product, square = np.zeros(scale.shape[0]), np.zeros(scale.shape[0])
    error[:] = 0.0
    for channel in channels:
        row, level, width = columns[channel], found[channel], widths[channel]
        for i in range(scale.shape[0]):
            left = np.float64(row[i] - level[i] * scale[i] * width)
            along = np.float64(level[i] * width)
            error[i] += left * left
            product[i] += np.float64(row[i]) * along
            square[i] += along * along
    for i in range(scale.shape[0]):
        is_fit = product[i] > 0 and square[i] > 0
        fitted[i] = product[i] / square[i] if is_fit else np.float64(scale[i])


@njit(nogil=True, cache=True)
def code_block(
    residual: Any,
    widths: Any,
    group_channels: Any,
    groups: Any,
    grid: Any,
    like: Any,
    scales: Any,
    codes: Any,
) -> Any:
    """Scales [groups, tokens], as values, and codes [tokens, head_dim] of residual [tokens,
    head_dim]; returns the squared error.

    groups [head_dim] is the group of each channel; `grid` is that of `cpu_store.py`, and `like` an
    array of stored scales.
    """
    num_tokens, head_dim = residual.shape
    columns = np.empty((head_dim, num_tokens), np.float32)
    for channel in range(head_dim):
        for i in range(num_tokens):
            columns[channel, i] = residual[i, channel]
    spread, peak = np.empty(scales.shape, np.float64), np.empty(scales.shape, np.float64)
    _usual_scales(columns, widths, group_channels, grid, spread, peak)
    trial = np.empty(scales.shape, np.float32)
    trial_codes = np.empty((head_dim, num_tokens), np.uint8)
    found = np.empty((head_dim, num_tokens), np.float32)
    error, fitted = np.empty(num_tokens, np.float64), np.empty(num_tokens, np.float64)
    group_error, wanted = np.full(scales.shape, np.inf), np.empty(scales.shape, np.float64)
    best_error = np.full(num_tokens, np.inf)
    is_searched = grid.rule == SEARCHED
    num_trials = 4 if is_searched else 1
    for attempt in range(num_trials):
        if attempt == num_trials - 1 and is_searched:
            value = wanted
        elif attempt == 1:
            value = np.sqrt(spread * peak)
        else:
            value = spread if grid.rule != ABSMAX and attempt == 0 else peak
        for group in range(scales.shape[0]):
            for i in range(num_tokens):
                trial[group, i] = read(write(np.float32(value[group, i]), like))
        choose_codes(columns, trial, widths, groups, grid.order, grid.levels, trial_codes, found)
        total = np.zeros(num_tokens)
        for group in range(scales.shape[0]):
            _measure_trial(
                columns, widths, group_channels[group], found, trial[group], error, fitted
            )
            for i in range(num_tokens):
                total[i] += error[i]
                if error[i] < group_error[group, i] or attempt == 0:
                    group_error[group, i] = error[i]
                    wanted[group, i] = fitted[i]
        for i in range(num_tokens):
            # No error is less than infinity where rows are near the largest numbers.
            if total[i] < best_error[i] or attempt == 0:
                best_error[i] = total[i]
                codes[i] = trial_codes[:, i]
                scales[:, i] = trial[:, i]
    return best_error.sum()
