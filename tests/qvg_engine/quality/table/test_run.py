"""A whole table of the embedded model at its smallest, stopped, gone on with, and written."""

import json
from pathlib import Path

import msgspec
import pytest
from torch import Tensor

from qvg_engine.config import EngineConfig
from qvg_engine.errors import ConfigError
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.contender import RoundTrip
from qvg_engine.quality.contenders.registry import CONTENDERS
from qvg_engine.quality.table.part_names import DENSE_CONTROL, PartNames
from qvg_engine.quality.table.parts import Parts
from qvg_engine.quality.table.report import write_report
from qvg_engine.quality.table.run import STAGES, run_table
from qvg_engine.quality.table.settings import TableSettings

SETTINGS = TableSettings(
    contenders=("bf16", "qvg", "q2", "rtn2-asym", "q2-aware"),
    centroids=(4,),
    num_captures=1,
    capture_frames=36,
    layers=(2,),
    attend_every=1,
    num_prompts=1,
    num_seeds=1,
    stream_frames=48,
    clips=("qvg",),
    num_clips=1,
    clip_frames=24,
    adherence=("bf16", "q2"),
    adherence_prompts=1,
    adherence_frames=96,
    judge_every=40,
)
CONFIG = EngineConfig(device="cpu")
Times = dict[str, int]


class Table:
    """One folder of parts, and what progress was told."""

    def __init__(self, folder: Path, family: ModelFamily) -> None:
        self.folder = folder
        self.family = family
        self.told: list[tuple[str, int, int]] = []

    def names(self, settings: TableSettings = SETTINGS) -> PartNames:
        return PartNames(settings, weights="a", layers=(2,))

    def run(self, *stages: str, settings: TableSettings = SETTINGS) -> dict[str, str]:
        return run_table(
            self.names(settings),
            Parts(self.folder / "parts"),
            self.family,
            CONFIG,
            stages=stages,
            on_progress=lambda *told: self.told.append(told),
        )

    def report(self, failures: dict[str, str] | None = None) -> str:
        parts = Parts(self.folder / "parts")
        write_report(self.names(), parts, self.family, self.folder, failures=failures)
        return (self.folder / "quality.md").read_text()

    def times(self) -> Times:
        found = (self.folder / "parts").rglob("*.*")
        return {str(path): path.stat().st_mtime_ns for path in found if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, pocket: ModelFamily) -> Table:
    """All stages."""
    table = Table(tmp_path_factory.mktemp("table"), pocket)
    assert table.run(*STAGES) == {}
    return table


def test_a_whole_table(whole: Table) -> None:
    text = whole.report()
    figures = json.loads((whole.folder / "quality.json").read_text())
    errors = {row["name"]: row for row in figures["errors"]}
    assert set(errors) == set(SETTINGS.contenders)
    assert errors["q2"]["keys"]["value"] < errors["qvg"]["keys"]["value"] < 1
    assert errors["q2"]["key_ratio"]["value"] < 0.5
    assert errors["qvg"]["key_ratio"] is None
    assert errors["bf16"]["attention"]["value"] == 0
    # Codes, scales and ids, and codebooks of 4 centroids and widths for 576 tokens.
    assert errors["q2"]["bits"] == pytest.approx(2 + 2 * 8 / 128 + 8 / 128)
    assert errors["q2"]["shared_bits"] == pytest.approx(5 * 8 / 576)
    assert errors["q2"]["num_tokens"] == 576
    assert errors["bf16"]["bytes_per_token"] == 2 * 2 * 2 * 128
    windows = {row["name"]: row for row in figures["windows"]}
    assert set(windows) == {"qvg", "q2", "rtn2-asym"}, "no engine has what q2-aware shares"
    assert windows["rtn2-asym"]["simulated"]
    assert windows["q2"]["psnr"]["value"] > windows["rtn2-asym"]["psnr"]["value"] + 3
    assert len(windows["q2"]["chunk_psnr"]) == 3
    assert 0.5 < windows["rtn2-asym"]["ssim"]["value"] < windows["q2"]["ssim"]["value"] < 1
    clips = {row["name"]: row for row in figures["clips"]}
    assert clips[DENSE_CONTROL]["psnr"]["value"] > clips["qvg"]["psnr"]["value"] + 3
    assert clips["qvg"]["chunk_psnr"][0] == 100, "the first chunk reads no cache"
    assert {row["name"] for row in figures["times"]} == {"bf16", "qvg", "q2"}
    ratios = {row["name"]: row["windowed"] for row in figures["ratios"]}
    assert ratios["bf16"] == 1
    assert 6 < ratios["q2"] < 16 / 2.1875
    assert set(figures["adherence"]["formats"]) == {"bf16", "q2"}
    assert "Could not be measured" not in text


