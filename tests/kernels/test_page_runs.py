import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qvg_engine.kernels.page_runs import PageRuns


def make_runs(lengths: list[int]) -> PageRuns:
    """An entry of each length, from slot 1 on; pages are numbered from 5."""
    count = len(lengths)
    first = np.cumsum([0, *lengths])[:count] - 1
    begin = np.ones(count, np.int64)
    return PageRuns(np.arange(count) + 5, first, begin, begin + np.array(lengths, np.int64))


@given(st.lists(st.integers(1, 64), max_size=40), st.integers(0, 3000))
def test_spread_keeps_whole_entries_in_order_and_to_the_number(
    lengths: list[int], num_tokens: int
) -> None:
    runs = make_runs(lengths)
    chosen = runs.spread(num_tokens)
    assert chosen.num_tokens <= num_tokens
    places = chosen.page_id - 5
    assert (np.diff(places) > 0).all()
    for column in ("first_token", "begin", "end"):
        assert np.array_equal(getattr(chosen, column), getattr(runs, column)[places])
    if runs.num_tokens <= num_tokens:
        assert chosen is runs
    elif num_tokens >= 2 * max(lengths):
        assert (places[0], places[-1]) == (0, len(lengths) - 1), "both ends are among them"
        gaps = np.diff(places)
        assert gaps.max() - gaps.min() <= 1
