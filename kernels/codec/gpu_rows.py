"""Rows of coded pages in Triton: what a program makes of the bytes of a block of tokens.

Works plane by plane: the channels at one place of all bytes of a row are consecutive, so that a
plane is [tokens, bytes] numbers in registers, and the two of a rotation pair are half the planes
apart. A refinement has planes of other sizes: of it every channel is read by itself.
"""

import triton
import triton.language as tl


@triton.jit
def widen_e4m3(code: tl.tensor) -> tl.tensor:
    """E4M3 bits as fp32, by integer arithmetic: sm_80 has no such type in Triton."""
    code = code.to(tl.int32)
    magnitude = code & 0x7F
    value = ((magnitude << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    value = tl.where(magnitude < 8, magnitude.to(tl.float32) * 0.001953125, value)
    value = tl.where(magnitude == 0x7F, float("nan"), value)
    return tl.where(code > 0x7F, -value, value)


@triton.jit
def read(pointer: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Stored scales, centroids or widths as fp32, zero where masked; bytes are E4M3."""
    stored = tl.load(pointer, mask=mask, other=0)
    return widen_e4m3(stored) if pointer.dtype.element_ty == tl.uint8 else stored.to(tl.float32)


@triton.jit
def load_words(
    codes: tl.tensor, row: tl.tensor, byte: tl.tensor, is_read: tl.tensor, TRELLIS: tl.constexpr
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
def read_levels(
    word: tl.tensor,
    shift: tl.tensor,
    levels: tl.tensor,
    scales: tl.tensor,
    row: tl.tensor,
    groups: tl.tensor,
    channel: tl.tensor,
    is_read: tl.tensor,
    BITS: tl.constexpr,
    TRELLIS: tl.constexpr,
    ONE_GROUP: tl.constexpr,
) -> tl.tensor:
    """Levels times scales of some channels int32 [channels], fp32 [tokens, channels].

    word, shift: of `level_indices`; row: int64 [tokens], where each token's scales begin; groups:
    int32 [head_dim], the group of each channel. ONE_GROUP says that these channels have the same.
    """
    level = tl.load(levels + level_indices(word, shift, BITS, TRELLIS))
    if ONE_GROUP:
        group = tl.load(groups + tl.min(channel))
        scale = read(scales + row + group, is_read)[:, None]
    else:
        group = tl.load(groups + channel)
        scale = read(scales + row[:, None] + group[None, :], is_read[:, None])
    return level * scale


@triton.jit
def read_plane(
    word: tl.tensor,
    levels: tl.tensor,
    scales: tl.tensor,
    groups: tl.tensor,
    rows: tl.tensor,
    row_table: tl.tensor,
    listed: tl.tensor,
    num_centroids: tl.tensor,
    ids: tl.tensor,
    row: tl.tensor,
    id_row: tl.tensor,
    refined_codes: tl.tensor,
    refined_levels: tl.tensor,
    refined_scales: tl.tensor,
    refined_groups: tl.tensor,
    refined_row: tl.tensor,
    is_read: tl.tensor,
    is_refined: tl.tensor,
    num_heads: tl.tensor,
    head: tl.tensor,
    PLANE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    BITS: tl.constexpr,
    TRELLIS: tl.constexpr,
    GROUPS: tl.constexpr,
    ONE_GROUP: tl.constexpr,
    STAGES: tl.constexpr,
    WIDTHS: tl.constexpr,
    REFINED_BITS: tl.constexpr,
    REFINED_GROUPS: tl.constexpr,
) -> tl.tensor:
    """A plane of a block of tokens of one page, fp32 [tokens, bytes], not rotated.

    listed: where in row_table the rows of the page's codebook are listed, num_centroids: how many
    each of its stages has. row: int64 [tokens], which row of the pages each token is, `refined_row`
    which of the refinement; id_row: where its ids begin. REFINED_BITS is 0 where no page of these
    has a refinement.
    """
    size: tl.constexpr = HEAD_DIM * BITS // 8
    channel = PLANE * size + tl.arange(0, size)
    numbers = read_levels(
        word,
        PLANE * BITS,
        levels,
        scales,
        row * GROUPS,
        groups,
        channel,
        is_read,
        BITS,
        TRELLIS,
        ONE_GROUP,
    )
    if WIDTHS:
        width_row = tl.load(row_table + listed).to(tl.int64) * num_heads + head
        width = read(rows + width_row * HEAD_DIM + channel, channel >= 0)
        numbers = numbers * width[None, :]
        listed += 1
    for stage in tl.static_range(STAGES):
        number = tl.load(ids + id_row + stage * PAGE, mask=is_read, other=0).to(tl.int32)
        centroid = tl.load(
            row_table + listed + stage * num_centroids + number, mask=is_read, other=0
        ).to(tl.int64)
        at = (centroid * num_heads + head) * HEAD_DIM
        numbers += read(rows + at[:, None] + channel[None, :], is_read[:, None])
    if REFINED_BITS > 0:  # noqa: SIM102 - this one is decided when the kernel is compiled.
        if is_refined:
            refined_size: tl.constexpr = HEAD_DIM * REFINED_BITS // 8
            refined_word = load_words(
                refined_codes, refined_row * refined_size, channel % refined_size, is_read, True
            )
            left = read_levels(
                refined_word,
                ((channel // refined_size) * REFINED_BITS)[None, :],
                refined_levels,
                refined_scales,
                refined_row * REFINED_GROUPS,
                refined_groups,
                channel,
                is_read,
                REFINED_BITS,
                True,
                False,
            )
            if WIDTHS:
                left = left * width[None, :]
            numbers += left
    return numbers


@triton.jit
def load_angles(
    t_table: tl.tensor,
    h_table: tl.tensor,
    w_table: tl.tensor,
    position: tl.tensor,
    pair: tl.tensor,
    is_read: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    T_PAIRS: tl.constexpr,
    H_PAIRS: tl.constexpr,
    W_PAIRS: tl.constexpr,
) -> tl.tensor:
    """Cosines and sines, fp32 [tokens, pairs], of rotation pairs int32 [pairs].

    The tables are those of `RopeTables.axis`, [length, 2, pairs of the axis]; a pair belongs to
    time, height or width, in this order.
    """
    frame = position // (height * width)
    rest = position - frame * (height * width)
    line = rest // width
    column = rest - line * width
    t_mask = is_read[:, None] & (pair < T_PAIRS)[None, :]
    h_mask = is_read[:, None] & ((pair >= T_PAIRS) & (pair < T_PAIRS + H_PAIRS))[None, :]
    w_mask = is_read[:, None] & (pair >= T_PAIRS + H_PAIRS)[None, :]
    t_at = t_table + (frame * (2 * T_PAIRS))[:, None] + pair[None, :]
    h_at = h_table + (line * (2 * H_PAIRS))[:, None] + (pair - T_PAIRS)[None, :]
    w_at = w_table + (column * (2 * W_PAIRS))[:, None] + (pair - T_PAIRS - H_PAIRS)[None, :]
    cos = (
        tl.load(t_at, mask=t_mask, other=0.0).to(tl.float32)
        + tl.load(h_at, mask=h_mask, other=0.0).to(tl.float32)
        + tl.load(w_at, mask=w_mask, other=0.0).to(tl.float32)
    )
    sin = (
        tl.load(t_at + T_PAIRS, mask=t_mask, other=0.0).to(tl.float32)
        + tl.load(h_at + H_PAIRS, mask=h_mask, other=0.0).to(tl.float32)
        + tl.load(w_at + W_PAIRS, mask=w_mask, other=0.0).to(tl.float32)
    )
    return cos, sin
