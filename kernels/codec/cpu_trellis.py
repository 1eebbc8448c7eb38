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
# A trail is what Viterbi's algorithm keeps of a channel of a token, uint32: for each subset, which
# of its levels is nearest, and from bit `_STATE_BITS` on, whether a state's path is its second.
_PLACE_BITS = 3
_PLACES = 2**_PLACE_BITS - 1
_STATE_BITS = 4 * _PLACE_BITS
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
    residual: Any, scale: Any, width: Any, levels: Any, nearest: Any, trail: Any
) -> None:
    """The least error [4, tokens] of one channel in each subset; the trail says of which level."""
    for i in range(trail.shape[0]):
        trail[i] = 0
    for subset in range(4):
        least, low = nearest[subset], levels[subset]
        if levels.shape[0] == 4:
            for i in range(trail.shape[0]):
                left = residual[i] - low * (scale[i] * width)
                least[i] = left * left
            continue
        above, mark = levels[4 + subset], np.uint32(1 << (_PLACE_BITS * subset))
        for i in range(trail.shape[0]):
            step = scale[i] * width
            left, other = residual[i] - low * step, residual[i] - above * step
            error, error_above = left * left, other * other
            least[i] = error_above if error_above < error else error
            trail[i] |= mark if error_above < error else np.uint32(0)
    for k in range(2, levels.shape[0] // 4):
        _measure_next(residual, scale, width, levels, np.int64(k), nearest, trail)


@njit(nogil=True, cache=True)
def _measure_next(
    residual: Any, scale: Any, width: Any, levels: Any, k: Any, nearest: Any, trail: Any
) -> None:
    """As `_measure_subsets`, with the next level of each subset."""
    for subset in range(4):
        least, level = nearest[subset], levels[4 * k + subset]
        mark = np.uint32(k << (_PLACE_BITS * subset))
        others = np.uint32(~(_PLACES << (_PLACE_BITS * subset)))
        for i in range(trail.shape[0]):
            left = residual[i] - level * (scale[i] * width)
            error = left * left
            trail[i] = np.uint32((trail[i] & others) | mark) if error < least[i] else trail[i]
            least[i] = error if error < least[i] else least[i]


@njit(nogil=True, cache=True)
def _advance(cost: Any, nearest: Any, new: Any, trail: Any) -> None:
    """One step of all paths [STATES, tokens]; the trail says which way each state's came."""
    for first in range(_HALF):
        # Rows of few arrays, as LLVM can tell that these are apart: two states lead to two others.
        second, state = first + _HALF, 2 * first
        cost_1, cost_2, new_0, new_1 = cost[first], cost[second], new[state], new[state + 1]
        zero_1, zero_2 = nearest[_SUBSETS[first, 0]], nearest[_SUBSETS[second, 0]]
        one_1, one_2 = nearest[_SUBSETS[first, 1]], nearest[_SUBSETS[second, 1]]
        mark_0 = np.uint32(1 << (_STATE_BITS + state))
        mark_1 = np.uint32(2 << (_STATE_BITS + state))
        for i in range(trail.shape[0]):
            path, other = cost_1[i] + zero_1[i], cost_2[i] + zero_2[i]
            is_second = other < path
            new_0[i] = other if is_second else path
            came_from = np.uint32(trail[i] | (mark_0 if is_second else np.uint32(0)))
            path, other = cost_1[i] + one_1[i], cost_2[i] + one_2[i]
            is_second = other < path
            new_1[i] = other if is_second else path
            trail[i] = np.uint32(came_from | (mark_1 if is_second else np.uint32(0)))


@njit(nogil=True, cache=True)
def _last_states(cost: Any, state: Any) -> None:
    """The state [tokens] with the least cost [STATES, tokens]."""
    least = cost[0].copy()
    state[:] = 0
    for other in range(1, STATES):
        of_other, number = cost[other], np.uint32(other)
        for i in range(state.shape[0]):
            is_less = of_other[i] < least[i]
            state[i] = number if is_less else state[i]
            least[i] = of_other[i] if is_less else least[i]


@njit(nogil=True, cache=True)
def _step_back(trail: Any, state: Any, code: Any, index: Any) -> None:
    """From the states [tokens] after a channel to those before it, and the channel's codes."""
    one, two = np.uint32(1), np.uint32(2)
    for i in range(trail.shape[0]):
        # Numbers of 32 bits throughout: Numba makes 64 of every sum, for which no loop is fast.
        u = np.uint32(state[i] & one)
        came_from = np.uint32(trail[i] >> np.uint32(state[i] + np.uint32(_STATE_BITS)))
        before = np.uint32(np.uint32(state[i] >> one) | np.uint32((came_from & one) << two))
        y1 = np.uint32((u ^ before ^ np.uint32(before >> two)) & one)
        y0 = np.uint32(np.uint32(before >> one) & one)
        subset = np.uint32(np.uint32(y1 << one) | y0)
        place = np.uint32(trail[i] >> np.uint32(subset * np.uint32(_PLACE_BITS)))
        place = np.uint32(place & np.uint32(_PLACES))
        code[i] = np.uint8(np.uint32(place << one) | u)
        index[i] = np.uint32(np.uint32(place << two) | subset)
        state[i] = before


@njit(nogil=True, cache=True)
def _look_up(index: Any, levels: Any, found: Any) -> None:
    for i in range(index.shape[0]):
        found[i] = levels[index[i]]


@njit(nogil=True, cache=True)
def choose_codes(
    columns: Any,
    scales: Any,
    widths: Any,
    groups: Any,
    order: Any,
    levels: Any,
    codes: Any,
    found: Any,
) -> None:
    """See `trellis.choose_codes`; codes uint8, and the levels they name fp32 [head_dim, tokens].

    columns: fp32 [head_dim, tokens]; scales: fp32 [groups, tokens]; widths: fp32 [head_dim].
    groups: the group of each channel; order: int64 [head_dim], the order of the trellis.
    """
    head_dim, num_tokens = columns.shape
    cost = np.full((STATES, num_tokens), np.inf, np.float32)
    new = np.empty((STATES, num_tokens), np.float32)
    nearest = np.empty((4, num_tokens), np.float32)
    trail = np.empty((head_dim, num_tokens), np.uint32)
    cost[0] = np.float32(0.0)
    for t in range(head_dim):
        channel = order[t]
        scale = scales[groups[channel]]
        _measure_subsets(columns[channel], scale, widths[channel], levels, nearest, trail[t])
        _advance(cost, nearest, new, trail[t])
        cost, new = new, cost
    state, index = np.empty(num_tokens, np.uint32), np.empty(num_tokens, np.uint32)
    _last_states(cost, state)
    for t in range(head_dim - 1, -1, -1):
        _step_back(trail[t], state, codes[order[t]], index)
        _look_up(index, levels, found[order[t]])
