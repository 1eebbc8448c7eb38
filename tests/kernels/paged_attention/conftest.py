"""Caches with known contents: rows in order, and the pages that hold them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.paged_attention import (
    LayerPages,
    PagedSegment,
    PageRuns,
    PlainPages,
    encode,
)

Runs = list[tuple[int, int]]
"""Token ranges [start, stop) that are visible, in order."""


@dataclass(frozen=True)
class Cache:
    """`keys`, `values` [tokens, heads, head_dim]: what the pages hold, in fp32."""

    keys: Tensor
    values: Tensor
    segment: PagedSegment
    positions: NDArray[np.int64]


def paged(rows: Tensor, page_ids: NDArray[np.int32], page_size: int) -> PlainPages:
    """Pages of NaN (twice as many as needed), with `rows` written to `page_ids`."""
    _, heads, head_dim = rows.shape
    pages = PlainPages(torch.full((2 * len(page_ids), heads, page_size, head_dim), torch.nan))
    pages = PlainPages(pages.data.to(rows.dtype))
    encode(pages, page_ids, rows)
    return pages


def visible_runs(visible: Runs, page_ids: NDArray[np.int32], page_size: int) -> PageRuns:
    """The entries of a block table that shows the token ranges `visible`."""
    entries = [
        (page_id, index * page_size, max(start - index * page_size, 0), stop - index * page_size)
        for start, stop in visible
        for index, page_id in enumerate(page_ids)
        if index * page_size < stop and start < (index + 1) * page_size
    ]
    page_id, first_token, begin, end = np.array(entries, dtype=np.int64).reshape(-1, 4).T
    return PageRuns(page_id, first_token, begin, np.minimum(end, page_size))


@pytest.fixture
def make_cache() -> Callable[..., Cache]:
    def make(
        num_tokens: int,
        *,
        num_heads: int = 2,
        head_dim: int = 64,
        page_size: int = 64,
        key_dtype: torch.dtype = torch.float32,
        value_dtype: torch.dtype = torch.float32,
        visible: Runs | None = None,
    ) -> Cache:
        num_pages = -(-num_tokens // page_size)
        shuffled = np.random.default_rng(num_tokens).permutation(2 * num_pages)
        page_ids = shuffled[:num_pages].astype(np.int32)
        keys = torch.randn(num_tokens, num_heads, head_dim).to(key_dtype)
        values = torch.randn(num_tokens, num_heads, head_dim).to(value_dtype)
        visible = [(0, num_tokens)] if visible is None else visible
        shown = np.concatenate([np.arange(start, stop) for start, stop in visible])
        layer = LayerPages(
            keys=paged(keys, page_ids, page_size), values=paged(values, page_ids, page_size)
        )
        return Cache(
            keys=keys.float()[shown],
            values=values.float()[shown],
            segment=PagedSegment(layer, visible_runs(visible, page_ids, page_size)),
            positions=shown,
        )

    return make
