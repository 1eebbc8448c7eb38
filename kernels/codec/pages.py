"""The payload of pages in a low-bit format, and the codebooks that it refers to."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.codec.e4m3 import SMALLEST_NORMAL, from_e4m3, to_e4m3
from qvg_engine.kernels.codec.refinement import NO_REFINEMENT, Refinement, allocate_refinement
from qvg_engine.kernels.codec.spec import CodecSpec
from qvg_engine.kernels.device_table import to_device
from qvg_engine.kernels.kmeans import MAX_CENTROIDS
from qvg_engine.kernels.rope.layout import half_split_index

NO_SLOT = -1
"""The codebook slot of a page that was never encoded into."""
NO_ROW = -1
"""Stands behind the last row of a slot."""


@dataclass(frozen=True, slots=True)
class Codebooks:
    """The codebooks of K or V of one layer: rows from anywhere, listed for each slot.

    A slot's first row are its widths, where there are any; the centroids of stage after stage
    follow. So codebooks of different sizes share one tensor.

    rows: [rows, heads, head_dim]; uint8 is E4M3.
    row_table: int32 [slots, most rows of a slot], -1 behind a slot's last row; read only here.
    counts: how many centroids of each stage exist, int32 [slots]; 0 for an empty slot.
    num_stages, has_widths: what a codebook is made of.
    """

    rows: Tensor
    row_table: NDArray[np.int32]
    counts: NDArray[np.int32]
    num_stages: int
    has_widths: bool

    @property
    def num_slots(self) -> int:
        return len(self.row_table)

    @property
    def num_bytes(self) -> int:
        return self.rows.nbytes

    def capacity(self, slot: int) -> int:
        """Centroids of each stage that the slot has room for; 1 where there are no stages."""
        num_rows = int((self.row_table[slot] != NO_ROW).sum()) - self.has_widths
        return min(MAX_CENTROIDS, num_rows // self.num_stages) if self.num_stages else 1

    def stage(self, slot: int, stage: int) -> Tensor:
        """The centroids of one stage that exist: fp32 [heads, centroids, head_dim], a copy."""
        return _widened(self.rows[self._stage_rows(slot, stage)]).transpose(0, 1).contiguous()

    def set_stage(self, slot: int, stage: int, centroids: Tensor) -> None:
        """Store fp32 [heads, centroids, head_dim], rounded and within the range of the type."""
        rows = _rounded(centroids, self.rows.dtype)
        self.rows[self._stage_rows(slot, stage)] = rows.transpose(0, 1)

    def widths(self, slot: int) -> Tensor | None:
        """The widths, fp32 [heads, head_dim], a copy; None where there are none."""
        return _widened(self.rows[int(self.row_table[slot, 0])]) if self.has_widths else None

    def set_widths(self, slot: int, widths: Tensor) -> None:
        """Store fp32 [heads, head_dim], rounded and within the normal numbers of the type."""
        dtype = self.rows.dtype
        least = SMALLEST_NORMAL if dtype == torch.uint8 else torch.finfo(dtype).smallest_normal
        self.rows[int(self.row_table[slot, 0])] = _rounded(widths.clamp(min=least), dtype)

    def gather(self, slots: NDArray[np.integer]) -> tuple[Tensor, Tensor]:
        """Codebooks side by side in fp32, for a kernel that looks things up.

        Centroids [len(slots), heads, stages, most centroids, head_dim], zero where there is none,
        and widths [len(slots), heads, head_dim], ones where a format has none.
        """
        _, num_heads, head_dim = self.rows.shape
        most = int(self.counts[slots].max(initial=0))
        shape = (len(slots), num_heads, self.num_stages, most, head_dim)
        centroids = self.rows.new_zeros(shape, dtype=torch.float32)
        widths = self.rows.new_ones((len(slots), num_heads, head_dim), dtype=torch.float32)
        for place, slot in enumerate(slots.tolist()):
            for stage in range(self.num_stages):
                stored = self.stage(slot, stage)
                centroids[place, :, stage, : stored.shape[1]] = stored
            if self.has_widths and self.row_table[slot, 0] != NO_ROW:
                widths[place] = _widened(self.rows[int(self.row_table[slot, 0])])
        return centroids, widths

    def _stage_rows(self, slot: int, stage: int) -> Tensor:
        count = int(self.counts[slot])
        first = self.has_widths + stage * count
        rows = self.row_table[slot, first : first + count]
        assert (rows != NO_ROW).all(), f"slot {slot} has no rows for {count} centroids"
        return to_device(rows.astype(np.int64), self.rows.device)


@dataclass(frozen=True, slots=True)
class CodedPages:
    """K or V of one layer as centroid ids, codes and scales.

    codes: uint8 [pages, heads, page_size, bytes], see `packing.py`.
    ids: uint8 [pages, heads, stages, page_size].
    scales: uint8 (E4M3 bits) or float16 [pages, heads, page_size, groups].
    slot_of_page: int32 [pages], the codebook slot of each page, on the host.
    codebooks: those that pages may refer to.
    spec: what it all means.
    channel_groups: int32 [head_dim], which scale each channel of a row uses.
    refinement: second codes that some of the pages may have; None where none ever has.
    kept: what kernels make of it once and keep, see `arrays.page_arrays`.
    views: the same memory seen otherwise, made when it is first asked for.
    """

    codes: Tensor
    ids: Tensor
    scales: Tensor
    slot_of_page: NDArray[np.int32]
    codebooks: Codebooks
    spec: CodecSpec
    channel_groups: NDArray[np.int32]
    refinement: Refinement | None = None
    kept: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    views: dict[str, "CodedPages"] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def num_pages(self) -> int:
        return self.codes.shape[0]

    @property
    def num_heads(self) -> int:
        return self.codes.shape[1]

    @property
    def page_size(self) -> int:
        return self.codes.shape[2]

    @property
    def head_dim(self) -> int:
        return len(self.channel_groups)

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors, codebooks and refinement included; not of host arrays."""
        rows = self.codes.nbytes + self.ids.nbytes + self.scales.nbytes
        refined = self.refinement.num_bytes if self.refinement is not None else 0
        return rows + refined + self.codebooks.num_bytes

    def unrefined(self) -> "CodedPages":
        """The same pages without their refinement; always the same object."""
        if "unrefined" not in self.views:
            self.views["unrefined"] = replace(self, refinement=None)
        return self.views["unrefined"]

    def refinement_pages(self) -> "CodedPages":
        """The refinement as pages of their own, over the same memory; always the same object.

        Their codebooks are those of these pages, of which they use the widths alone.
        """
        if "refinement" not in self.views:
            refinement = self.refinement
            assert refinement is not None
            num_pages, num_heads, page_size = refinement.codes.shape[:3]
            self.views["refinement"] = CodedPages(
                codes=refinement.codes,
                ids=refinement.codes.new_empty((num_pages, num_heads, 0, page_size)),
                scales=refinement.scales,
                slot_of_page=np.full(num_pages, NO_SLOT, dtype=np.int32),
                codebooks=replace(self.codebooks, num_stages=0),
                spec=refinement.spec,
                channel_groups=refinement.channel_groups,
            )
        return self.views["refinement"]

    @property
    def group_channels(self) -> NDArray[np.int64]:
        """The channels of each group in ascending order, int64 [groups, group]."""
        order = np.argsort(self.channel_groups, kind="stable").astype(np.int64)
        return order.reshape(-1, self.spec.group)


