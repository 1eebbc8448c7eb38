"""Dense fp32 attention on the CPU (Numba), for keys and values that were decoded from coded pages.

Queries stand side by side in tiles, as columns, and tokens are rows: the scores of some tokens and
a tile of queries are one product, what they contribute to the output is another, and softmax in
between goes down the columns, so that no vector is ever summed across. Takes half of the time of
torch's kernel with AVX-512 (`benchmarks/test_attention.py`). What a query gets depends neither on
the queries beside it nor on the number of threads.
"""

import math
from typing import Any, Final

import numpy as np
import torch
from numba import njit
from torch import Tensor

from qvg_engine.kernels.gpu import runs_on_cpu
from qvg_engine.kernels.products import ROWS, TILE, multiply_tile
from qvg_engine.kernels.threads import for_heads

_BLOCK: Final = 128
"""Tokens whose scores are held at a time: those of a tile of queries fit the first-level cache."""
_GROUP: Final = 8
"""Tiles of queries that a block of tokens is read for while it is in the second-level cache."""

_LOG2_E = np.float32(math.log2(math.e))
_LN_2 = np.float32(math.log(2.0))
_MIN = np.float32(-np.inf)

# 2^f = exp(f ln 2) for |f| <= 1/2: its series, cut where a term is below half a unit in the last
# place of fp32 (7e-9 of the value).
_C1 = np.float32(math.log(2.0))
_C2 = np.float32(math.log(2.0) ** 2 / 2)
_C3 = np.float32(math.log(2.0) ** 3 / 6)
_C4 = np.float32(math.log(2.0) ** 4 / 24)
_C5 = np.float32(math.log(2.0) ** 5 / 120)
_C6 = np.float32(math.log(2.0) ** 6 / 720)
_C7 = np.float32(math.log(2.0) ** 7 / 5040)
# Added to a small number, it leaves the nearest integer in the last bits.
_TO_INTEGER = np.float32(1.5 * 2**23)
_LOWEST_POWER = np.float32(-126.0)


@njit(inline="always")
def _exp2(x: Any) -> Any:
    """2^x for x <= 0, to 2 units in the last place; 2^-126 below that, and NaN of NaN."""
    x = _LOWEST_POWER if x < _LOWEST_POWER else x
    shifted = x + _TO_INTEGER
    f = x - (shifted - _TO_INTEGER)
    power = _C6 + f * _C7
    power = _C5 + f * power
    power = _C4 + f * power
    power = _C3 + f * power
    power = _C2 + f * power
    power = _C1 + f * power
    power = np.float32(1.0) + f * power
    exponent = np.uint32(np.float32(shifted).view(np.uint32) << np.uint32(23))
    return np.uint32(np.float32(power).view(np.uint32) + exponent).view(np.float32)


@njit(nogil=True, cache=True)
def _load_queries(queries: Any, head: Any, first: Any, scale: Any, tile: Any) -> None:
    """Queries from `first` on as the columns of `tile` [head_dim, TILE], scaled; zeros after."""
    for column in range(TILE):
        query = first + column
        if query < queries.shape[1]:
            for i in range(tile.shape[0]):
                tile[i, column] = queries[head, query, i] * scale
        else:
            for i in range(tile.shape[0]):
                tile[i, column] = np.float32(0.0)


@njit(nogil=True, cache=True)
def _score(
    keys: Any, start: Any, count: Any, tiles: Any, tile: Any, tail: Any, scores: Any
) -> None:
    """Scores [count, TILE] of tokens whose keys begin at element `start`.

    tail: [ROWS, head_dim], for the last rows of keys where there are not as many.
    """
    head_dim = tail.shape[1]
    factor = tile * head_dim * TILE
    whole = count - count % ROWS
    for row in range(0, whole, ROWS):
        source = start + row * head_dim
        multiply_tile(keys, source, head_dim, 1, tiles, factor, scores, row * TILE, TILE, head_dim)
    if whole < count:
        flat = keys.reshape(-1)
        for row in range(count - whole):
            for i in range(head_dim):
                tail[row, i] = flat[start + (whole + row) * head_dim + i]
        multiply_tile(tail, 0, head_dim, 1, tiles, factor, scores, whole * TILE, TILE, head_dim)


@njit(nogil=True, cache=True)
def _find_most(scores: Any, count: Any, most: Any) -> None:
    """Raise `most` [TILE] to the columns' largest scores; what it makes of NaN is not defined."""
    whole = count - count % 4
    # Four at a time take a third of the time of one.
    for row in range(0, whole, 4):
        for c in range(TILE):
            first, second = scores[row, c], scores[row + 1, c]
            third, fourth = scores[row + 2, c], scores[row + 3, c]
            first = first if second <= first else second
            third = third if fourth <= third else fourth
            first = first if third <= first else third
            most[c] = most[c] if first <= most[c] else first
    for row in range(whole, count):
        for c in range(TILE):
            most[c] = most[c] if scores[row, c] <= most[c] else scores[row, c]


@njit(nogil=True, cache=True, fastmath={"contract"})
def _weigh(scores: Any, count: Any, most: Any, total: Any, shrunk: Any) -> None:
    """Turn scores [count, TILE] into weights, 2^(score - most).

    most, total: [TILE], the largest score and the sum of weights so far, brought up to date.
    shrunk: [TILE], what weights and sums over earlier tokens have to be multiplied with.
    """
    for c in range(TILE):
        shrunk[c] = most[c]
    _find_most(scores, count, most)
    # A column count that the compiler knows would be worse: it unrolls such loops first, and then
    # makes no vectors of them.
    for c in range(most.shape[0]):
        shrunk[c] = _exp2(shrunk[c] - most[c])
        total[c] *= shrunk[c]
    for row in range(count):
        score = scores[row]
        for c in range(most.shape[0]):
            weight = _exp2(score[c] - most[c])
            score[c] = weight
            total[c] += weight


