"""Rows of coded pages in Triton: what a program makes of the bytes of a block of tokens.

Works plane by plane: the channels at one place of all bytes of a row are consecutive, so that a
plane is [tokens, bytes] numbers in registers, and the two of a rotation pair are half the planes
apart. A refinement has planes of other sizes: of it every channel is read by itself.

Three tuples go from function to function: `part`, the pointers that `gpu_pages.pointers` lists;
`at`, where a block of tokens of one page lies, see `locate`; and `F`, a `gpu_pages.Format`.
"""

import triton
import triton.language as tl

from qvg_engine.kernels.codec.gpu_e4m3 import widen_e4m3
from qvg_engine.kernels.rope.gpu import load_angles


@triton.jit
def read(pointer: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Stored scales, centroids or widths as fp32, zero where masked; bytes are E4M3."""
    stored = tl.load(pointer, mask=mask, other=0)
    return widen_e4m3(stored) if pointer.dtype.element_ty == tl.uint8 else stored.to(tl.float32)


@triton.jit
def locate(
    entry: tl.tensor,
    token: tl.tensor,
    num_heads: tl.tensor,
    head: tl.tensor,
    F: tl.constexpr,
) -> tl.tensor:
    """Where tokens int32 [tokens] of an entry of `gpu_pages.page_tables` lie.

    A tuple: their rows and those of a refinement int64 [tokens], where their ids begin, where the
    rows of the page's codebook are listed, its centroids a stage, whether the page has a
    refinement, heads and head.
    """
    page = tl.load(entry).to(tl.int64)
    slot = tl.load(entry + 2) + token
    listed, num_centroids, refined = tl.load(entry + 5), tl.load(entry + 6), tl.load(entry + 7)
    of_page, of_refinement = page * num_heads + head, refined.to(tl.int64) * num_heads + head
    row, refined_row = of_page * F.page_size + slot, of_refinement * F.page_size + slot
    id_row = of_page * (F.stages * F.page_size) + slot
    return row, refined_row, id_row, listed, num_centroids, refined >= 0, num_heads, head


@triton.jit
def load_words(
    codes: tl.tensor,
    row: tl.tensor,
    byte: tl.tensor,
    is_read: tl.tensor,
    TRELLIS: tl.constexpr,
) -> tl.tensor:
    """Codes as int32 [tokens, bytes]: each byte, and of a trellis the two before it in lower bits.

    row: int64 [tokens], where each token's codes begin; byte: int32 [bytes].
    """
    at, mask, byte = codes + row[:, None] + byte[None, :], is_read[:, None], byte[None, :]
    word = tl.load(at, mask=mask & (byte >= 0), other=0).to(tl.int32)
    if TRELLIS:
        one = tl.load(at - 1, mask=mask & (byte >= 1), other=0).to(tl.int32)
        two = tl.load(at - 2, mask=mask & (byte >= 2), other=0).to(tl.int32)
        word = word << 16 | one << 8 | two
    return word


@triton.jit
def level_indices(
    word: tl.tensor, shift: tl.tensor, BITS: tl.constexpr, TRELLIS: tl.constexpr
) -> tl.tensor:
    """Which levels codes mean that begin at bit `shift` of their bytes, see `trellis.py`."""
    if TRELLIS:
        at = shift + 16
        high = (word >> (at + 1)) & ((1 << (BITS - 1)) - 1)
        y1 = (word ^ (word << BITS) ^ (word << (3 * BITS))) >> at
        y0 = (word << (2 * BITS)) >> at
        index = high << 2 | (y1 & 1) << 1 | (y0 & 1)
    else:
        index = (word >> shift) & ((1 << BITS) - 1)
    return index


@triton.jit
def read_scales(
    scales: tl.tensor,
    row: tl.tensor,
    groups: tl.tensor,
    channel: tl.tensor,
    is_read: tl.tensor,
    ONE_GROUP: tl.constexpr,
) -> tl.tensor:
    """The scales of channels int32 [channels], fp32 [tokens, channels], or [tokens, 1].

    row: int64 [tokens], where each token's scales begin; groups: int32 [head_dim], the group of
    each channel. ONE_GROUP says that these channels have the same.
    """
    if ONE_GROUP:
        group = tl.load(groups + tl.min(channel))
        scale = read(scales + row + group, is_read)[:, None]
    else:
        group = tl.load(groups + channel)
        scale = read(scales + row[:, None] + group[None, :], is_read[:, None])
    return scale


@triton.jit
def read_plane(
    part: tl.tensor,
    at: tl.tensor,
    word: tl.tensor,
    is_read: tl.tensor,
    F: tl.constexpr,
    PLANE: tl.constexpr,
) -> tl.tensor:
    """A plane of a block of tokens of one page, fp32 [tokens, bytes], not rotated.

    word: of `load_words` for all bytes of the rows.
    """
    ids, scales, levels, groups, rows, row_table = part[1:7]
    row, refined_row, id_row, listed, num_centroids, is_refined, num_heads, head = at
    size: tl.constexpr = F.head_dim * F.bits // 8
    stages: tl.constexpr = F.stages
    channel = PLANE * size + tl.arange(0, size)
    level = tl.load(levels + level_indices(word, PLANE * F.bits, F.bits, F.trellis))
    numbers = level * read_scales(scales, row * F.groups, groups, channel, is_read, F.one_group)
    if F.widths:
        width_row = tl.load(row_table + listed).to(tl.int64) * num_heads + head
        width = read(rows + width_row * F.head_dim + channel, channel >= 0)[None, :]
        numbers = numbers * width
        listed += 1
    for stage in tl.static_range(stages):
        number = tl.load(ids + id_row + stage * F.page_size, mask=is_read, other=0).to(tl.int32)
        entry = row_table + listed + stage * num_centroids + number
        centroid = tl.load(entry, mask=is_read, other=0).to(tl.int64) * num_heads + head
        place = rows + (centroid * F.head_dim)[:, None] + channel[None, :]
        numbers += read(place, is_read[:, None])
    if F.refined_bits > 0:  # noqa: SIM102 - this one is decided when the kernel is compiled.
        if is_refined:
            left = read_refinement(part[7:], refined_row, channel, is_read, F)
            if F.widths:
                left = left * width
            numbers += left
    return numbers


@triton.jit
def read_refinement(
    part: tl.tensor, row: tl.tensor, channel: tl.tensor, is_read: tl.tensor, F: tl.constexpr
) -> tl.tensor:
    """What a refinement adds to channels int32 [channels], but for the widths: fp32."""
    codes, scales, levels, groups = part
    size: tl.constexpr = F.head_dim * F.refined_bits // 8
    word = load_words(codes, row * size, channel % size, is_read, True)
    shift = ((channel // size) * F.refined_bits)[None, :]
    level = tl.load(levels + level_indices(word, shift, F.refined_bits, True))
    return level * read_scales(scales, row * F.refined_groups, groups, channel, is_read, False)


@triton.jit
def rotate_planes(
    first: tl.tensor,
    second: tl.tensor,
    angles: tl.tensor,
    position: tl.tensor,
    pair: tl.tensor,
    is_read: tl.tensor,
    R: tl.constexpr,
) -> tl.tensor:
    """Two planes that are half of all apart, whose channels are the rotation pairs int32 [pairs].

    angles: the tables of time, height and width, `RopeTables.axis`, and rows and columns of a
    frame. R: the pairs of time, height and width.
    """
    t_table, h_table, w_table, height, width = angles
    cos, sin = load_angles(
        position, is_read, pair, height, width, t_table, h_table, w_table, R[0], R[1], R[2]
    )
    return first * cos - second * sin, first * sin + second * cos
