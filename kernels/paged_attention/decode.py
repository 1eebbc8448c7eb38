"""Decoding pages and dense rows of one layer into a buffer, by the fastest kernel there is."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels import codec
from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.page_runs import PageRuns, check_decode
from qvg_engine.kernels.paged_attention.backends import kernels_for
from qvg_engine.kernels.paged_attention.pages import Pages
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
    check_decode(pages, runs, out, start)
    kernels_for(pages.data, out).decode(pages, runs, out, start=start, rope=rope)


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
    kernels_for(rows, out).place(rows, positions, out, start=start, rope=rope)
