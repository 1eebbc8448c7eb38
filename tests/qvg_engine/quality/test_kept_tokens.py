import pytest
import torch

from qvg_engine.quality.kept_tokens import Kept, Which, attention_error, extra_bits
from qvg_engine.quality.teacher_forced import TeacherForced
from tests.qvg_engine.quality.conftest import drawn_capture


@pytest.mark.parametrize(
    ("which", "num_tokens", "window", "expected"),
    [
        ("newest", 12, None, range(12, 24)),
        ("newest", 5, None, range(19, 24)),
        ("newest", 24, None, range(24)),
        ("newest", 90, None, range(24)),
        ("oldest", 12, None, range(12)),
        ("first", 12, None, range(12)),
        ("oldest", 6, 24, range(12, 18)),
        ("newest", 12, 18, range(18, 24)),
        ("first", 12, 24, range(0)),
        ("first", 24, 24, range(12, 24)),
    ],
)
def test_tokens_that_are_kept_apart(
    which: Which, num_tokens: int, window: int | None, expected: range
) -> None:
    capture = drawn_capture(window=window)
    found = Kept(which=which, num_tokens=num_tokens).tokens(capture, 2)
    assert found.tolist() == list(expected)


def test_kept_chunks_are_read_from_the_better_rows() -> None:
    capture = drawn_capture()
    forced = TeacherForced(capture, 0, (2,))
    rows = capture.layers[0]
    exact = (rows.keys, rows.values)
    noise = 0.1 * torch.randn(rows.keys.shape, generator=torch.Generator().manual_seed(3))
    read = (rows.keys + noise, rows.values + noise)

    def error(which: Which, num_tokens: int) -> float:
        kept = Kept(which=which, num_tokens=num_tokens)
        return attention_error(forced, capture, kept, read=read, better=exact)

    assert error("newest", 24) < 1e-6
    part = read[0].clone(), read[1].clone()
    part[0][12:24], part[1][12:24] = rows.keys[12:24], rows.values[12:24]
    assert error("newest", 12) == pytest.approx(forced.error(*part))
    assert 1e-3 < error("newest", 12) < forced.error(*read)
    assert error("oldest", 12) != error("newest", 12)
    torch.testing.assert_close(read[0], rows.keys + noise)


def test_bits_are_those_of_the_window() -> None:
    assert extra_bits(2.0, 16.0, num_tokens=1, window_tokens=16) == pytest.approx(0.875)
    assert extra_bits(2.0, 4.0, num_tokens=2, window_tokens=16) == pytest.approx(0.25)
