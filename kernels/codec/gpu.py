"""Decoding coded pages in Triton: one pass over the bytes, rotating on the way."""

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from qvg_engine.kernels.codec.gpu_rows import load_angles, load_words, read_plane
from qvg_engine.kernels.codec.pages import (
    CodedPages,
    allocate_pages,
    consecutive_groups,
    consecutive_slots,
    half_split_groups,
)
from qvg_engine.kernels.codec.refinement import NO_REFINEMENT
from qvg_engine.kernels.codec.spec import PRESETS, CodecSpec
from qvg_engine.kernels.device_table import to_device
from qvg_engine.kernels.gpu import Variant
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.rope import RopeGrid
from qvg_engine.kernels.rope.tables import default_pairs

_LEAST_BYTES = 8
_BLOCK = 32
_NUM_COLUMNS = 8
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def supports(pages: CodedPages, out: Tensor) -> bool:
    """Whether `decode` takes these pages: codes fill 2**n bytes of a row, 8 at least."""
    size = pages.codes.shape[3]
    is_whole = size * 8 == pages.head_dim * pages.spec.bits
    return is_whole and size >= _LEAST_BYTES and size & (size - 1) == 0 and out.dtype in _FLOATS


@triton.jit(do_not_specialize=["num_heads", "out_tokens", "height", "width"])
def _decode(
    entries: tl.tensor,
    row_table: tl.tensor,
    codes: tl.tensor,
    ids: tl.tensor,
    scales: tl.tensor,
    levels: tl.tensor,
    groups: tl.tensor,
    rows: tl.tensor,
    refined_codes: tl.tensor,
    refined_scales: tl.tensor,
    refined_levels: tl.tensor,
    refined_groups: tl.tensor,
    t_table: tl.tensor,
    h_table: tl.tensor,
    w_table: tl.tensor,
    out: tl.tensor,
    num_heads: tl.tensor,
    out_tokens: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
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
    T_PAIRS: tl.constexpr,
    H_PAIRS: tl.constexpr,
    W_PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A block of the slots of one entry, one head. Without rotation there are no pairs at all."""
    blocks: tl.constexpr = (PAGE + BLOCK - 1) // BLOCK
    size: tl.constexpr = HEAD_DIM * BITS // 8
    planes: tl.constexpr = 8 // BITS
    rotates: tl.constexpr = T_PAIRS + H_PAIRS + W_PAIRS > 0
    apart: tl.constexpr = planes // 2 if rotates else planes
    head = tl.program_id(1)
    entry = entries + (tl.program_id(0) // blocks) * 8
    page = tl.load(entry).to(tl.int64)
    position, begin = tl.load(entry + 1), tl.load(entry + 2)
    count, place = tl.load(entry + 3), tl.load(entry + 4)
    listed, num_centroids = tl.load(entry + 5), tl.load(entry + 6)
    refined = tl.load(entry + 7)
    token = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    is_read = token < count
    slot = begin + token
    row = (page * num_heads + head) * PAGE + slot
    refined_row = (refined.to(tl.int64) * num_heads + head) * PAGE + slot
    id_row = (page * num_heads + head) * (STAGES * PAGE) + slot
    target = (head.to(tl.int64) * out_tokens + place + token) * HEAD_DIM
    byte = tl.arange(0, size)
    word = load_words(codes, row * size, byte, is_read, TRELLIS)
    for plane in tl.static_range(apart):
        numbers = read_plane(
            word,
            levels,
            scales,
            groups,
            rows,
            row_table,
            listed,
            num_centroids,
            ids,
            row,
            id_row,
            refined_codes,
            refined_levels,
            refined_scales,
            refined_groups,
            refined_row,
            is_read,
            refined >= 0,
            num_heads,
            head,
            plane,
            HEAD_DIM,
            PAGE,
            BITS,
            TRELLIS,
            GROUPS,
            ONE_GROUP,
            STAGES,
            WIDTHS,
            REFINED_BITS,
            REFINED_GROUPS,
        )
        at = out + target[:, None] + (plane * size + byte)[None, :]
        if rotates:
            second = read_plane(
                word,
                levels,
                scales,
                groups,
                rows,
                row_table,
                listed,
                num_centroids,
                ids,
                row,
                id_row,
                refined_codes,
                refined_levels,
                refined_scales,
                refined_groups,
                refined_row,
                is_read,
                refined >= 0,
                num_heads,
                head,
                plane + apart,
                HEAD_DIM,
                PAGE,
                BITS,
                TRELLIS,
                GROUPS,
                ONE_GROUP,
                STAGES,
                WIDTHS,
                REFINED_BITS,
                REFINED_GROUPS,
            )
            cos, sin = load_angles(
                t_table,
                h_table,
                w_table,
                position + token,
                plane * size + byte,
                is_read,
                height,
                width,
                T_PAIRS,
                H_PAIRS,
                W_PAIRS,
            )
            turned = numbers * sin + second * cos
            numbers = numbers * cos - second * sin
            tl.store(at + HEAD_DIM // 2, turned.to(out.dtype.element_ty), mask=is_read[:, None])
        tl.store(at, numbers.to(out.dtype.element_ty), mask=is_read[:, None])


class _Constants(NamedTuple):
    """What a format's kernels look up, on the device of its pages.

    levels: fp32 [32], an entry for every possible code, or place in a trellis; groups: the
    `channel_groups`. Those of the pages themselves stand for a refinement that there is none of.
    """

    levels: Tensor
    groups: Tensor
    refined_levels: Tensor
    refined_groups: Tensor


class Rotation(NamedTuple):
    """The rotation as arguments of a kernel: tables of time, height and width; no pairs for none.

    frame: rows and columns of a frame in tokens.
    """

    tables: tuple[Tensor, Tensor, Tensor]
    pairs: tuple[int, int, int]
    frame: tuple[int, int]


def decode(
    pages: CodedPages, runs: PageRuns, out: Tensor, *, start: int, rope: RopeGrid | None
) -> None:
    """See `decode.decode`. The host does not wait for the device."""
    if not len(runs.page_id):
        return
    entries, row_table = page_tables(pages, runs, start)
    rotation = make_rotation(rope, runs.largest_position, out.device)
    constants = _constants(pages)
    refinement = pages.refinement
    t_pairs, h_pairs, w_pairs = rotation.pairs
    blocks = -(-pages.page_size // _BLOCK)
    _decode[(len(runs.page_id) * blocks, pages.num_heads)](
        entries,
        row_table,
        pages.codes,
        pages.ids,
        pages.scales,
        constants.levels,
        constants.groups,
        pages.codebooks.rows,
        pages.codes if refinement is None else refinement.codes,
        pages.scales if refinement is None else refinement.scales,
        constants.refined_levels,
        constants.refined_groups,
        *rotation.tables,
        out,
        pages.num_heads,
        out.shape[1],
        *rotation.frame,
        T_PAIRS=t_pairs,
        H_PAIRS=h_pairs,
        W_PAIRS=w_pairs,
        BLOCK=_BLOCK,
        num_warps=4,
        **format_constants(pages),
    )


def page_tables(pages: CodedPages, runs: PageRuns, start: int) -> tuple[Tensor, Tensor]:
    """What kernels read of the runs, int32 on the device of the pages, in one copy.

    Entries [runs, 8]: page, position of the first token, its slot, number of tokens, place of the
    first token in the output, where in the second table the page's codebook is listed, its
    centroids a stage, refinement page or -1. The second are the rows of the codebooks in use.
    """
    slots = pages.slot_of_page[runs.page_id]
    used, places = np.unique(slots, return_inverse=True)
    row_table = pages.codebooks.row_table[used]
    counts = runs.end - runs.begin
    entries = np.empty((len(slots), _NUM_COLUMNS), np.int32)
    entries[:, 0] = runs.page_id
    entries[:, 1] = runs.first_token + runs.begin
    entries[:, 2] = runs.begin
    entries[:, 3] = counts
    entries[:, 4] = start + np.cumsum(counts) - counts
    entries[:, 5] = places * row_table.shape[1]
    entries[:, 6] = pages.codebooks.counts[slots]
    refinement = pages.refinement
    entries[:, 7] = NO_REFINEMENT if refinement is None else refinement.page_of[runs.page_id]
    both = to_device(np.concatenate((entries.reshape(-1), row_table.reshape(-1))), pages.device)
    return both[: entries.size], both[entries.size :]


def make_rotation(rope: RopeGrid | None, largest_position: int, device: torch.device) -> Rotation:
    """The rotation of tokens up to this number."""
    if rope is None:
        nothing = _nothing(device)
        return Rotation((nothing, nothing, nothing), (0, 0, 0), (1, 1))
    frames = largest_position // (rope.height * rope.width) + 1
    lengths = (frames, rope.height, rope.width)
    t, h, w = (rope.tables.axis(axis, length) for axis, length in enumerate(lengths))
    return Rotation((t, h, w), rope.tables.pairs, (rope.height, rope.width))


@functools.cache
def _nothing(device: torch.device) -> Tensor:
    """Stands for a tensor that no kernel reads."""
    return torch.zeros(1, device=device)


def format_constants(pages: CodedPages) -> dict[str, Any]:
    """The constants of kernels that follow from the format."""
    spec, refinement = pages.spec, pages.refinement
    return {
        "HEAD_DIM": pages.head_dim,
        "PAGE": pages.page_size,
        "BITS": spec.bits,
        "TRELLIS": spec.trellis,
        "GROUPS": pages.scales.shape[3],
        "ONE_GROUP": _has_one_group(pages),
        "STAGES": spec.stages,
        "WIDTHS": spec.channel_widths,
        "REFINED_BITS": 0 if refinement is None else refinement.spec.bits,
        "REFINED_GROUPS": 1 if refinement is None else refinement.scales.shape[3],
    }


def _has_one_group(pages: CodedPages) -> bool:
    """Whether all channels of any plane have the same scale."""
    of_planes = pages.channel_groups.reshape(8 // pages.spec.bits, -1)
    return bool((of_planes == of_planes[:, :1]).all())


def _constants(pages: CodedPages) -> _Constants:
    if "constants" not in pages.kept:
        refinement = pages.refinement
        of_refinement = pages if refinement is None else pages.refinement_pages()
        pages.kept["constants"] = _Constants(
            *(
                tensor
                for part in (pages, of_refinement)
                for tensor in (
                    _all_levels(part.spec).to(pages.device),
                    torch.from_numpy(part.channel_groups).to(pages.device),
                )
            )
        )
    constants: _Constants = pages.kept["constants"]
    return constants


def _all_levels(spec: CodecSpec) -> Tensor:
    levels = torch.zeros(32)
    levels[: len(spec.levels)] = torch.tensor(spec.levels)
    return levels


def variants() -> tuple[Variant, ...]:
    """What `decode` launches for the named formats, in bf16: K is rotated, V is not."""
    return tuple(
        _variant(name, head_dim, is_key=is_key)
        for name in PRESETS
        for head_dim in (64, 128)
        for is_key in (True, False)
    )


def _variant(name: str, head_dim: int, *, is_key: bool) -> Variant:
    spec = PRESETS[name].for_head_dim(head_dim)
    groups = half_split_groups if is_key else consecutive_groups
    pages = allocate_pages(
        spec,
        num_pages=1,
        num_heads=1,
        page_size=64,
        head_dim=head_dim,
        row_table=consecutive_slots(spec, 1),
        device="meta",
        channel_groups=groups(head_dim, spec.group),
        refinement_pages=1 if spec.trellis else 0,
    )
    pairs = default_pairs(head_dim) if is_key else (0, 0, 0)
    stored = {torch.uint8: "*u8", torch.bfloat16: "*bf16"}
    pointers = {
        **dict.fromkeys(("entries", "row_table", "groups", "refined_groups"), "*i32"),
        **dict.fromkeys(("codes", "ids", "scales", "refined_codes", "refined_scales"), "*u8"),
        **dict.fromkeys(("levels", "refined_levels", "t_table", "h_table", "w_table"), "*fp32"),
        "rows": stored[pages.codebooks.rows.dtype],
        "out": "*bf16",
    }
    constants = format_constants(pages) | {
        "T_PAIRS": pairs[0],
        "H_PAIRS": pairs[1],
        "W_PAIRS": pairs[2],
        "BLOCK": _BLOCK,
    }
    numbers = dict.fromkeys(("num_heads", "out_tokens", "height", "width"), "i32")
    kinds = pointers | numbers | dict.fromkeys(constants, "constexpr")
    return Variant(
        name=f"decode-{name}-d{head_dim}-{'k' if is_key else 'v'}",
        kernel=_decode,
        signature={argument: kinds[argument] for argument in _decode.arg_names},
        constants=constants,
        # The row table follows the entries in one tensor.
        aligned=tuple(pointer for pointer in pointers if pointer != "row_table"),
        num_warps=4,
    )
