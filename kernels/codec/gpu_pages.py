"""Coded pages as arguments of Triton kernels: constants, pointers, and the tables of a call."""

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qvg_engine.kernels.codec.pages import (
    CodedPages,
    allocate_pages,
    consecutive_groups,
    consecutive_slots,
    half_split_groups,
)
from qvg_engine.kernels.codec.refinement import NO_REFINEMENT
from qvg_engine.kernels.codec.spec import CodecSpec
from qvg_engine.kernels.device_table import to_device
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.rope import RopeGrid

NUM_COLUMNS = 8
POINTERS = (
    "codes",
    "ids",
    "scales",
    "levels",
    "groups",
    "rows",
    "row_table",
    "refined_codes",
    "refined_scales",
    "refined_levels",
    "refined_groups",
)
"""What `pointers` returns."""


class Format(NamedTuple):
    """What a kernel is compiled for: the format of pages and the size of their rows.

    one_group: whether all channels of any plane have the same scale; refined_bits: 0 where no page
    has a refinement.
    """

    head_dim: int
    page_size: int
    bits: int
    trellis: bool
    groups: int
    one_group: bool
    stages: int
    widths: bool
    refined_bits: int
    refined_groups: int

    @classmethod
    def of(cls, pages: CodedPages) -> "Format":
        """That of these pages."""
        spec, refinement = pages.spec, pages.refinement
        of_planes = pages.channel_groups.reshape(8 // spec.bits, -1)
        return cls(
            head_dim=pages.head_dim,
            page_size=pages.page_size,
            bits=spec.bits,
            trellis=spec.trellis,
            groups=pages.scales.shape[3],
            one_group=bool((of_planes == of_planes[:, :1]).all()),
            stages=spec.stages,
            widths=spec.channel_widths,
            refined_bits=0 if refinement is None else refinement.spec.bits,
            refined_groups=1 if refinement is None else refinement.scales.shape[3],
        )


class Angles(NamedTuple):
    """The rotation as arguments of a kernel; no pairs where there is none.

    tables: those of time, height and width; frame: rows and columns of a frame in tokens.
    """

    tables: tuple[Tensor, Tensor, Tensor]
    frame: tuple[int, int]
    pairs: tuple[int, int, int]


def plain_format(head_dim: int, page_size: int) -> Format:
    """That of pages without codes: 0 bits."""
    return Format(
        head_dim=head_dim,
        page_size=page_size,
        bits=0,
        trellis=False,
        groups=1,
        one_group=True,
        stages=0,
        widths=False,
        refined_bits=0,
        refined_groups=1,
    )


def has_whole_planes(pages: CodedPages) -> bool:
    """Whether kernels take these pages: codes fill 2**n bytes of a row, 8 at least."""
    size = pages.codes.shape[3]
    is_whole = size * 8 == pages.head_dim * pages.spec.bits
    return is_whole and size >= 8 and size & (size - 1) == 0


def format_of(pages: CodedPages) -> Format:
    """`Format.of`, made once for these pages."""
    if "format" not in pages.kept:
        pages.kept["format"] = Format.of(pages)
    found: Format = pages.kept["format"]
    return found


def pointers(pages: CodedPages, row_table: Tensor) -> tuple[Tensor, ...]:
    """The tensors that kernels read, in the order of `POINTERS`.

    Those of the pages stand for a refinement that there is none of.
    """
    if "constants" not in pages.kept:
        of_refinement = pages if pages.refinement is None else pages.refinement_pages()
        pages.kept["constants"] = (*_constants(pages), *_constants(of_refinement))
    levels, groups, refined_levels, refined_groups = pages.kept["constants"]
    refined = pages if pages.refinement is None else pages.refinement
    return (
        pages.codes,
        pages.ids,
        pages.scales,
        levels,
        groups,
        pages.codebooks.rows,
        row_table,
        refined.codes,
        refined.scales,
        refined_levels,
        refined_groups,
    )


def _constants(pages: CodedPages) -> tuple[Tensor, Tensor]:
    """Levels fp32 [32], one for every possible code, and the channels' groups."""
    levels = torch.zeros(32)
    levels[: len(pages.spec.levels)] = torch.tensor(pages.spec.levels)
    return levels.to(pages.device), torch.from_numpy(pages.channel_groups).to(pages.device)


def page_tables(pages: CodedPages, runs: PageRuns, start: int) -> tuple[Tensor, Tensor]:
    """What kernels read of the runs, int32 on the device of the pages, in one copy.

    Entries [runs * 8]: page, position of the first token, its slot, number of tokens, place of the
    first token in the output, where in the second table the page's codebook is listed, its
    centroids a stage, refinement page or -1. The second are the rows of the codebooks in use.
    """
    slots = pages.slot_of_page[runs.page_id]
    used, places = np.unique(slots, return_inverse=True)
    row_table = pages.codebooks.row_table[used]
    counts = runs.end - runs.begin
    entries = np.empty((len(slots), NUM_COLUMNS), np.int32)
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


def make_angles(rope: RopeGrid | None, largest_position: int, device: torch.device) -> Angles:
    """The rotation of tokens up to this number."""
    if rope is None:
        nothing = _nothing(device)
        return Angles((nothing, nothing, nothing), (1, 1), (0, 0, 0))
    return Angles(rope.axes(largest_position), (rope.height, rope.width), rope.tables.pairs)


@functools.cache
def _nothing(device: torch.device) -> Tensor:
    """Stands for a tensor that no kernel reads."""
    return torch.zeros(1, device=device)


def sample_pages(spec: CodecSpec, head_dim: int, *, is_key: bool) -> CodedPages:
    """Pages without memory, as the engine makes them: what a variant is described by."""
    spec = spec.for_head_dim(head_dim)
    groups = half_split_groups if is_key else consecutive_groups
    return allocate_pages(
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


def pointer_types(pages: CodedPages) -> dict[str, str]:
    """Triton's types of `POINTERS`."""
    rows = {torch.uint8: "*u8", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
    return {
        **dict.fromkeys(POINTERS, "*u8"),
        **dict.fromkeys(("groups", "row_table", "refined_groups"), "*i32"),
        **dict.fromkeys(("levels", "refined_levels"), "*fp32"),
        "rows": rows[pages.codebooks.rows.dtype],
    }