def test_every_picture_is_drawn_and_shown(whole: Table) -> None:
    pytest.importorskip("matplotlib")
    text = whole.report()
    for name in ("error_bits_c4", "error_time_c4", "first_window", "whole_clips", "frames"):
        assert f"![{name}.png]({name}.png)" in text
        assert (whole.folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_every_sheet_is_a_whole_table(whole: Table) -> None:
    titles = 0
    for part in whole.report().split("\n## ")[1:]:
        lines = [line for line in part.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1, part
        titles += 1
    # One layer alone has no table by layer.
    assert titles == 6


def test_what_is_finished_is_not_done_again(whole: Table) -> None:
    before, whole.told = whole.times(), []
    whole.run(*STAGES)
    assert whole.times() == before
    assert ("errors, 4 centroids", 5, 5) in whole.told
    assert not any(what.startswith("capture") for what, _, _ in whole.told)


def test_one_contender_more_is_one_contender_more(whole: Table) -> None:
    before = whole.times()
    contenders = (*SETTINGS.contenders, "rtn2")
    whole.run("errors", settings=msgspec.structs.replace(SETTINGS, contenders=contenders))
    after = whole.times()
    assert {path: after[path] for path in before} == before
    assert [Path(path).parent.name for path in after.keys() - before.keys()] == ["rtn2"]


class Broken:
    """Reads back NaN."""

    name = "broken"

    def __init__(self) -> None:
        self.interrupts = False

    def round_trip(self, rows: Tensor, *, is_key: bool, seed: int, centroids: int) -> RoundTrip:
        if self.interrupts:
            raise KeyboardInterrupt
        return RoundTrip(rows * float("nan"), 1.0, 0.0)


def test_what_fails_is_named_and_the_others_go_on(
    whole: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONTENDERS, "broken", Broken())
    table = Table(tmp_path, whole.family)
    settings = msgspec.structs.replace(
        SETTINGS, contenders=("broken", "qvg"), capture_frames=24, attend_every=1
    )
    failures = table.run("errors", settings=settings)
    assert list(failures) == ["errors/broken/c4-video0-layer2"]
    assert "NonFiniteError: broken: K of layer 2 reads back NaN" in failures.popitem()[1]
    assert (tmp_path / "parts/errors/qvg/c4-video0-layer2.json").exists()


def test_a_report_of_some_parts(
    whole: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is stopped in its midst leaves what it has."""
    broken = Broken()
    broken.interrupts = True
    monkeypatch.setitem(CONTENDERS, "broken", broken)
    table = Table(tmp_path, whole.family)
    settings = msgspec.structs.replace(
        SETTINGS, contenders=("qvg", "broken", "q2"), capture_frames=24
    )
    with pytest.raises(KeyboardInterrupt):
        table.run("errors", settings=settings)
    names, parts = table.names(settings), Parts(tmp_path / "parts")
    found = write_report(names, parts, table.family, tmp_path, failures={"errors/x": "NaN"})
    assert [row.name for row in found.errors] == ["qvg"]
    assert (found.windows, found.clips, found.times, found.adherence) == ((), (), (), None)
    text = (tmp_path / "quality.md").read_text()
    assert "* `errors/x`: NaN" in text
    assert "| `qvg` |" in text


def test_a_report_of_nothing(tmp_path: Path, pocket: ModelFamily) -> None:
    text = Table(tmp_path, pocket).report()
    assert "Quality of the contenders" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quality.json", "quality.md"]


def test_streams_too_short_for_a_window_are_refused(tmp_path: Path, pocket: ModelFamily) -> None:
    settings = msgspec.structs.replace(SETTINGS, stream_frames=36)
    with pytest.raises(ConfigError, match="stream_frames is 36: give at least 4 chunks"):
        Table(tmp_path, pocket).run("frames", settings=settings)


def test_other_stages_are_refused(tmp_path: Path, pocket: ModelFamily) -> None:
    with pytest.raises(ConfigError, match="unknown stage 'speed': use one of errors, times"):
        Table(tmp_path, pocket).run("errors", "speed")
    assert list(tmp_path.iterdir()) == []
