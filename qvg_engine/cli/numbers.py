"""Whole numbers on the command line."""

from qvg_engine.errors import ConfigError


def parse_numbers(text: str, *, name: str) -> tuple[int, ...]:
    """Whole numbers with commas between them; ConfigError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise ConfigError(f"{name} is {text!r}: give whole numbers, such as 1,2,3")
    return tuple(map(int, parts))
