"""`qvg-engine calibrate`, and `generate --kv-bits`, with the embedded model."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qvg_engine.allocation import read_allocation
from qvg_engine.quality.kv_prices import CANDIDATES

CommandLine = Callable[..., Any]

PROMPT = "a red circle over a green background"
SMALL = ("--num-frames", "24", "--device", "cpu")


def pages_of_engine(out: str) -> int:
    """How many pages `doctor` says that the engine has."""
    found = re.search(r"the engine takes\s+([\d,]+) pages", out)
    assert found is not None, out
    return int(found[1].replace(",", ""))


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough to see that it works."""
    few = tuple(item for item in CANDIDATES if item.name in ("q1-lean", "q2-lean", "q4"))
    monkeypatch.setattr("qvg_engine.quality.kv_prices.CANDIDATES", few)
    monkeypatch.setattr("qvg_engine.quality.kv_prices.OVERHEADS", (0.18,))


def test_what_is_calibrated_can_be_generated_with(cli: CommandLine, tmp_path: Path) -> None:
    calibration = ("--kv-bits", "1.8", "--output", "out/a.json", "--chunks", "2")
    result = cli("calibrate", PROMPT, *calibration, *SMALL)
    assert (result.code, result.err) == (0, "")
    assert "wrote out/a.json" in result.out
    assert "bits an element" in result.out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.json"]
    layers = read_allocation(tmp_path / "out" / "a.json").layers
    assert len(layers) == 6
    kept = json.loads((tmp_path / "out" / "a.json").read_text())
    assert (kept["model"], kept["prompts"]) == ("pocket", [PROMPT])
    assert 1.6 < kept["bits"] <= 1.8
    assert 0 < kept["predicted_error"] < 0.3

    options = ("--kv-format", "out/a.json", "--json", "run.json", *SMALL)
    assert cli("generate", PROMPT, *options).code == 0
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["kv_formats"] == [
        {"keys": pair.keys.name, "values": pair.values.name} for pair in layers
    ]
    assert 16 / report["kv_ratio"] == pytest.approx(kept["bits"])

    result = cli("doctor", "--kv-format", "out/a.json", *SMALL)
    assert result.code == 0
    # The same memory holds more pages than in the default format.
    plain = cli("doctor", *SMALL)
    assert pages_of_engine(result.out) > 1.1 * pages_of_engine(plain.out)


def test_generate_calibrates_and_says_what_it_chose(cli: CommandLine, tmp_path: Path) -> None:
    result = cli("generate", PROMPT, "--kv-bits", "2.5", "--json", "run.json", *SMALL)
    assert (result.code, result.err) == (0, "")
    report = json.loads((tmp_path / "run.json").read_text())
    assert len(report["kv_formats"]) == 6
    assert len({row["values"] for row in report["kv_formats"]}) > 1
    assert 2.2 < 16 / report["kv_ratio"] <= 2.5
    for layer, row in enumerate(report["kv_formats"]):
        cells = [str(layer), row["keys"], row["values"]]
        assert any(line.split() == cells for line in result.out.splitlines()), cells
    assert result.out.index("layer") < result.out.index("done")
    assert len(list((tmp_path / "videos").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", PROMPT, "--kv-bits", "1", *SMALL], "--kv-bits is 1.0: give bits an element"),
        (["generate", PROMPT, "--kv-bits", "nan", *SMALL], "--kv-bits is nan: give bits"),
        (["generate", PROMPT, "--kv-bits", "few", *SMALL], "--kv-bits"),
        (
            ["generate", PROMPT, "--kv-bits", "2", "--kv-format", "q2"],
            "--kv-bits and --kv-format are both given",
        ),
        (["generate", PROMPT, "--kv-format", "none.json"], "cannot read the allocation none.json"),
        (["generate", PROMPT, "--kv-format", "mine.json"], "mine.json is no allocation"),
        (["doctor", "--kv-format", "none.json"], "cannot read the allocation none.json"),
        (["calibrate", PROMPT, "--kv-bits", "99", "--output", "a.json"], "--kv-bits is 99.0"),
        (["calibrate", PROMPT, "--kv-bits", "2", "--output", "a.txt"], "that ends in .json"),
        (["calibrate", PROMPT, "--kv-bits", "2", "--output", "folder.json"], "name a file"),
        (
            ["calibrate", PROMPT, "--kv-bits", "2", "--output", "/proc/none/a.json"],
            "cannot write to the folder",
        ),
        (["calibrate", PROMPT, "--kv-bits", "2"], "--output"),
        (["calibrate", PROMPT, "--output", "a.json"], "--kv-bits"),
        (["calibrate", "--kv-bits", "2", "--output", "a.json"], "no prompts"),
        (["calibrate", PROMPT, "--kv-bits", "2", "--output", "a.json", "--chunks", "1"], "chunks"),
        (
            ["calibrate", PROMPT, "--kv-bits", "2", "--output", "a.json", "--model", "no.pt"],
            "no.pt",
        ),
    ],
)
def test_mistakes_are_one_line(
    cli: CommandLine, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "mine.json").write_text("[]")
    result = cli(*arguments)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert message in result.err
    assert result.out == ""
    assert {path.name for path in tmp_path.rglob("*")} - {"videos"} == {"folder.json", "mine.json"}
