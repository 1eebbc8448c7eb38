"""How many pages a number of tokens takes, and how many a branch holds at its peak.

Plain arithmetic on token counts: nothing here knows a page id or a table.
"""

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray


def pages_for(num_tokens: int, page_size: int) -> int:
    """The pages of one commit of `num_tokens` tokens; its last page may be part full."""
    return -(-num_tokens // page_size)


def peak_pages(
    chunk_tokens: Sequence[int] | NDArray[np.int64],
    *,
    page_size: int,
    window_tokens: int | None = None,
    sink_tokens: int = 0,
    commit_last: bool = False,
) -> int:
    """The most pages that one branch holds while it generates these chunks; exact.

    `chunk_tokens` are the chunks' token counts in order, each committed by one pass. Between
    commits the table holds what the next chunk may see: all tokens if `window_tokens` is None,
    else the first `sink_tokens` and those from `end_of_next_chunk - (window_tokens - sink_tokens)`
    on, since a window counts the sink and the chunk itself. While a chunk is committed its pages
    are held on top of that. The last chunk is read by nobody, and so is committed only with
    `commit_last`.
    """
    assert page_size >= 1
    tokens = np.ascontiguousarray(chunk_tokens, dtype=np.int64)
    assert tokens.ndim == 1
    assert tokens.size == 0 or int(tokens.min()) >= 1, "a chunk has at least one token"
    assert window_tokens is None or 0 <= sink_tokens <= window_tokens
    num_commits = tokens.size if commit_last else max(tokens.size - 1, 0)
    recent_tokens = int(tokens.sum()) if window_tokens is None else window_tokens - sink_tokens
    return int(_peak_pages(tokens, num_commits, page_size, recent_tokens, sink_tokens))


@njit(cache=True)
def _peak_pages(
    chunk_tokens: NDArray[np.int64],
    num_commits: int,
    page_size: int,
    recent_tokens: int,
    sink_tokens: int,
) -> int:
    """Walk the chunks with two cursors: the chunk where the sink ends, and the window's first."""
    peak = 0
    end_token = 0
    committed_pages = 0
    sink_chunk, sink_chunk_token, sink_chunk_page = 0, 0, 0
    window_chunk, window_chunk_token, window_chunk_page = 0, 0, 0
    for chunk in range(num_commits):
        start_token = end_token
        end_token += chunk_tokens[chunk]
        low = min(sink_tokens, start_token)
        high = min(max(low, end_token - recent_tokens), start_token)
        while sink_chunk < chunk and sink_chunk_token + chunk_tokens[sink_chunk] <= low:
            sink_chunk_token += chunk_tokens[sink_chunk]
            sink_chunk_page += -(-chunk_tokens[sink_chunk] // page_size)
            sink_chunk += 1
        while window_chunk < chunk and window_chunk_token + chunk_tokens[window_chunk] <= high:
            window_chunk_token += chunk_tokens[window_chunk]
            window_chunk_page += -(-chunk_tokens[window_chunk] // page_size)
            window_chunk += 1
        sink_pages = sink_chunk_page - (-(low - sink_chunk_token) // page_size)
        first_window_page = window_chunk_page + (high - window_chunk_token) // page_size
        evicted = max(0, first_window_page - sink_pages)
        new_pages = -(-chunk_tokens[chunk] // page_size)
        peak = max(peak, committed_pages - evicted + new_pages)
        committed_pages += new_pages
    return peak
