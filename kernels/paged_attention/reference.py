"""Decoding and attention in plain torch: slow, short, on any device."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.codec import reference as codec_reference
from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.paged_attention.pages import Pages, PlainPages
from qvg_engine.kernels.rope import RopeGrid
from qvg_engine.kernels.rope.reference import rotate


def gather(pages: Pages, runs: PageRuns) -> Tensor:
    """The tokens of `runs` as [tokens, heads, head_dim], in the dtype of the pages.

    Those of coded pages are decoded, in fp32.
    """
    if isinstance(pages, CodedPages):
        out = torch.empty((pages.num_heads, runs.num_tokens, pages.head_dim), device=pages.device)
        codec_reference.decode(pages, runs, out, start=0, rope=None)
        return out.transpose(0, 1)
    page, slot, _ = runs.slots()
    device = pages.data.device
    return pages.data[torch.from_numpy(page).to(device), :, torch.from_numpy(slot).to(device)]


def encode(pages: PlainPages, page_ids: NDArray[np.integer], rows: Tensor) -> None:
    """See `encode.encode`."""
    num_tokens, num_heads, head_dim = rows.shape
    num_full, rest = divmod(num_tokens, pages.page_size)
    full = rows[: num_tokens - rest].reshape(num_full, pages.page_size, num_heads, head_dim)
    ids = torch.from_numpy(page_ids[:num_full].astype(np.int64)).to(pages.data.device)
    pages.data[ids] = full.transpose(1, 2).to(pages.data.dtype)
    if rest:
        pages.data[int(page_ids[num_full]), :, :rest] = rows[num_tokens - rest :].transpose(0, 1)


def decode(
    pages: PlainPages, runs: PageRuns, out: Tensor, *, start: int, rope: RopeGrid | None
) -> None:
    """See `decode.decode`."""
    rows = gather(pages, runs)
    if rope is not None:
        rows = rotate(rows.float(), *rope.rows(runs.slots()[2]))
    out[:, start : start + rows.shape[0]] = rows.transpose(0, 1)


def place(
    rows: Tensor,
    positions: NDArray[np.int64] | None,
    out: Tensor,
    *,
    start: int,
    rope: RopeGrid | None,
) -> None:
    """See `decode.place`."""
    if rope is not None:
        assert positions is not None
        rows = rotate(rows.float(), *rope.rows(positions))
    out[:, start : start + rows.shape[0]] = rows.transpose(0, 1)


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Softmax attention with fp32 scores, a block of queries at a time.

    Args:
        queries: [heads, queries, head_dim].
        keys, values: [heads, tokens, head_dim], at least one token.
        bias: fp32 [tokens], added to every query's scores, or None.

    Returns the output, fp32 [heads, queries, head_dim], and the log-sum-exp of the scores, fp32
    [heads, queries].
    """
    keys, values = keys.float(), values.float()
    out = torch.empty(queries.shape, device=queries.device)
    lse = torch.empty(queries.shape[:2], device=queries.device)
    for begin in range(0, queries.shape[1], _QUERY_BLOCK):
        block = slice(begin, begin + _QUERY_BLOCK)
        scores = queries[:, block].float() @ keys.mT * scale
        if bias is not None:
            scores = scores + bias
        lse[:, block] = scores.logsumexp(dim=-1)
        out[:, block] = (scores - lse[:, block, None]).exp() @ values
    return out, lse


# Bounds the scores to 1024 * tokens * heads elements.
_QUERY_BLOCK = 1024