def consecutive_groups(head_dim: int, group: int) -> NDArray[np.int32]:
    """`channel_groups` of rows in the published order of channels."""
    return np.arange(head_dim, dtype=np.int32) // np.int32(group)


def consecutive_slots(spec: CodecSpec, num_slots: int) -> NDArray[np.int32]:
    """A `row_table` of slots that each have room for all the centroids of the spec."""
    num_rows = spec.stages * spec.centroids + spec.channel_widths
    return np.arange(num_slots * num_rows, dtype=np.int32).reshape(num_slots, num_rows)


def half_split_groups(head_dim: int, group: int) -> NDArray[np.int32]:
    """`channel_groups` of rows in half-split order whose published order has consecutive groups.

    See `kernels/rope/layout.py`.
    """
    groups: NDArray[np.int32] = consecutive_groups(head_dim, group)[
        half_split_index(head_dim).numpy()
    ]
    return groups


def allocate_pages(
    spec: CodecSpec,
    *,
    num_pages: int,
    num_heads: int,
    page_size: int,
    head_dim: int,
    row_table: NDArray[np.int32],
    num_rows: int | None = None,
    device: torch.device | str,
    channel_groups: NDArray[np.int32] | None = None,
    refinement_pages: int = 0,
    refined_page_of: NDArray[np.int32] | None = None,
) -> CodedPages:
    """Pages that nothing was encoded into, and empty codebooks in `num_rows` rows.

    `row_table` int32 [slots, rows] says which rows a slot has; its owner may change it for slots
    that no page refers to.
    `channel_groups` is by default that of consecutive groups. Raises `ConfigError` if a row is not
    a whole number of groups, see `CodecSpec.for_head_dim`.
    With `refinement_pages`, pages may have a refinement: `refined_page_of` int32 [num_pages] says
    which page has which, and its owner may change it; by default a new array, none for all.
    """
    num_groups = spec.num_groups(head_dim)
    if channel_groups is None:
        channel_groups = consecutive_groups(head_dim, spec.group)
    assert channel_groups.shape == (head_dim,), channel_groups.shape
    counts = np.bincount(channel_groups, minlength=num_groups)
    assert (counts == spec.group).all(), (channel_groups, spec.group)
    refinement = None
    assert refinement_pages or refined_page_of is None, "no refinement pages"
    if refinement_pages:
        if refined_page_of is None:
            refined_page_of = np.full(num_pages, NO_REFINEMENT, dtype=np.int32)
        assert refined_page_of.shape == (num_pages,), refined_page_of.shape
        assert refined_page_of.dtype == np.int32, refined_page_of.dtype
        refinement = allocate_refinement(
            num_pages=refinement_pages,
            num_heads=num_heads,
            page_size=page_size,
            page_of=refined_page_of,
            channel_groups=channel_groups,
            device=device,
        )
    scale_dtype = torch.uint8 if spec.scale_type == "e4m3" else torch.float16
    rows = (num_pages, num_heads, page_size)
    return CodedPages(
        codes=torch.empty((*rows, spec.code_bytes(head_dim)), dtype=torch.uint8, device=device),
        ids=torch.empty(
            (num_pages, num_heads, spec.stages, page_size), dtype=torch.uint8, device=device
        ),
        scales=torch.empty((*rows, num_groups), dtype=scale_dtype, device=device),
        slot_of_page=np.full(num_pages, NO_SLOT, dtype=np.int32),
        codebooks=Codebooks(
            rows=torch.empty(
                (row_table.size if num_rows is None else num_rows, num_heads, head_dim),
                dtype=_centroid_dtype(spec),
                device=device,
            ),
            row_table=row_table,
            counts=np.zeros(row_table.shape[0], dtype=np.int32),
            num_stages=spec.stages,
            has_widths=spec.channel_widths,
        ),
        spec=spec,
        channel_groups=channel_groups.astype(np.int32),
        refinement=refinement,
    )


def _centroid_dtype(spec: CodecSpec) -> torch.dtype:
    dtype: torch.dtype = (
        torch.uint8 if spec.centroid_type == "e4m3" else getattr(torch, spec.centroid_type)
    )
    return dtype


def _rounded(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """fp32 as it is stored, within the range of the type."""
    if dtype == torch.uint8:
        return to_e4m3(numbers)
    largest = torch.finfo(dtype).max
    return numbers.clamp(-largest, largest).to(dtype)


def _widened(stored: Tensor) -> Tensor:
    """What is stored as fp32, a new tensor."""
    return from_e4m3(stored) if stored.dtype == torch.uint8 else stored.to(torch.float32, copy=True)
