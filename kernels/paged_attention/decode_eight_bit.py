"""Decoding pages of one layer straight into an 8-bit workspace, by the fastest kernel there is.

Before values are decoded, the scales of their channels have to be bounds: `bound_pages` for every
run of pages of a piece, then `decode_keys` and `decode_values`.
"""

from typing import Any

from qvg_engine.kernels import gpu
from qvg_engine.kernels.codec.decode import check_codes
from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.page_runs import PageRuns, check_decode
from qvg_engine.kernels.paged_attention import reference_decode_eight_bit
from qvg_engine.kernels.paged_attention.eight_bit import EightBitWorkspace
from qvg_engine.kernels.paged_attention.pages import Pages
from qvg_engine.kernels.rope import RopeGrid


def bound_pages(workspace: EightBitWorkspace, pages: Pages, runs: PageRuns) -> None:
    """Raise the scales of channels to a bound of what `pages` hold of V in `runs`.

    For rows that are stored as they are, their largest magnitude. For codes, with the largest
    taken over the centroids of a stage and over the tokens of a run in one page: of every stage the
    largest centroid's magnitude, and the largest level times the largest scale of the channel's
    group (times its width), the same of refinements, all added. No row is decoded for it, and
    rounding cannot take a row past it: it grows in the order in which rows are added up.
    """
    _check(workspace, pages, runs, start=0)
    _implementation(pages).bound_pages(workspace, pages, runs)


def decode_keys(
    workspace: EightBitWorkspace,
    pages: Pages,
    runs: PageRuns,
    *,
    start: int,
    rope: RopeGrid | None,
) -> None:
    """Write K of `runs` to the places from `start` on; see `eight_bit.store` and `decode.decode`.

    Rows are decoded and rotated in fp32, and rounded once, to INT8 with a scale a token and head.
    """
    _check(workspace, pages, runs, start=start)
    _implementation(pages).decode_keys(workspace, pages, runs, start=start, rope=rope)


def decode_values(
    workspace: EightBitWorkspace, pages: Pages, runs: PageRuns, *, start: int
) -> None:
    """Write V of `runs`, transposed, to the places from `start` on; see `eight_bit.store`."""
    _check(workspace, pages, runs, start=start)
    _implementation(pages).decode_values(workspace, pages, runs, start=start)


def _check(workspace: EightBitWorkspace, pages: Pages, runs: PageRuns, *, start: int) -> None:
    check_decode(pages, runs, workspace.keys, start)
    if isinstance(pages, CodedPages):
        check_codes(pages, runs)


def _implementation(pages: Pages) -> Any:
    payload = pages.codes if isinstance(pages, CodedPages) else pages.data
    if gpu.supports(payload):
        from qvg_engine.kernels.paged_attention import gpu_decode_eight_bit

        if gpu_decode_eight_bit.supports(pages):
            return gpu_decode_eight_bit
    return reference_decode_eight_bit
