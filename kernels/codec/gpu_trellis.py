"""Viterbi's algorithm on a GPU, in Triton: the paths of `trellis.py`, a token in each lane.

The costs of the eight paths are in registers, and which way each of them came is in memory.
"""

from typing import Any

import triton
import triton.language as tl


@triton.jit
def _least_error(
    x: tl.tensor, step: tl.tensor, SUBSET: tl.constexpr, LEVELS: tl.constexpr, COUNT: tl.constexpr
) -> tl.tensor:
    """The least squared error with a level of one subset."""
    left = x - LEVELS[SUBSET] * step
    least = left * left
    for k in tl.static_range(1, COUNT):
        other = x - LEVELS[4 * k + SUBSET] * step
        error = other * other
        least = tl.where(error < least, error, least)
    return least


@triton.jit
def _choose(one: tl.tensor, other: tl.tensor, STATE: tl.constexpr) -> Any:
    """The lesser cost, the first of equals, and its bit of the trail."""
    is_other = other < one
    return tl.where(is_other, other, one), tl.where(is_other, 1 << STATE, 0)


@triton.jit
def find_paths(
    columns: tl.tensor,
    widths: tl.tensor,
    groups: tl.tensor,
    values: tl.tensor,
    trail: tl.tensor,
    LEVELS: tl.constexpr,
    BITS: tl.constexpr,
    SIZE: tl.constexpr,
    TOKENS: tl.constexpr,
) -> tl.tensor:
    """Write where the paths to all states come from, uint8 [channels, TOKENS]; the last states."""
    lane = tl.arange(0, TOKENS)
    count: tl.constexpr = 2 ** (BITS - 1)
    infinite = tl.full([TOKENS], float("inf"), tl.float32)
    c0 = tl.zeros([TOKENS], tl.float32)
    c1, c2, c3 = infinite, infinite, infinite
    c4, c5, c6, c7 = infinite, infinite, infinite, infinite
    for byte in range(SIZE):
        for plane in tl.static_range(8 // BITS):
            channel = plane * SIZE + byte
            x = tl.load(columns + channel * TOKENS + lane)
            scale = tl.load(values + tl.load(groups + channel) * TOKENS + lane)
            step = scale * tl.load(widths + channel)
            e0 = _least_error(x, step, 0, LEVELS, count)
            e1 = _least_error(x, step, 1, LEVELS, count)
            e2 = _least_error(x, step, 2, LEVELS, count)
            e3 = _least_error(x, step, 3, LEVELS, count)
            # See `trellis.transitions`: states 2 * i and 2 * i + 1 come from i and from i + 4.
            n0, t0 = _choose(c0 + e0, c4 + e2, 0)
            n1, t1 = _choose(c0 + e2, c4 + e0, 1)
            n2, t2 = _choose(c1 + e2, c5 + e0, 2)
            n3, t3 = _choose(c1 + e0, c5 + e2, 3)
            n4, t4 = _choose(c2 + e1, c6 + e3, 4)
            n5, t5 = _choose(c2 + e3, c6 + e1, 5)
            n6, t6 = _choose(c3 + e3, c7 + e1, 6)
            n7, t7 = _choose(c3 + e1, c7 + e3, 7)
            came_from = (t0 | t1) | (t2 | t3) | ((t4 | t5) | (t6 | t7))
            tl.store(trail + channel * TOKENS + lane, came_from.to(tl.uint8))
            c0, c1, c2, c3, c4, c5, c6, c7 = n0, n1, n2, n3, n4, n5, n6, n7
    least, state = c0, tl.zeros([TOKENS], tl.int32)
    state, least = tl.where(c1 < least, 1, state), tl.minimum(least, c1)
    state, least = tl.where(c2 < least, 2, state), tl.minimum(least, c2)
    state, least = tl.where(c3 < least, 3, state), tl.minimum(least, c3)
    state, least = tl.where(c4 < least, 4, state), tl.minimum(least, c4)
    state, least = tl.where(c5 < least, 5, state), tl.minimum(least, c5)
    state, least = tl.where(c6 < least, 6, state), tl.minimum(least, c6)
    return tl.where(c7 < least, 7, state)


@triton.jit
def trace_back(
    state: tl.tensor,
    columns: tl.tensor,
    widths: tl.tensor,
    groups: tl.tensor,
    values: tl.tensor,
    trail: tl.tensor,
    LEVELS: tl.constexpr,
    BITS: tl.constexpr,
    SIZE: tl.constexpr,
    TOKENS: tl.constexpr,
) -> None:
    """Overwrite the trail with the paths that end in `state`: level's index << 1 | lowest bit."""
    lane = tl.arange(0, TOKENS)
    for step_back in range(SIZE):
        byte = SIZE - 1 - step_back
        for plane_back in tl.static_range(8 // BITS):
            channel = (8 // BITS - 1 - plane_back) * SIZE + byte
            at = trail + channel * TOKENS + lane
            u = state & 1
            before = state >> 1 | ((tl.load(at).to(tl.int32) >> state) & 1) << 2
            is_y1 = ((u ^ before ^ before >> 2) & 1) > 0
            is_y0 = (before >> 1 & 1) > 0
            x = tl.load(columns + channel * TOKENS + lane)
            scale = tl.load(values + tl.load(groups + channel) * TOKENS + lane)
            step = scale * tl.load(widths + channel)
            place = tl.zeros([TOKENS], tl.int32)
            least = tl.full([TOKENS], float("inf"), tl.float32)
            for k in tl.static_range(2 ** (BITS - 1)):
                low = tl.where(is_y0, LEVELS[4 * k + 1], LEVELS[4 * k])
                level = tl.where(is_y1, tl.where(is_y0, LEVELS[4 * k + 3], LEVELS[4 * k + 2]), low)
                left = x - level * step
                error = left * left
                place = tl.where(error < least, k, place)
                least = tl.where(error < least, error, least)
            subset = tl.where(is_y1, 2, 0) + tl.where(is_y0, 1, 0)
            tl.store(at, ((place * 4 + subset) * 2 + u).to(tl.uint8))
            state = before
