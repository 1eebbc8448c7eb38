import pytest
import torch

from qvg_engine.quality.capture import Capture
from qvg_engine.quality.comparison import quality_format, with_centroids
from qvg_engine.quality.format_errors import LayerErrors
from qvg_engine.quality.stored import store_rows
from qvg_engine.quality.teacher_forced import TeacherForced, merged
from tests.qvg_engine.quality.conftest import drawn_capture


def test_exact_rows_change_nothing(capture: Capture) -> None:
    forced = TeacherForced(capture, 4, (1, 4))
    rows = capture.layers[4]
    assert forced.error(rows.keys, rows.values) < 1e-6


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("window", [None, 24])
def test_the_error_is_that_of_paged_attention(heads: int, window: int | None) -> None:
    """`LayerErrors` reads the same rows from pages, all tokens in one call."""
    capture = drawn_capture(heads=heads, window=window)
    page_format = with_centroids(quality_format("q2"), 3)
    figures, _ = LayerErrors(capture, 0).measure(page_format)
    rows = capture.layers[0]
    keys = store_rows(rows.keys, page_format, is_key=True, seed=0).decoded()
    values = store_rows(rows.values, page_format, is_key=False, seed=1).decoded()
    found = TeacherForced(capture, 0, (1, 2)).error(keys, values)
    assert found == pytest.approx(figures.attention_error, rel=1e-4)
    assert found > 0.01


def test_own_tokens_are_exact_and_only_seen_ones_are_read() -> None:
    capture = drawn_capture(window=24)
    forced = TeacherForced(capture, 0, (2,))
    assert forced.seen(2).tolist() == list(range(12, 24))
    keys, values = capture.layers[0].keys.clone(), capture.layers[0].values.clone()
    keys[:12] = values[:12] = torch.nan
    keys[24:] = values[24:] = torch.nan
    assert forced.error(keys, values) < 1e-6
    keys[12] *= 2
    assert forced.error(keys, values) > 1e-3


def test_parts_merge_to_attention_over_both() -> None:
    capture = drawn_capture()
    forced = TeacherForced(capture, 0, (1,))
    rows = capture.layers[0]
    cached = forced.cached(1, rows.keys, rows.values)
    keys = capture.transform.keys(rows.keys[:24], capture.positions[:24]).transpose(0, 1)
    scores = forced.queries(1) @ keys.mT * forced.scale
    torch.testing.assert_close(scores[..., :12].logsumexp(dim=-1), cached.lse)
    expected = scores.softmax(dim=-1) @ rows.values[:24].transpose(0, 1)
    torch.testing.assert_close(merged(cached, forced.own(1)), expected)
    torch.testing.assert_close(forced.exact(1), expected)
