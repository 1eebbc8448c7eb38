"""Tiles of decoded rows in Triton: what attention multiplies with, made where it is needed.

A tile is [tokens, head_dim] with the planes of a row woven together: column k is channel
(k % planes) * size + k // planes, so that no number has to change its place among threads. Whoever
multiplies with K reads queries in that order, and whoever multiplies with V writes the output in
it. The tuples `part`, `at` and `F` are those of `gpu_rows.py`, `angles` and `R` those of
`rotate_planes`.
"""

import triton
import triton.language as tl

from qvg_engine.kernels.codec.gpu_rows import load_words, read_plane, rotate_planes


@triton.jit
def woven_channels(HEAD_DIM: tl.constexpr, PLANES: tl.constexpr) -> tl.tensor:
    """The channel of each column of a tile, int32 [head_dim]."""
    column = tl.arange(0, HEAD_DIM)
    return (column % PLANES) * (HEAD_DIM // PLANES) + column // PLANES


@triton.jit
def _pair(
    part: tl.tensor,
    at: tl.tensor,
    angles: tl.tensor,
    word: tl.tensor,
    position: tl.tensor,
    is_read: tl.tensor,
    F: tl.constexpr,
    R: tl.constexpr,
    PLANE: tl.constexpr,
    TYPE: tl.constexpr,
) -> tl.tensor:
    """A plane and the one half of all planes on, rotated if there are pairs: [tokens, size, 2]."""
    size: tl.constexpr = F.head_dim * F.bits // 8
    first = read_plane(part, at, word, is_read, F, PLANE)
    second = read_plane(part, at, word, is_read, F, PLANE + 4 // F.bits)
    if R[0] + R[1] + R[2] > 0:
        pair = PLANE * size + tl.arange(0, size)
        first, second = rotate_planes(first, second, angles, position, pair, is_read, R)
    bits: tl.constexpr = tl.int32 if TYPE == tl.float32 else tl.int16  # noqa: SIM300
    first, second = first.to(TYPE).to(bits, bitcast=True), second.to(TYPE).to(bits, bitcast=True)
    return tl.join(first, second)


@triton.jit
def read_tile(
    part: tl.tensor,
    at: tl.tensor,
    angles: tl.tensor,
    position: tl.tensor,
    is_read: tl.tensor,
    F: tl.constexpr,
    R: tl.constexpr,
    TYPE: tl.constexpr,
) -> tl.tensor:
    """Tokens of one page, [tokens, head_dim] of TYPE, woven; rotated if there are pairs."""
    size: tl.constexpr = F.head_dim * F.bits // 8
    word = load_words(part[0], at[0] * size, tl.arange(0, size), is_read, F.trellis)
    if F.bits == 4:
        tile = _pair(part, at, angles, word, position, is_read, F, R, 0, TYPE)
    elif F.bits == 2:
        tile = tl.join(
            _pair(part, at, angles, word, position, is_read, F, R, 0, TYPE),
            _pair(part, at, angles, word, position, is_read, F, R, 1, TYPE),
        )
    else:
        even = tl.join(
            _pair(part, at, angles, word, position, is_read, F, R, 0, TYPE),
            _pair(part, at, angles, word, position, is_read, F, R, 2, TYPE),
        )
        odd = tl.join(
            _pair(part, at, angles, word, position, is_read, F, R, 1, TYPE),
            _pair(part, at, angles, word, position, is_read, F, R, 3, TYPE),
        )
        tile = tl.join(even, odd)
    # As bits up to here: Triton 3.6 fails on Hopper where an operand of a product is reshaped.
    head_dim: tl.constexpr = F.head_dim
    return tl.reshape(tile, (position.shape[0], head_dim)).to(TYPE, bitcast=True)
