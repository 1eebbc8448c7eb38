"""`qvg-engine bench` with the real engine and the embedded model, at its smallest."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CommandLine = Callable[..., Any]

SMALL = (
    "--num-prompts",
    "1",
    "--num-psnr-prompts",
    "1",
    "--num-frames",
    "48",
    "--layers",
    "2",
    "--centroids",
    "4",
    "--device",
    "cpu",
)


def test_a_whole_run(cli: CommandLine, tmp_path: Path) -> None:
    options = ("--formats", "qvg,q2,rtn2", "--json", "run.json", "--output-dir", "report")
    result = cli("bench", *options, *SMALL)
    assert (result.code, result.err) == (0, "")
    report = json.loads((tmp_path / "run.json").read_text())
    assert [item["name"] for item in report["errors"]] == ["rtn2", "qvg", "q2"]
    assert report["captured_tokens"] == 4 * 192
    assert report["layers"] == [2]
    for item in report["errors"]:
        assert 0 < item["key_error"] < 1
        assert 0 < item["value_error"] < 1
        assert 0 < item["attention_error"] < 1
        assert len(item["books"]) == 1
    (margin,) = report["margins"]
    assert margin["key_db"] > 3
    assert [(item["name"], item["own_budget"]) for item in report["psnr"]] == [
        ("qvg", True),
        ("q2", True),
        ("rtn2", True),
        ("qvg", False),
        ("q2", False),
    ]
    assert all(10 < chunk < 80 for item in report["psnr"] for chunk in item["chunks"])
    assert {(item["model"], item["window_frames"]) for item in report["memory"]} == {
        ("pocket", 48),
        ("pocket", None),
        ("Wan 1.3B, 832x480", 21),
        ("Wan 1.3B, 832x480", None),
    }
    text = (tmp_path / "report" / "quality.md").read_text()
    assert "| `q2` |" in text
    assert "6 dB in K and V are asked for" in result.out
    assert "A  rtn2: " in result.out, "the plot in letters"


def test_without_matplotlib_plots_are_left_out(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "matplotlib" else find_spec(name, *rest),
    )
    result = cli("bench", "--formats", "rtn2", "--output-dir", "report", *SMALL)
    assert result.code == 0
    assert "plots were left out: they need matplotlib" in result.out
    assert [item.name for item in (tmp_path / "report").iterdir()] == ["quality.md"]
    assert "![" not in (tmp_path / "report" / "quality.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--formats", "q2,int3"], "unknown page format 'int3'"),
        (["--formats", "q2,q2"], "formats is 'q2, q2'"),
        (["--formats", ""], "unknown page format ''"),
        (["--centroids", "0"], "centroids is 0"),
        (["--centroids", "257"], "centroids is 257"),
        (["--centroids", "4;5"], "--centroids is '4;5'"),
        (["--layers", "9"], "layer 9 is not there"),
        (["--layers", "-1"], "--layers is '-1'"),
        (["--num-prompts", "0"], "num_prompts is 0"),
        (["--num-psnr-prompts", "101"], "num_psnr_prompts is 101"),
        (["--num-frames", "36"], "num_frames is 36: give at least 4 chunks"),
        (["--fit-on", "second"], "fit_on is 'second'"),
        (["--seed", "-1"], "seed is -1"),
        (["--json", "."], "--json . is a folder"),
        (["--json", "/proc/none/run.json"], "cannot write to the folder"),
        (["--output-dir", "/proc/none"], "cannot write to the folder"),
        (["--model", "nothing.pt"], "nothing.pt"),
    ],
)
def test_mistakes_are_one_line(
    cli: CommandLine, tmp_path: Path, options: list[str], message: str
) -> None:
    result = cli("bench", *options)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert message in result.err
    assert list(tmp_path.iterdir()) == []
