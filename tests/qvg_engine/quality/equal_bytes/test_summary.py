import msgspec
import pytest

from qvg_engine.quality.equal_bytes.looks import Look
from qvg_engine.quality.equal_bytes.summary import Difference, Verdict, answer, paired
from qvg_engine.quality.equal_bytes.videos import VideoFigures
from qvg_engine.quality.table.bootstrap import Interval

ABOVE, ACROSS, BELOW = Interval(2, 1, 3), Interval(1, -1, 3), Interval(-2, -3, -1)


def difference(revisited: Interval | None, gain: Interval | None, pairs: int = 8) -> Difference:
    return Difference(
        name="equal bytes",
        ours="q2, 36",
        theirs="bf16, 6",
        pairs=pairs,
        revisited_db=revisited,
        gain_db=gain,
        adherence=ACROSS,
    )


@pytest.mark.parametrize(
    ("revisited", "gain", "verdict"),
    [
        (ABOVE, ABOVE, "shown"),
        (ABOVE, ACROSS, "not shown"),
        (ACROSS, ABOVE, "not shown"),
        (Interval(2, 0, 3), ABOVE, "not shown"),
        (ABOVE, BELOW, "not shown"),
        (BELOW, BELOW, "the opposite is shown"),
        (BELOW, ACROSS, "not shown"),
        (None, None, "too few looks"),
    ],
)
def test_both_intervals_decide(
    revisited: Interval | None, gain: Interval | None, verdict: Verdict
) -> None:
    assert answer(difference(revisited, gain), num_bytes=9, limit=9) == verdict


def test_few_pairs_and_more_bytes_show_nothing() -> None:
    assert answer(difference(ABOVE, ABOVE, pairs=5), num_bytes=8, limit=9) == "too few looks"
    assert answer(difference(ABOVE, ABOVE, pairs=6), num_bytes=8, limit=9) == "shown"
    assert answer(difference(ABOVE, ABOVE), num_bytes=10, limit=9) == "unequal bytes"


def video(prompt: str, seed: int, *dbs: float) -> VideoFigures:
    looks = tuple(Look(db=db, other_db=15, partly_from=16, wholly_from=37, lap=36) for db in dbs)
    return VideoFigures(prompt=prompt, seed=seed, adherence=0.5, looks=looks)


def first_db(video: VideoFigures) -> float | None:
    return video.looks[0].db if video.looks else None


def test_videos_are_paired_by_prompt_and_seed() -> None:
    ours = [video("a", 1, 20), video("a", 2, 21), video("b", 1, 30), video("c", 1, 40)]
    theirs = [video("b", 1, 29), video("c", 2, 0), video("a", 2, 20), video("a", 1, 19)]
    pairs, found = paired(ours, theirs, first_db)
    assert pairs == 3
    assert found == Interval(1, 1, 1), "every pair differs by 1"


def test_a_video_without_looks_is_no_pair() -> None:
    ours = [video("a", 1, 20), video("b", 1)]
    theirs = [video("a", 1), video("b", 1, 20)]
    assert paired(ours, theirs, first_db) == (0, None)
    assert paired(ours, [msgspec.structs.replace(theirs[0], looks=ours[0].looks)], first_db)[0] == 1
