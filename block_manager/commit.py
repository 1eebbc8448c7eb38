"""A commit under way: pages that are being written and that no pass can read yet."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from qvg_engine.block_manager.codebook_policy import SpanPlan


class PendingCommit(msgspec.Struct, frozen=True, eq=False):
    """Pages reserved for the tokens of one commit pass; ended by `publish` or `rollback`.

    `page_ids` is int32 [pages_for(num_tokens)]; token i goes to slot i % page_size of page
    i // page_size. All `branch_ids` will read the same pages. With `at_token`, the branches lose
    their tokens from there on when the commit is published. `span` says which codebooks the tokens
    are encoded with, where pages have any; `refined` int32 [pages] are then the refinement pages of
    `page_ids`, -1 for none. What these refined before must not be read any more once the commit's
    rows of a layer are written.
    """

    commit_id: int
    branch_ids: tuple[int, ...]
    page_ids: NDArray[np.int32]
    num_tokens: int
    at_token: int | None
    span: SpanPlan | None = None
    refined: NDArray[np.int32] | None = None