@njit(nogil=True, cache=True, fastmath={"contract"})
def _accumulate(
    values: Any, start: Any, count: Any, scores: Any, shrunk: Any, sums: Any, part: Any
) -> None:
    """Add the weighted values of `count` tokens to `sums` [head_dim, TILE], which is shrunk."""
    head_dim = sums.shape[0]
    for i in range(0, head_dim, ROWS):
        multiply_tile(values, start + i, 1, head_dim, scores, 0, part, i * TILE, TILE, count)
    for i in range(head_dim):
        channel_sums, added = sums[i], part[i]
        for c in range(shrunk.shape[0]):
            channel_sums[c] = channel_sums[c] * shrunk[c] + added[c]


@njit(nogil=True, cache=True)
def _store(
    sums: Any, most: Any, total: Any, head: Any, first: Any, out: Any, log_sums: Any
) -> None:
    for column in range(min(TILE, out.shape[1] - first)):
        factor = np.float32(1.0) / total[column]
        for i in range(out.shape[2]):
            out[head, first + column, i] = sums[i, column] * factor
        log_sums[head, first + column] = (most[column] + np.log2(total[column])) * _LN_2


@njit(nogil=True, cache=True)
def _attend(
    queries: Any,
    keys: Any,
    values: Any,
    num_tokens: Any,
    bias: Any,
    scale: Any,
    out: Any,
    log_sums: Any,
    first_unit: Any,
    last_unit: Any,
) -> None:
    """Units are groups of tiles of queries, those of the first head first."""
    num_queries, head_dim = queries.shape[1:]
    num_groups = -(-num_queries // (_GROUP * TILE))
    tiles = np.empty((_GROUP, head_dim, TILE), np.float32)
    sums = np.empty((_GROUP, head_dim, TILE), np.float32)
    most, total = np.empty((_GROUP, TILE), np.float32), np.empty((_GROUP, TILE), np.float32)
    scores = np.empty((_BLOCK + ROWS, TILE), np.float32)
    tail = np.zeros((ROWS, head_dim), np.float32)
    part, shrunk = np.empty((head_dim, TILE), np.float32), np.empty(TILE, np.float32)
    for unit in range(first_unit, last_unit):
        head, first_query = unit // num_groups, unit % num_groups * _GROUP * TILE
        num_tiles = min(_GROUP, -(-(num_queries - first_query) // TILE))
        for tile in range(num_tiles):
            _load_queries(queries, head, first_query + tile * TILE, scale, tiles[tile])
        sums[:], total[:], most[:] = np.float32(0.0), np.float32(0.0), _MIN
        for token in range(0, num_tokens, _BLOCK):
            count = min(_BLOCK, num_tokens - token)
            start = (head * keys.shape[1] + token) * head_dim
            for tile in range(num_tiles):
                _score(keys, start, count, tiles, tile, tail, scores)
                for row in range(count if bias.shape[0] else 0):
                    for c in range(TILE):
                        scores[row, c] += bias[token + row] * _LOG2_E
                _weigh(scores, count, most[tile], total[tile], shrunk)
                _accumulate(values, start, count, scores, shrunk, sums[tile], part)
        for tile in range(num_tiles):
            query = first_query + tile * TILE
            _store(sums[tile], most[tile], total[tile], head, query, out, log_sums)


def supports(queries: Tensor, keys: Tensor) -> bool:
    """Whether the kernel here can attend to these keys."""
    fits = queries.dtype == keys.dtype == torch.float32 and runs_on_cpu(queries.device)
    return fits and queries.shape[-1] % ROWS == 0


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    num_tokens: int,
    bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Softmax attention over the first `num_tokens` of keys and values.

    Args:
        queries: fp32 [heads, queries, head_dim].
        keys, values: fp32 [heads, at least num_tokens, head_dim], contiguous.
        num_tokens: at least 1.
        bias: fp32 [num_tokens], added to every query's scores, or None.
        scale: of the scores.

    Returns the output [heads, queries, head_dim] and the log-sum-exp [heads, queries], both fp32.
    """
    assert keys.is_contiguous(), keys.stride()
    assert values.is_contiguous(), values.stride()
    assert 1 <= num_tokens <= keys.shape[1], (num_tokens, keys.shape)
    num_heads, num_queries, head_dim = queries.shape
    out = torch.empty_like(queries, memory_format=torch.contiguous_format)
    log_sums = torch.empty(num_heads, num_queries)
    added = np.empty(0, np.float32) if bias is None else bias.contiguous().numpy()
    arrays = (
        queries.contiguous().numpy(),
        keys.numpy(),
        values.numpy(),
        num_tokens,
        added,
        np.float32(scale * math.log2(math.e)),
        out.numpy(),
        log_sums.numpy(),
    )
    num_units = num_heads * -(-num_queries // (_GROUP * TILE))
    work = 2 * num_heads * num_queries * num_tokens * head_dim
    for_heads(lambda *units: _attend(*arrays, *units), num_units, work)
    return out, log_sums
