from pathlib import Path

import msgspec
import pytest

from qvg_engine.errors import OutputError
from qvg_engine.quality.table.parts import Part, Parts


class Figures(msgspec.Struct, frozen=True):
    error: float
    frame: bytes


KEY = {"seed": 3, "layers": (0, 2), "contender": "q2()"}
FIGURES = Figures(0.25, b"\x00\xff")


def test_a_part_comes_back(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    part = Part("errors/q2/video0", KEY)
    assert parts.read(part, Figures) is None
    parts.write(part, FIGURES)
    assert parts.read(part, Figures) == FIGURES
    assert [path.name for path in (tmp_path / "errors" / "q2").iterdir()] == ["video0.json"]
    assert parts.beside(part, ".npz") == tmp_path / "errors" / "q2" / "video0.npz"


@pytest.mark.parametrize(
    "key", [KEY | {"seed": 4}, KEY | {"layers": (0,)}, {"seed": 3}, KEY | {"more": None}]
)
def test_a_part_of_another_key_is_missing(tmp_path: Path, key: dict[str, object]) -> None:
    parts = Parts(tmp_path)
    parts.write(Part("a", KEY), FIGURES)
    assert parts.read(Part("a", key), Figures) is None
    parts.write(Part("a", key), FIGURES)
    assert parts.read(Part("a", KEY), Figures) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": 1', '{"key": {}, "figures": {}}'])
def test_a_file_that_is_no_part_is_missing(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    assert Parts(tmp_path).read(Part("a", {}), Figures) is None


def test_a_part_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        Parts(tmp_path / "file").write(Part("a", {}), FIGURES)
