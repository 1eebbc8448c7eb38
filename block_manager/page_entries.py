"""What a pass reads of a branch: its pages in order, each with its valid slots."""

from functools import cached_property

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray


class PageEntries(msgspec.Struct, frozen=True, eq=False, dict=True):
    """A snapshot of a block table; an entry is a page with a range of valid slots.

    Four contiguous columns of one length, and the same again as rows for kernels that prefer one
    array: `packed` is int32 [entries, 4] of page_id, first_token, begin, end. Slot `s` of an
    entry holds token `first_token + s` of the branch and is valid for `begin <= s < end`. Entries
    are in the order of their tokens. A page whose middle was evicted has two entries, one after
    the other. The table never writes to the arrays of a snapshot, so they stay as they are, and
    true for as long as the branch holds the pages; nobody else may write to them either.
    """

    page_id: NDArray[np.int32]
    first_token: NDArray[np.int64]
    begin: NDArray[np.int32]
    end: NDArray[np.int32]
    packed: NDArray[np.int32]

    def __len__(self) -> int:
        """The number of entries."""
        return self.page_id.size

    @cached_property
    def num_tokens(self) -> int:
        """Valid slots of all entries."""
        return int(_count_tokens(self.begin, self.end))


@njit(cache=True)
def _count_tokens(begin: NDArray[np.int32], end: NDArray[np.int32]) -> int:
    num_tokens = 0
    for index in range(begin.size):
        num_tokens += end[index] - begin[index]
    return num_tokens
