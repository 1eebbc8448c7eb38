"""Files that appear under their name when they are complete, or not at all."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from qvg_engine.errors import OutputError


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path`, replacing what is there; OutputError if that fails."""
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden.write_bytes(content)
        os.replace(hidden, path)
    except OSError as error:
        with suppress(OSError):
            hidden.unlink()
        raise OutputError(f"cannot write {path}: {error.strerror}; name another file") from error
