"""`qvg-engine capture` with the real engine and the embedded model, at its smallest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qvg_engine.quality import recorder
from qvg_engine.quality.capture import load

CommandLine = Callable[..., Any]

PROMPTS = ("a red circle over a green background", "a blue square over a white background")
FILES = (
    "a-red-circle-over-a-green-background-seed5",
    "a-blue-square-over-a-white-background-seed6",
)
SMALL = ("--num-frames", "13", "--layers", "0,2", "--seed", "5", "--device", "cpu")


def test_a_file_a_prompt(cli: CommandLine, tmp_path: Path) -> None:
    result = cli("capture", *PROMPTS, *SMALL, "--heads", "1", "--dtype", "bfloat16")
    assert (result.code, result.err) == (0, "")
    folder = tmp_path / "captures"
    assert sorted(path.stem for path in folder.iterdir()) == sorted(FILES)
    for index, name in enumerate(FILES):
        path = folder / f"{name}.safetensors"
        capture = load(path)
        assert (capture.info.prompt, capture.info.seed) == (PROMPTS[index], 5 + index)
        assert capture.chunk_tokens == (192, 192)
        assert list(capture.layers) == [0, 2]
        for layer in capture.layers.values():
            for rows in (layer.queries, layer.keys, layer.values):
                assert rows.shape == (384, 1, 128)
                assert rows.dtype == torch.bfloat16
        assert f"wrote captures/{path.name}: 384 tokens in 2 chunks, layers 0, 2" in result.out


def test_what_is_there_is_kept_unless_asked(cli: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "captures" / f"{FILES[1]}.safetensors"
    path.parent.mkdir()
    path.write_text("mine")
    result = cli("capture", *PROMPTS, *SMALL)
    assert result.code == 2
    assert "is there: give --overwrite" in result.err
    assert [item.read_text() for item in path.parent.iterdir()] == ["mine"], "nothing was begun"
    assert cli("capture", PROMPTS[1], *SMALL, "--seed", "6", "--overwrite").code == 0
    assert load(path).num_tokens == 384


def test_complete_files_stay_when_it_is_stopped(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[object] = []
    family = recorder.RecordingFamily

    def open_family(*args: Any, **options: Any) -> recorder.RecordingFamily:
        if begun:
            raise KeyboardInterrupt
        begun.append(args)
        return family(*args, **options)

    monkeypatch.setattr(recorder, "RecordingFamily", open_family)
    assert cli("capture", *PROMPTS, *SMALL).code == 130
    assert [path.stem for path in (tmp_path / "captures").iterdir()] == [FILES[0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no prompts"),
        ([PROMPTS[0], "--layers", "9"], "layer 9 is not there: pocket has 0 to 5"),
        ([PROMPTS[0], "--layers", "-1"], "--layers is '-1'"),
        ([PROMPTS[0], "--heads", "2"], "head 2 is not there"),
        ([PROMPTS[0], "--heads", ""], "--heads is ''"),
        ([PROMPTS[0], "--dtype", "int8"], "dtype is 'int8': give one of float32"),
        ([PROMPTS[0], "--num-frames", "9", "--seconds", "1"], "both given"),
        ([PROMPTS[0], "--kv-format", "int3"], "unknown page format 'int3'"),
        ([PROMPTS[0], "--kv-memory", "1KiB"], "a page takes"),
        ([PROMPTS[0], "--output-dir", "/proc/none"], "cannot write to the folder"),
        ([PROMPTS[0], "--model", "nothing.pt"], "nothing.pt"),
    ],
)
def test_mistakes_are_one_line(
    cli: CommandLine, tmp_path: Path, options: list[str], message: str
) -> None:
    result = cli("capture", *options)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert message in result.err
    assert not list(tmp_path.rglob("*.safetensors"))
