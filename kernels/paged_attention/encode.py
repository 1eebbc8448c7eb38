"""Encoding rows into pages of one layer, by the fastest kernel there is."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.paged_attention.backends import kernels_for
from qvg_engine.kernels.paged_attention.pages import PlainPages


def encode(pages: PlainPages, page_ids: NDArray[np.integer], rows: Tensor) -> None:
    """Store rows in order into the pages `page_ids`.

    Args:
        pages: K or V of one layer.
        page_ids: the pages to fill, in order, each at most once.
        rows: [tokens, heads, head_dim], at most as many tokens as the pages have slots.

    The last page may stay part full, and pages beyond the rows untouched: slots that get no row
    keep what they held.
    """
    assert rows.shape[1:] == pages.data.shape[1::2], (rows.shape, pages.data.shape)
    assert rows.shape[0] <= len(page_ids) * pages.page_size, (rows.shape, page_ids)
    if len(page_ids):
        assert 0 <= page_ids.min() <= page_ids.max() < pages.num_pages, page_ids
    kernels_for(pages.data, rows).encode(pages, page_ids, rows)
