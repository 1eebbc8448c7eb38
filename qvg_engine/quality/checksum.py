"""What tells weights apart from any others."""

import hashlib
from importlib.resources import as_file, files
from pathlib import Path

from qvg_engine.loading import EMBEDDED_MODEL
from qvg_engine.models.pocket.family import WEIGHTS_NAME


def checksum(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def packaged_checksum() -> str:
    """That of the embedded model's weights."""
    with as_file(files("qvg_engine.models.pocket") / "weights" / WEIGHTS_NAME) as path:
        return checksum(path)


def model_checksum(model: str) -> str:
    """That of the weights of "pocket", or of a folder of that kind."""
    return packaged_checksum() if model == EMBEDDED_MODEL else checksum(Path(model) / WEIGHTS_NAME)
