"""How a video is cut into segments."""

import pytest

from qvg_engine.models.longcat.segments import split_segments


@pytest.mark.parametrize(
    ("frames", "context", "expected"),
    [
        (24, 0, [(0, 24)]),
        (44, 0, [(0, 24), (4, 20)]),
        (50, 0, [(0, 24), (4, 20), (4, 6)]),
        (20, 4, [(4, 20)]),
        (41, 19, [(19, 20), (4, 20), (4, 1)]),
        (5, 0, [(0, 5)]),
    ],
)
def test_published_sizes(frames: int, context: int, expected: list[tuple[int, int]]) -> None:
    segments = split_segments(frames, context_frames=context, condition_frames=4, segment_frames=20)
    assert [(item.condition_frames, item.new_frames) for item in segments] == expected
    starts = [item.first_frame for item in segments]
    assert starts == [sum(new for _, new in expected[:i]) for i in range(len(expected))]


def test_a_condition_is_never_longer_than_the_clip() -> None:
    segments = split_segments(4, context_frames=1, condition_frames=6, segment_frames=2)
    assert [(item.condition_frames, item.new_frames) for item in segments] == [(1, 2), (3, 2)]
