"""A commit under way: pages that are being written and that no pass can read yet."""

import msgspec
import numpy as np
from numpy.typing import NDArray


class PendingCommit(msgspec.Struct, frozen=True, eq=False):
    """Pages reserved for the tokens of one commit pass; ended by `publish` or `rollback`.

    `page_ids` is int32 [pages_for(num_tokens)]; token i goes to slot i % page_size of page
    i // page_size. All `branch_ids` will read the same pages. With `at_token`, the branches lose
    their tokens from there on when the commit is published.
    """

    commit_id: int
    branch_ids: tuple[int, ...]
    page_ids: NDArray[np.int32]
    num_tokens: int
    at_token: int | None
