"""A whole comparison of the embedded model at its smallest, stopped, gone on with, and written."""

import json
from pathlib import Path

import msgspec
import pytest

from qvg_engine.errors import OutputError
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.equal_bytes.budgets import Budget, find_budgets
from qvg_engine.quality.equal_bytes.looks import KINDS, Look
from qvg_engine.quality.equal_bytes.report import write_report
from qvg_engine.quality.equal_bytes.settings import EqualBytesSettings
from qvg_engine.quality.equal_bytes.videos import Arm, BatchFigures, Study, VideoFigures
from qvg_engine.quality.memory import shape_of
from qvg_engine.quality.table.parts import Parts

SETTINGS = EqualBytesSettings(
    kv_format="q4", windows=(6,), num_prompts=1, together=1, num_frames=96, judge_every=40
)
BUDGETS = (Budget(6, 21),)
ARMS = (Arm("bf16", 6), Arm("q4", 6), Arm("bf16", 21), Arm("q4", 21))


def study(
    folder: Path, settings: EqualBytesSettings = SETTINGS, budgets: tuple[Budget, ...] = BUDGETS
) -> Study:
    return Study(settings, budgets, Parts(folder / "parts"), weights="a")


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("parts/*/*.json")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped after two of the four arms, then gone on with."""
    folder = tmp_path_factory.mktemp("study")

    def stop(what: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(folder).measure(stop)
    before = times(folder)
    assert len(before) == 3, "real clips and two arms"
    told: list[tuple[str, int, int]] = []
    study(folder).measure(lambda *step: told.append(step))
    assert told[0] == ("videos", 1, 5)
    assert told[-1] == ("videos", 5, 5)
    after = times(folder)
    assert {name: after[name] for name in before} == before
    assert len(after) == 5
    return folder


def test_the_windows_are_those_of_equal_bytes(pocket: ModelFamily, whole: Path) -> None:
    assert find_budgets(SETTINGS, shape_of(pocket)) == BUDGETS
    assert study(whole).arms == ARMS


def test_bytes_are_the_engines_own(whole: Path) -> None:
    table = write_report(study(whole), whole)
    rows = {row.name: row for row in table.arms}
    token = 6 * 2 * 128 * 2 * 2
    assert rows["bf16, 6"].num_bytes == 6 * 64 * token
    assert rows["bf16, 6"].kv_ratio == 1
    assert rows["bf16, 21"].num_bytes == 21 * 64 * token
    assert 0.9 * 6 * 64 * token < rows["q4, 21"].num_bytes <= 6 * 64 * token
    assert rows["q4, 21"].codebook_bytes > 0
    assert all(row.num_videos == 1 for row in table.arms)
    adherence = rows["real clips"].adherence
    assert adherence is not None
    assert adherence.value > 0.9
    assert rows["real clips"].num_bytes == 0


def test_nothing_is_answered_from_so_little(whole: Path) -> None:
    table = write_report(study(whole), whole)
    assert [row.verdict for row in table.budgets] == ["too few looks"]
    assert not table.shown
    text = (whole / "equal_bytes.md").read_text()
    assert "`q4, 21` against `bf16, 6`: **too few looks**" in text
    assert "That compression buys memory is not shown: budgets that show it are 0 of 1" in text
    figures = json.loads((whole / "equal_bytes.json").read_text())
    assert figures["settings"]["kv_format"] == "q4"
    assert figures["budgets"][0]["differences"][0]["name"] == "equal bytes"


def test_what_videos_depend_on_is_in_their_key(whole: Path) -> None:
    assert len(study(whole).videos(ARMS[0])) == 1
    for change in ({"seed": 1}, {"num_frames": 100}, {"dtype": "float32"}, {"judge_every": 41}):
        other = msgspec.structs.replace(SETTINGS, **change)
        assert study(whole, other).videos(ARMS[0]) == [], change
    more = msgspec.structs.replace(SETTINGS, num_prompts=3, num_seeds=2)
    assert len(study(whole, more).videos(ARMS[0])) == 1, "more prompts and seeds keep these"
    more = msgspec.structs.replace(more, together=2)
    assert study(whole, more).videos(ARMS[0]) == [], "videos that are made together are one part"


def test_without_videos_there_is_a_report(tmp_path: Path) -> None:
    table = write_report(study(tmp_path), tmp_path)
    assert [row.verdict for row in table.budgets] == ["too few looks"]
    assert (tmp_path / "equal_bytes.md").read_text().count("\n## ") == 3
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError):
        write_report(study(tmp_path), blocked)


def seen(db: float, *, wholly_from: int = 20, partly_from: int = 9) -> Look:
    return Look(db=db, other_db=15, partly_from=partly_from, wholly_from=wholly_from, lap=18)


@pytest.fixture
def invented(tmp_path: Path) -> Study:
    """Eight prompts. The long windows remember by 6 dB, whatever the format; 1 dB is noise."""
    settings = msgspec.structs.replace(SETTINGS, num_prompts=8, together=8)
    made = study(tmp_path, settings)
    (batch,) = made.batches()
    parts = Parts(tmp_path / "parts")
    for arm in ARMS:
        # The last two looks can tell nothing of the two windows, however good they are.
        videos = tuple(
            VideoFigures(
                prompt=scene.prompt,
                seed=place,
                adherence=1 - 0.1 * (arm.kv_format == "q4"),
                looks=(
                    seen(17 + 6 * (arm.window == 21) + (place + arm.window) % 2),
                    seen(90, wholly_from=40, partly_from=30),
                    seen(90 if arm == ARMS[0] else 1, wholly_from=6, partly_from=5),
                ),
            )
            for place, scene in enumerate(batch.scenes)
        )
        figures = BatchFigures(page_bytes=90, codebook_bytes=10, kv_ratio=1, videos=videos)
        parts.write(made.part(arm, batch), figures)
    return made


def test_looks_that_are_told_apart_decide(invented: Study, tmp_path: Path) -> None:
    table = write_report(invented, tmp_path)
    (row,) = table.budgets
    assert row.kinds == dict(zip(KINDS, (16, 16, 16, 0), strict=True))
    assert row.verdict == "shown"
    assert table.shown
    by_name = {item.name: item for item in row.differences}
    equal, window = by_name["equal bytes"], by_name["the window alone, bf16"]
    assert (equal.ours, equal.theirs, equal.pairs) == ("q4, 21", "bf16, 6", 8)
    for found in (equal.revisited_db, equal.gain_db, window.gain_db):
        assert found is not None
        assert found.value == pytest.approx(6)
        assert 5 <= found.low < 6 < found.high <= 7
    alone = by_name["the format alone, long window"]
    assert alone.gain_db is not None
    assert alone.gain_db.value == 0
    assert alone.adherence is not None
    assert alone.adherence.value == pytest.approx(-0.1)
    everything = by_name["equal bytes, all looks"]
    assert everything.gain_db is not None
    assert everything.gain_db.value == pytest.approx((6 + 0 - 89) / 3)
    text = (tmp_path / "equal_bytes.md").read_text()
    assert "**shown**; revisited ground +6.0 (" in text
    assert "That compression buys memory is shown: budgets that show it are 1 of 1" in text
    for part in text.split("\n## ")[1:]:
        lines = [line for line in part.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1, part


def test_the_plot_is_drawn_and_shown(invented: Study, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_report(invented, tmp_path)
    assert (tmp_path / "equal_bytes.png").read_bytes().startswith(b"\x89PNG")
    assert "![equal_bytes.png](equal_bytes.png)" in (tmp_path / "equal_bytes.md").read_text()
