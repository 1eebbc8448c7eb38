from pathlib import Path

import numpy as np
import pytest

from qvg_engine.errors import OutputError
from qvg_engine.quality.chunk_frames import Video
from qvg_engine.quality.table.kept_frames import kept_frames, read_frames
from qvg_engine.quality.table.parts import Part, Parts

PART = Part("frames/bf16/seed0", {"seed": 0})


def videos() -> list[Video]:
    rng = np.random.default_rng(0)
    return [
        [rng.integers(256, size=(frames, 4, 5, 3), dtype=np.uint8) for frames in chunks]
        for chunks in ((12, 12, 3), (12,))
    ]


def refuse() -> list[Video]:
    raise AssertionError("they were kept")


def test_frames_are_made_once(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    assert read_frames(parts, PART) is None
    made = kept_frames(parts, PART, videos)
    again = kept_frames(parts, PART, refuse)
    for found in (made, again, read_frames(parts, PART) or []):
        for ours, theirs in zip(found, videos(), strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    names = sorted(path.name for path in (tmp_path / "frames" / "bf16").iterdir())
    assert names == ["seed0.json", "seed0.npz"]


def test_those_of_another_key_are_made_again(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    kept_frames(parts, PART, videos)
    other = Part(PART.name, {"seed": 1})
    assert len(kept_frames(parts, other, lambda: videos()[:1])) == 1
    assert read_frames(parts, PART) is None


def test_a_lost_file_is_made_again(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    kept_frames(parts, PART, videos)
    parts.beside(PART, ".npz").unlink()
    assert len(kept_frames(parts, PART, videos)) == 2


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        kept_frames(Parts(tmp_path / "file"), PART, videos)
