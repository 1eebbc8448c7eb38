"""Finished parts of a long measurement, each a small JSON file in a folder."""

from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from qvg_engine.quality.files import write_whole

_Figures = TypeVar("_Figures", bound=msgspec.Struct)


class Part(NamedTuple):
    """One part: its `name`, such as "errors/q2/video0", and the `key` that says what it is of.

    The key holds everything that the figures depend on and that may change between runs, but for
    the code.
    """

    name: str
    key: dict[str, Any]


class Parts:
    """The parts in a folder. One that was measured under another key counts as missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, part: Part, kind: type[_Figures]) -> _Figures | None:
        """The figures of a part; None if it is missing, or of another key, or not readable."""
        try:
            kept = msgspec.json.decode(self._path(part).read_bytes())
            if kept["key"] != _plain(part.key):
                return None
            return msgspec.convert(kept["figures"], kind)
        except (OSError, KeyError, TypeError, msgspec.MsgspecError):
            return None

    def write(self, part: Part, figures: msgspec.Struct) -> None:
        """Keep a part, in the place of what was there; OutputError if it cannot be written."""
        content = msgspec.json.encode({"key": part.key, "figures": figures})
        write_whole(self._path(part), content + b"\n")

    def beside(self, part: Part, suffix: str) -> Path:
        """A file of the part's name, for what is too large for JSON."""
        return self.folder / f"{part.name}{suffix}"

    def _path(self, part: Part) -> Path:
        return self.beside(part, ".json")


def _plain(key: dict[str, Any]) -> Any:
    """A key as it comes back from a file."""
    return msgspec.json.decode(msgspec.json.encode(key))
