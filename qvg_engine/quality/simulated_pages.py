"""Running contenders that pages cannot hold: what they would read back is stored instead.

The rows of every commit go through a contender's round trip, one layer after the other, and what
comes back is stored in pages that lose nothing (`dense`). Everything else is the engine as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.block_manager.page_store import PageStore
from qvg_engine.quality.contender import Contender

_write = PageStore.write


def needs_codebook(contender: Contender, *, heads: int, head_dim: int) -> bool:
    """Whether tokens share anything, which an engine would have to fit and to keep."""
    rows = torch.randn(64, heads, head_dim, generator=torch.Generator().manual_seed(0))
    found = contender.round_trip(rows, is_key=False, seed=0, centroids=2)
    return found.shared_bits > 0


@contextmanager
def simulated_pages(contender: Contender) -> Iterator[None]:
    """Meanwhile, all engines of this process store what `contender` reads back.

    The contender is one without codebooks: it sees the rows of one commit at a time. Engines should
    have `dense` pages.
    """

    def write(
        store: PageStore,
        layer: int,
        page_ids: NDArray[np.int32],
        *,
        keys: Tensor,
        values: Tensor,
        **others: Any,
    ) -> None:
        read_keys, read_values = (
            contender.round_trip(
                rows.float(), is_key=is_key, seed=2 * layer + (not is_key), centroids=1
            ).rows.to(rows.dtype)
            for rows, is_key in ((keys, True), (values, False))
        )
        _write(store, layer, page_ids, keys=read_keys, values=read_values, **others)

    with patch.object(PageStore, "write", write):
        yield
