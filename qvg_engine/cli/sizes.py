"""Sizes as people write them: "2GiB" and 1234567 bytes."""

import math
import re
from fractions import Fraction

from qvg_engine.errors import ConfigError

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*([A-Za-z]*)", re.ASCII)
_LARGEST = 2**50


def parse_bytes(text: str, *, name: str) -> int:
    """Return the bytes that `text` ("2GiB", "512 MiB", "1.5GB", "1048576") says, rounded down.

    Raises ConfigError, naming the setting `name`, if it is no size between 1 byte and 1024 TiB.
    """
    match = _SIZE.fullmatch(text.strip())
    factor = _UNITS.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise ConfigError(f"{name} is {text!r}: give a size like 2GiB, 512MiB or a number of bytes")
    num_bytes = math.floor(Fraction(match[1]) * factor)
    if not 1 <= num_bytes <= _LARGEST:
        raise ConfigError(f"{name} is {text!r}: give a size from 1 byte to 1024TiB")
    return num_bytes


def format_bytes(num_bytes: float) -> str:
    """Write a number of bytes for people: "870 B", "12.4 MiB"."""
    if num_bytes < 1024:
        return f"{num_bytes:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        num_bytes /= 1024
        if num_bytes < 1024:
            return f"{num_bytes:.1f} {unit}"
    return f"{num_bytes / 1024:.1f} TiB"


def size_argument(num_bytes: int) -> str:
    """Write a number of bytes as `parse_bytes` reads it, rounded up to whole MiB."""
    return f"{math.ceil(num_bytes / 2**20)}MiB"
