"""Decoding pages into a buffer, by the fastest kernel there is."""

from collections.abc import Callable

from torch import Tensor

from qvg_engine.kernels.codec import cpu, reference
from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.codec.refinement import NO_REFINEMENT
from qvg_engine.kernels.gpu import supports as gpu_supports
from qvg_engine.kernels.page_runs import PageRuns, check_decode
from qvg_engine.kernels.rope import RopeGrid


def decode(
    pages: CodedPages, runs: PageRuns, out: Tensor, *, start: int, rope: RopeGrid | None
) -> None:
    """Write the tokens of `runs` to `out[:, start:start + runs.num_tokens]`.

    Args:
        pages: K or V of one layer.
        runs: which slots of which pages, in the order of the output.
        out: [heads, tokens, head_dim], contiguous, of any floating dtype.
        start: where the first token goes.
        rope: rotate the rows to their token numbers, or None.

    A row is level * scale (* width) + centroids in fp32, see `CodecSpec`; plus level * scale
    (* width) of its refinement, where its page has one; then rotated, then rounded to the dtype of
    `out`.
    """
    check_decode(pages, runs, out, start)
    check_codes(pages, runs)
    _kernel(pages, out)(pages, runs, out, start=start, rope=rope)


def check_codes(pages: CodedPages, runs: PageRuns) -> None:
    """Assert that the pages of `runs` have codebooks, and refinement pages that there are."""
    slots = pages.slot_of_page[runs.page_id]
    assert slots.min(initial=0) >= 0, runs.page_id
    if pages.refinement is not None:
        refined = pages.refinement.page_of[runs.page_id]
        assert refined.max(initial=NO_REFINEMENT) < pages.refinement.num_pages, refined


def _kernel(pages: CodedPages, out: Tensor) -> Callable[..., None]:
    if cpu.supports(pages.codes) and cpu.writes(out):
        return cpu.decode
    if gpu_supports(pages.codes):
        from qvg_engine.kernels.codec import gpu

        if gpu.supports(pages, out):
            return gpu.decode
    return reference.decode
