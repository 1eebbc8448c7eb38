"""Frames that others are compared with, generated once and kept beside a part."""

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np

from qvg_engine.errors import OutputError
from qvg_engine.quality.chunk_frames import Video
from qvg_engine.quality.table.parts import Part, Parts


class FramesNote(msgspec.Struct, frozen=True):
    """How many chunks each of the kept videos has."""

    num_chunks: tuple[int, ...]


def kept_frames(parts: Parts, part: Part, make: Callable[[], list[Video]]) -> list[Video]:
    """The videos of a part, from its file or from `make`; OutputError if they cannot be kept."""
    videos = read_frames(parts, part)
    if videos is None:
        videos = make()
        _write(parts.beside(part, ".npz"), videos)
        parts.write(part, FramesNote(tuple(map(len, videos))))
    return videos


def read_frames(parts: Parts, part: Part) -> list[Video] | None:
    """The videos of a part; None if they were not kept."""
    path = parts.beside(part, ".npz")
    note = parts.read(part, FramesNote)
    if note is None or not path.exists():
        return None
    with np.load(path) as file:
        return [
            [file[f"{video}-{chunk}"] for chunk in range(count)]
            for video, count in enumerate(note.num_chunks)
        ]


def _write(path: Path, videos: list[Video]) -> None:
    arrays = {
        f"{video}-{chunk}": frames
        for video, chunks in enumerate(videos)
        for chunk, frames in enumerate(chunks)
    }
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with hidden.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        os.replace(hidden, path)
    except OSError as error:
        with suppress(OSError):
            hidden.unlink()
        raise OutputError(f"cannot write {path}: {error.strerror}; name another folder") from error
