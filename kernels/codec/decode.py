"""Decoding pages into a buffer, by the fastest kernel there is."""

from torch import Tensor

from qvg_engine.kernels.codec import cpu, reference
from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.page_runs import PageRuns
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

    A row is level * scale (* width) + centroids in fp32, see `CodecSpec`, then rotated, then
    rounded to the dtype of `out`.
    """
    _check(pages, runs, out, start)
    kernel = cpu.decode if cpu.supports(pages.codes) and cpu.writes(out) else reference.decode
    kernel(pages, runs, out, start=start, rope=rope)


def _check(pages: CodedPages, runs: PageRuns, out: Tensor, start: int) -> None:
    """The kernels do not check bounds."""
    assert out.is_contiguous()
    assert out.shape[::2] == (pages.num_heads, pages.head_dim), out.shape
    assert 0 <= start <= start + runs.num_tokens <= out.shape[1], (start, out.shape)
    if len(runs.page_id) == 0:
        return
    assert 0 <= runs.page_id.min() <= runs.page_id.max() < pages.num_pages, runs.page_id
    assert 0 <= runs.begin.min() <= runs.end.max() <= pages.page_size, (runs.begin, runs.end)
    assert (runs.begin <= runs.end).all(), (runs.begin, runs.end)
    assert (runs.first_token + runs.begin).min() >= 0, runs.first_token
    assert pages.slot_of_page[runs.page_id].min() >= 0, runs.page_id
