import pytest

from qvg_engine.models.pocket.memory import Revisit
from qvg_engine.models.rollout import RolloutSettings
from qvg_engine.quality.equal_bytes.looks import KINDS, Kind, Look, kind_of, look_at


def revisit(first: int, again: int, away: tuple[tuple[int, int], ...]) -> Revisit:
    return Revisit(first, again, 20.0, 15.0, away)


@pytest.mark.parametrize("seen", [0, 3, 4, 47, 95, 130])
@pytest.mark.parametrize("back", [131, 144, 155, 156, 240])
def test_it_is_the_window_of_a_rollout(seen: int, back: int) -> None:
    """The smallest window whose chunk at frame `back` sees the latent frame of `seen`."""
    look = look_at(revisit(seen, back, ((seen, back),)), frames_per_chunk=3)
    chunk_start = back // 4 // 3 * 3

    def start(window: int) -> int:
        settings = RolloutSettings(latent_shape=(16, 8, 8), window_frames=window)
        return settings.window_start(chunk_start)

    smallest = max(3, look.partly_from)
    assert start(smallest) <= seen // 4
    assert smallest == 3 or start(smallest - 1) > seen // 4


def test_all_columns_count() -> None:
    away = ((10, 60), (40, 100), (70, 150))
    look = look_at(revisit(8, 152, away), frames_per_chunk=3)
    # 60 // 4 = 15 starts a chunk, and 10 // 4 = 2 is 13 before it.
    assert look.partly_from == 13 + 3
    # 152 // 4 = 38 is of the chunk at 36, and 8 // 4 = 2 is 34 before it.
    assert look.wholly_from == 34 + 3
    assert look.lap == 36
    assert look.gain_db == 5
    assert [look.seen_in(window) for window in (15, 16, 36, 37)] == [
        "nothing",
        "part",
        "part",
        "whole",
    ]


@pytest.mark.parametrize(
    ("short", "long", "kind"),
    [
        (15, 37, "told apart"),
        (15, 90, "told apart"),
        (37, 90, "within both"),
        (12, 15, "beyond both"),
        (15, 36, "in between"),
        (16, 37, "in between"),
        (16, 36, "in between"),
    ],
)
def test_what_two_windows_see(short: int, long: int, kind: Kind) -> None:
    look = Look(db=20, other_db=15, partly_from=16, wholly_from=37, lap=36)
    assert kind_of(look, short=short, long=long) == kind
    assert kind in KINDS
