"""Trellis-coded levels on the CPU (Numba), bit-equal to `trellis.py`.

Encoding goes through blocks of tokens with the token innermost, as in `cpu_store.py`. Decoding
is here for rows of any size and codes of any width; `cpu_vectors.py` has what is faster.
"""

from typing import Any

import numpy as np
from numba import njit

from qvg_engine.kernels.codec.trellis import STATES, transitions

_SUBSETS = transitions()
_HALF = STATES // 2
# Where the bits of a byte begin in a word that holds the two bytes before it, too.
_FIRST_BIT = 16


@njit(nogil=True, cache=True)
def load_words(packed: Any, bits: Any, words: Any, y1: Any, y0: Any) -> None:
    """A row of bytes [size] as int32 words: each byte with the two before it in its lower bits.

    At the lowest bit of a channel's code, `y1` and `y0` [size] hold the bits of that name.
    """
    one, two = np.int32(0), np.int32(0)
    for j in range(packed.shape[0]):
        byte = np.int32(packed[j])
        words[j] = np.int32(byte << 16 | one << 8 | two)
        one, two = byte, one
    for j in range(words.shape[0]):
        word = words[j]
        y1[j] = np.int32(word ^ word << bits ^ word << (3 * bits))
        y0[j] = np.int32(word << (2 * bits))


@njit(nogil=True, cache=True)
def unpack_row(words: Any, y1: Any, y0: Any, bits: Any, indices: Any) -> None:
    """The indices of levels, int32 [planes, size], of a row that `load_words` has read."""
    mask = np.int32((1 << (bits - 1)) - 1)
    for plane in range(indices.shape[0]):
        shift = np.int32(_FIRST_BIT + plane * bits)
        row = indices[plane]
        for j in range(row.shape[0]):
            high = (words[j] >> (shift + 1)) & mask
            low = ((y1[j] >> shift) & 1) << 1 | ((y0[j] >> shift) & 1)
            row[j] = np.int32(high << 2 | low)


@njit(nogil=True, cache=True)
def _measure_subsets(
    residual: Any, scale: Any, width: Any, levels: Any, nearest: Any, high: Any
) -> None:
    """The least error [4, tokens] of one channel in each subset, and the level's place there."""
    left, step = np.empty(scale.shape[0], np.float32), np.empty(scale.shape[0], np.float32)
    for i in range(scale.shape[0]):
        step[i] = scale[i] * width
    for subset in range(4):
        least, place = nearest[subset], high[subset]
        for k in range(levels.shape[0] // 4):
            level = levels[4 * k + subset]
            for i in range(left.shape[0]):
                left[i] = residual[i] - level * step[i]
            if k == 0:
                for i in range(left.shape[0]):
                    least[i] = left[i] * left[i]
                    place[i] = 0
                continue
            number = np.uint8(k)
            for i in range(left.shape[0]):
                error = left[i] * left[i]
                place[i] = number if error < least[i] else place[i]
                least[i] = error if error < least[i] else least[i]


@njit(nogil=True, cache=True)
def _advance(cost: Any, nearest: Any, new: Any, came_from: Any) -> None:
    """One step of all paths [STATES, tokens]; bit `state` of came_from is which way it came."""
    for i in range(came_from.shape[0]):
        came_from[i] = 0
    for state in range(STATES):
        u, first, second = state & 1, state >> 1, state >> 1 | _HALF
        cost_1, cost_2, target = cost[first], cost[second], new[state]
        error_1, error_2 = nearest[_SUBSETS[first, u]], nearest[_SUBSETS[second, u]]
        bit = np.uint8(1 << state)
        for i in range(target.shape[0]):
            one, other = cost_1[i] + error_1[i], cost_2[i] + error_2[i]
            target[i] = other if other < one else one
            came_from[i] |= bit if other < one else np.uint8(0)


@njit(nogil=True, cache=True)
def choose_codes(
    columns: Any, scales: Any, widths: Any, groups: Any, order: Any, levels: Any, codes: Any
) -> None:
    """See `trellis.choose_codes`; codes uint8 [tokens, head_dim].

    columns: fp32 [head_dim, tokens]; scales: fp32 [groups, tokens]; widths: fp32 [head_dim].
    groups: the group of each channel; order: int64 [head_dim], the order of the trellis.
    """
    head_dim, num_tokens = columns.shape
    cost = np.full((STATES, num_tokens), np.inf, np.float32)
    new = np.empty((STATES, num_tokens), np.float32)
    nearest = np.empty((4, num_tokens), np.float32)
    high = np.empty((head_dim, 4, num_tokens), np.uint8)
    came_from = np.empty((head_dim, num_tokens), np.uint8)
    cost[0] = np.float32(0.0)
    for t in range(head_dim):
        channel = order[t]
        scale = scales[groups[channel]]
        _measure_subsets(columns[channel], scale, widths[channel], levels, nearest, high[t])
        _advance(cost, nearest, new, came_from[t])
        cost, new = new, cost
    for i in range(num_tokens):
        state = 0
        for other in range(1, STATES):
            if cost[other, i] < cost[state, i]:
                state = other
        for t in range(head_dim - 1, -1, -1):
            u = state & 1
            state = state >> 1 | (_HALF if came_from[t, i] >> state & 1 else 0)
            codes[i, order[t]] = np.uint8(2 * high[t, _SUBSETS[state, u], i] + u)


@njit(nogil=True, cache=True)
def find_levels(codes: Any, order: Any, levels: Any, found: Any) -> None:
    """The levels fp32 [head_dim, tokens] that codes uint8 [tokens, head_dim] name."""
    for i in range(codes.shape[0]):
        state = 0
        for channel in order:
            u = codes[i, channel] & 1
            found[channel, i] = levels[4 * (codes[i, channel] >> 1) + _SUBSETS[state, u]]
            state = (2 * state + u) % STATES
