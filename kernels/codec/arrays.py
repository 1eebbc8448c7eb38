"""What Numba code sees of pages."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qvg_engine.kernels.codec.elements import as_elements
from qvg_engine.kernels.codec.pages import CodedPages


class PageArrays(NamedTuple):
    """The arrays of `CodedPages` and of its codebooks, over the same memory.

    levels: fp32 [32], an entry for every possible code, or place in a trellis.
    plane_groups: int64 [planes], the group of all channels of each bit plane; -1 for all where
        some plane has channels of several groups.
    """

    codes: Any
    ids: Any
    scales: Any
    slot_of_page: Any
    channel_groups: Any
    plane_groups: Any
    levels: Any
    bits: Any
    trellis: Any
    rows: Any
    row_table: Any
    counts: Any
    has_widths: Any


class RefinementArrays(NamedTuple):
    """The arrays of a refinement, over the same memory.

    page_of: int32 [pages]; pages: `PageArrays` of the refinement pages.
    """

    page_of: Any
    pages: Any


def page_arrays(pages: CodedPages) -> PageArrays:
    """The arrays of pages on the CPU, made once for each of them."""
    if "arrays" not in pages.kept:
        pages.kept["arrays"] = _make(pages)
    arrays: PageArrays = pages.kept["arrays"]
    return arrays


def refinement_arrays(pages: CodedPages) -> RefinementArrays | None:
    """The arrays of their refinement, None where there is none; made once, too."""
    refinement = pages.refinement
    if refinement is None:
        return None
    if "refinement arrays" not in pages.kept:
        arrays = page_arrays(pages.refinement_pages())
        pages.kept["refinement arrays"] = RefinementArrays(refinement.page_of, arrays)
    found: RefinementArrays = pages.kept["refinement arrays"]
    return found


def _make(pages: CodedPages) -> PageArrays:
    spec, books = pages.spec, pages.codebooks
    return PageArrays(
        codes=as_elements(pages.codes),
        ids=as_elements(pages.ids),
        scales=as_elements(pages.scales),
        slot_of_page=pages.slot_of_page,
        channel_groups=pages.channel_groups,
        plane_groups=_plane_groups(pages),
        levels=np.array(spec.levels + (32 - len(spec.levels)) * (0.0,), np.float32),
        bits=np.int64(spec.bits),
        trellis=spec.trellis,
        rows=as_elements(books.rows),
        row_table=books.row_table,
        counts=books.counts,
        has_widths=books.has_widths,
    )


def _plane_groups(pages: CodedPages) -> NDArray[np.int64]:
    """See `PageArrays`."""
    num_planes = 8 // pages.spec.bits
    mixed = np.full(num_planes, -1, np.int64)
    if pages.head_dim != num_planes * pages.codes.shape[3]:
        return mixed
    by_plane = pages.channel_groups.reshape(num_planes, -1).astype(np.int64)
    return by_plane[:, 0].copy() if (by_plane == by_plane[:, :1]).all() else mixed
