"""Decoding pages straight to 8 bits on a GPU (Triton): one pass over the bytes.

A program decodes a block of tokens of one page and head to a tile of fp32 in registers, woven as in
`gpu_tiles`, and writes it as codes: K in order, rotated, with a scale a token; V transposed. Pages
that hold rows as they are give tiles of two planes, which are the halves of a row.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import triton
import triton.language as tl
from torch import Tensor

from qvg_engine.kernels.codec.gpu_pages import (
    NUM_COLUMNS,
    POINTERS,
    Format,
    format_of,
    has_whole_planes,
    make_angles,
    page_tables,
    plain_format,
    pointer_types,
    pointers,
    sample_pages,
)
from qvg_engine.kernels.codec.gpu_rows import locate, rotate_planes
from qvg_engine.kernels.codec.gpu_tiles import read_tile, woven_channels
from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.codec.spec import PRESETS
from qvg_engine.kernels.device import ARCHITECTURES, Architecture, device_of
from qvg_engine.kernels.device_table import to_device
from qvg_engine.kernels.gpu import Variant
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.paged_attention.eight_bit import EightBitWorkspace
from qvg_engine.kernels.paged_attention.gpu_bound_values import bound_pages
from qvg_engine.kernels.paged_attention.gpu_quantise import (
    inverse_scales,
    quantise_channels,
    quantise_rows,
)
from qvg_engine.kernels.paged_attention.pages import Pages
from qvg_engine.kernels.rope import RopeGrid
from qvg_engine.kernels.rope.gpu import SUPPORTED_DTYPES
from qvg_engine.kernels.rope.tables import default_pairs

__all__ = ["bound_pages", "decode_keys", "decode_values", "supports", "variants"]

_COLUMNS = tl.constexpr(NUM_COLUMNS)


class _Tile(NamedTuple):
    """Tokens and warps of a program."""

    tokens: int
    warps: int


_KEY_TILE: Final = _Tile(32, 8)
"""4096 numbers; with half as many warps, K of four stages spills on sm_120."""
_VALUE_TILE: Final = _Tile(64, 16)
"""Transposed rows of 64 bytes; with half as many warps up to 254 registers a thread."""
_SMALL_VALUE_TILE: Final = _Tile(32, 8)
"""For sm_89, where the larger spills in some formats."""
_ALIGNMENTS: Final = (16, 8, 1)
"""What all places of tokens may be multiples of: so many codes of V are written at once."""


def supports(pages: Pages) -> bool:
    """Whether the kernels take these pages: whole planes of codes, or rows of a usual dtype."""
    if isinstance(pages, CodedPages):
        return has_whole_planes(pages)
    return pages.data.dtype in SUPPORTED_DTYPES


@triton.jit
def _read_halves(
    rows: tl.tensor,
    row: tl.tensor,
    angles: tl.tensor,
    position: tl.tensor,
    is_read: tl.tensor,
    F: tl.constexpr,
    R: tl.constexpr,
) -> tl.tensor:
    """Tokens of a page of plain rows: see `read_tile`."""
    half: tl.constexpr = F.head_dim // 2
    pair = tl.arange(0, half)
    at = rows + (row * F.head_dim)[:, None] + pair[None, :]
    first = tl.load(at, mask=is_read[:, None], other=0.0).to(tl.float32)
    second = tl.load(at + half, mask=is_read[:, None], other=0.0).to(tl.float32)
    if R[0] + R[1] + R[2] > 0:
        first, second = rotate_planes(first, second, angles, position, pair, is_read, R)
    return tl.reshape(tl.join(first, second), (position.shape[0], F.head_dim))


@triton.jit
def _read(
    part: tl.tensor,
    at: tl.tensor,
    angles: tl.tensor,
    position: tl.tensor,
    is_read: tl.tensor,
    F: tl.constexpr,
    R: tl.constexpr,
) -> tl.tensor:
    """A woven tile, fp32; rows of 0 bits are plain."""
    if F.bits == 0:
        tile = _read_halves(part[0], at[0], angles, position, is_read, F, R)
    else:
        tile = read_tile(part, at, angles, position, is_read, F, R, tl.float32)
    return tile


@triton.jit(do_not_specialize=["num_heads", "height", "width"])
def _decode_keys(
    entries: tl.tensor,
    codes: tl.tensor,
    ids: tl.tensor,
    scales: tl.tensor,
    levels: tl.tensor,
    groups: tl.tensor,
    rows: tl.tensor,
    row_table: tl.tensor,
    refined_codes: tl.tensor,
    refined_scales: tl.tensor,
    refined_levels: tl.tensor,
    refined_groups: tl.tensor,
    t_table: tl.tensor,
    h_table: tl.tensor,
    w_table: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    keys: tl.tensor,
    key_scales: tl.tensor,
    num_heads: tl.tensor,
    max_tokens: tl.tensor,
    F: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A block of the slots of one entry, one head. Without rotation there are no pairs at all."""
    part = (
        codes,
        ids,
        scales,
        levels,
        groups,
        rows,
        row_table,
        refined_codes,
        refined_scales,
        refined_levels,
        refined_groups,
    )
    angles = (t_table, h_table, w_table, height, width)
    blocks: tl.constexpr = (F.page_size + BLOCK - 1) // BLOCK
    planes: tl.constexpr = 2 if F.bits == 0 else 8 // F.bits
    head = tl.program_id(1)
    entry = entries + (tl.program_id(0) // blocks) * _COLUMNS
    token = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    is_read = token < tl.load(entry + 3)
    at = locate(entry, token, num_heads, head, F)
    tile = _read(part, at, angles, tl.load(entry + 1) + token, is_read, F, R)
    narrow, row_scales = quantise_rows(tile)
    # Bytes are put back in order, a quarter of what the numbers would be.
    narrow = tl.permute(tl.reshape(narrow, (BLOCK, F.head_dim // planes, planes)), (0, 2, 1))
    narrow = tl.reshape(narrow, (BLOCK, F.head_dim))
    place = head.to(tl.int64) * max_tokens + tl.load(entry + 4) + token
    target = keys + (place * F.head_dim)[:, None] + tl.arange(0, F.head_dim)[None, :]
    tl.store(target, narrow, is_read[:, None])
    tl.store(key_scales + place, row_scales, is_read)


@triton.jit(do_not_specialize=["num_heads"])
def _decode_values(
    entries: tl.tensor,
    codes: tl.tensor,
    ids: tl.tensor,
    scales: tl.tensor,
    levels: tl.tensor,
    groups: tl.tensor,
    rows: tl.tensor,
    row_table: tl.tensor,
    refined_codes: tl.tensor,
    refined_scales: tl.tensor,
    refined_levels: tl.tensor,
    refined_groups: tl.tensor,
    values: tl.tensor,
    value_scales: tl.tensor,
    num_heads: tl.tensor,
    max_tokens: tl.tensor,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    E4M3: tl.constexpr,
) -> None:
    """A block of the slots of one entry, one head.

    ALIGNMENT: what first places and counts of all entries are multiples of.
    """
    part = (
        codes,
        ids,
        scales,
        levels,
        groups,
        rows,
        row_table,
        refined_codes,
        refined_scales,
        refined_levels,
        refined_groups,
    )
    nothing = (levels, levels, levels, 1, 1)
    blocks: tl.constexpr = (F.page_size + BLOCK - 1) // BLOCK
    planes: tl.constexpr = 2 if F.bits == 0 else 8 // F.bits
    head = tl.program_id(1)
    entry = entries + (tl.program_id(0) // blocks) * _COLUMNS
    token = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    # Divided and multiplied so that the compiler sees it.
    is_read = token < tl.load(entry + 3) // ALIGNMENT * ALIGNMENT
    place = tl.load(entry + 4) // ALIGNMENT * ALIGNMENT + token
    at = locate(entry, token, num_heads, head, F)
    tile = _read(part, at, nothing, token, is_read, F, (0, 0, 0))
    channel = head.to(tl.int64) * F.head_dim + woven_channels(F.head_dim, planes)
    inverse = inverse_scales(tl.load(value_scales + channel))
    narrow = tl.trans(quantise_channels(tile, inverse, E4M3))
    target = values + (channel * max_tokens)[:, None] + place[None, :]
    tl.store(target, narrow, is_read[None, :])


def decode_keys(
    workspace: EightBitWorkspace,
    pages: Pages,
    runs: PageRuns,
    *,
    start: int,
    rope: RopeGrid | None,
) -> None:
    """See `decode_eight_bit.decode_keys`. The host does not wait for the device."""
    if not len(runs.page_id):
        return
    entries, tensors, page_format = _arguments(pages, runs, start)
    angles = make_angles(rope, runs.largest_position, pages.device)
    blocks = -(-pages.page_size // _KEY_TILE.tokens)
    _decode_keys[(len(runs.page_id) * blocks, pages.num_heads)](
        entries,
        *tensors,
        *angles.tables,
        *angles.frame,
        workspace.keys,
        workspace.key_scales,
        pages.num_heads,
        workspace.max_tokens,
        F=page_format,
        R=angles.pairs,
        BLOCK=_KEY_TILE.tokens,
        num_warps=_KEY_TILE.warps,
    )


def decode_values(
    workspace: EightBitWorkspace, pages: Pages, runs: PageRuns, *, start: int
) -> None:
    """See `decode_eight_bit.decode_values`. The host does not wait for the device."""
    if not len(runs.page_id):
        return
    entries, tensors, page_format = _arguments(pages, runs, start)
    tile = _value_tile(device_of(pages.device).architecture)
    blocks = -(-pages.page_size // tile.tokens)
    _decode_values[(len(runs.page_id) * blocks, pages.num_heads)](
        entries,
        *tensors,
        workspace.values,
        workspace.value_scales,
        pages.num_heads,
        workspace.max_tokens,
        F=page_format,
        BLOCK=tile.tokens,
        ALIGNMENT=alignment(runs, start),
        E4M3=workspace.has_e4m3,
        num_warps=tile.warps,
    )


def _value_tile(architecture: Architecture) -> _Tile:
    return _SMALL_VALUE_TILE if architecture == 89 else _VALUE_TILE


def alignment(runs: PageRuns, start: int) -> int:
    """The largest of `_ALIGNMENTS` that the first place and the count of every run has."""
    shared = int(np.gcd.reduce(runs.end - runs.begin, initial=start))
    return next(a for a in _ALIGNMENTS if shared % a == 0)


def _arguments(
    pages: Pages, runs: PageRuns, start: int
) -> tuple[Tensor, tuple[Tensor, ...], Format]:
    """The entries, the tensors of `gpu_pages.POINTERS`, and the format."""
    if isinstance(pages, CodedPages):
        entries, row_table = page_tables(pages, runs, start)
        return entries, pointers(pages, row_table), format_of(pages)
    counts = runs.end - runs.begin
    table = np.zeros((len(counts), NUM_COLUMNS), np.int32)
    table[:, 0] = runs.page_id
    table[:, 1] = runs.first_token + runs.begin
    table[:, 2] = runs.begin
    table[:, 3] = counts
    table[:, 4] = start + np.cumsum(counts) - counts
    return (
        to_device(table.reshape(-1), pages.device),
        (pages.data,) * len(POINTERS),
        plain_format(pages.head_dim, pages.page_size),
    )


def variants() -> tuple[Variant, ...]:
    """What is launched for the named formats and bf16: K rotated, V in E4M3 and in fp16."""
    found = []
    for name in (*PRESETS, "bf16"):
        for head_dim in (64, 128):
            constants = {"R": default_pairs(head_dim), "BLOCK": _KEY_TILE.tokens}
            found.append(_variant(name, head_dim, "k", constants, warps=_KEY_TILE.warps))
            # Places are multiples of 16 but where a chunk's last page is part full.
            for aligned in _ALIGNMENTS:
                found += _value_variants(name, head_dim, aligned)
    return tuple(found)


def _value_variants(name: str, head_dim: int, aligned: int) -> list[Variant]:
    found = []
    # Tiles of 89 are for 86 too, which has no E4M3.
    for kind, architectures in (("v", ARCHITECTURES[1:]), ("v-fp16", ARCHITECTURES[:2])):
        for tile in (_VALUE_TILE, _SMALL_VALUE_TILE):
            variant = _variant(
                name,
                head_dim,
                f"{kind}-{aligned}-t{tile.tokens}",
                {"BLOCK": tile.tokens, "ALIGNMENT": aligned, "E4M3": kind == "v"},
                warps=tile.warps,
                architectures=tuple(a for a in architectures if _value_tile(a) == tile),
            )
            found.append(variant)
    return found


def _variant(
    name: str,
    head_dim: int,
    kind: str,
    constants: dict[str, Any],
    *,
    warps: int,
    architectures: tuple[Architecture, ...] | None = None,
) -> Variant:
    is_key = kind == "k"
    types, page_format = dict.fromkeys(POINTERS, "*bf16"), plain_format(head_dim, 64)
    if name in PRESETS:
        pages = sample_pages(PRESETS[name], head_dim, is_key=is_key)
        types, page_format = pointer_types(pages), format_of(pages)
    kernel: Any = _decode_keys if is_key else _decode_values
    tensors = {
        "entries": "*i32",
        **types,
        **dict.fromkeys(("t_table", "h_table", "w_table"), "*fp32"),
        "keys": "*i8",
        "key_scales": "*fp32",
        "values": "*u8" if constants.get("E4M3") else "*fp16",
        "value_scales": "*fp32",
    }
    constants = constants | {"F": page_format}
    numbers = dict.fromkeys(("num_heads", "max_tokens", "height", "width"), "i32")
    kinds = tensors | numbers | dict.fromkeys(constants, "constexpr")
    return Variant(
        name=f"decode-eight-bit-{name}-d{head_dim}-{kind}",
        kernel=kernel,
        signature={argument: kinds[argument] for argument in kernel.arg_names},
        constants=constants,
        # The row table follows the entries in one tensor.
        aligned=(
            *(a for a in kernel.arg_names if a in tensors and (a != "row_table" or name == "bf16")),
            "max_tokens",
        ),
        num_warps=warps,
        architectures=architectures,
    )
