"""Decoding pages and dense rows of one layer into a buffer, by the fastest kernel there is."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels import codec
from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.paged_attention import cpu, reference
from qvg_engine.kernels.paged_attention.pages import Pages, PlainPages
from qvg_engine.kernels.rope import RopeGrid


def decode(pages: Pages, runs: PageRuns, out: Tensor, *, start: int, rope: RopeGrid | None) -> None:
    """Write the tokens of `runs` to `out[:, start:start + runs.num_tokens]`.

    Args:
        pages: K or V of one layer.
        runs: which slots of which pages, in the order of the output.
        out: [heads, tokens, head_dim], contiguous, of any floating dtype.
        start: where the first token goes.
        rope: rotate the rows to their token numbers (rounded once), or None.
    """
    if isinstance(pages, CodedPages):
        codec.decode(pages, runs, out, start=start, rope=rope)
        return
    _check(pages, runs, out, start)
    kernel = cpu.decode if cpu.supports(pages.data, out) else reference.decode
    kernel(pages, runs, out, start=start, rope=rope)


def place(
    rows: Tensor,
    positions: NDArray[np.int64] | None,
    out: Tensor,
    *,
    start: int,
    rope: RopeGrid | None,
) -> None:
    """Write dense rows to `out[:, start:start + tokens]`, as `decode` writes those of pages.

    Args:
        rows: [tokens, heads, head_dim].
        positions: the rows' token numbers, all >= 0; needed with `rope`.
        out: [heads, tokens, head_dim], contiguous, of any floating dtype.
        start: where the first token goes.
        rope: rotate the rows to their positions (rounded once), or None.
    """
    assert out.is_contiguous()
    assert out.shape[::2] == rows.shape[1:], (out.shape, rows.shape)
    assert 0 <= start <= start + rows.shape[0] <= out.shape[1], (start, out.shape)
    if rope is not None:
        assert positions is not None
        assert positions.shape == rows.shape[:1], (positions.shape, rows.shape)
        assert positions.min(initial=0) >= 0, positions.min()
    kernel = cpu.place if cpu.supports(rows, out) else reference.place
    kernel(rows, positions, out, start=start, rope=rope)


def _check(pages: PlainPages, runs: PageRuns, out: Tensor, start: int) -> None:
    """The kernels do not check bounds."""
    assert out.is_contiguous()
    assert out.shape[::2] == pages.data.shape[1::2], (out.shape, pages.data.shape)
    assert 0 <= start <= start + runs.num_tokens <= out.shape[1], (start, out.shape)
    if len(runs.page_id) == 0:
        return
    assert 0 <= runs.page_id.min() <= runs.page_id.max() < pages.num_pages, runs.page_id
    assert 0 <= runs.begin.min() <= runs.end.max() <= pages.page_size, (runs.begin, runs.end)
    assert (runs.begin <= runs.end).all(), (runs.begin, runs.end)
    assert (runs.first_token + runs.begin).min() >= 0, runs.first_token
