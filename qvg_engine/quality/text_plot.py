"""A plot of points in letters, for terminals and for people without matplotlib."""

import math
import string
from collections.abc import Sequence

import msgspec

from qvg_engine.quality.figures import FormatErrors

_WIDTH, _HEIGHT = 64, 14


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One point and what to call it; `y` is above 0."""

    label: str
    x: float
    y: float


def error_points(errors: Sequence[FormatErrors]) -> list[Point]:
    """Mean error of K and V against bits an element, codebooks included."""
    return [
        Point(
            label=f"{item.name}, {item.centroids} centroids" if item.centroids else item.name,
            x=item.bits + item.codebook_bits,
            y=(item.key_error + item.value_error) / 2,
        )
        for item in errors
        if item.key_error + item.value_error > 0
    ]


def text_plot(points: Sequence[Point], *, x_name: str, y_name: str) -> str:
    """Lines of text: a letter for each point, `y` logarithmic, and what the letters mean.

    Where two points meet, the first one's letter is shown.
    """
    if not points:
        return f"{y_name} against {x_name}: no points"
    letters = (string.ascii_uppercase + string.ascii_lowercase)[: len(points)]
    left, right = _range([point.x for point in points])
    low, high = _range([math.log10(point.y) for point in points])
    grid = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    for letter, point in reversed(list(zip(letters, points, strict=False))):
        column = round((point.x - left) / (right - left) * (_WIDTH - 1))
        row = round((high - math.log10(point.y)) / (high - low) * (_HEIGHT - 1))
        grid[row][column] = letter
    lines = [f"{y_name} (up, logarithmic) against {x_name}"]
    for number, row_cells in enumerate(grid):
        value = 10 ** (high - (high - low) * number / (_HEIGHT - 1))
        mark = f"{value:9.2g}" if number % 3 == 0 or number == _HEIGHT - 1 else " " * 9
        lines.append(f"{mark} |{''.join(row_cells).rstrip()}")
    lines.append(" " * 10 + "+" + "-" * _WIDTH)
    lines.append(" " * 11 + f"{left:<{_WIDTH // 2}.3g}{right:>{_WIDTH // 2}.3g}")
    lines += [
        f"  {letter}  {point.label}: {point.y:.2g} at {point.x:.2f}"
        for letter, point in zip(letters, points, strict=False)
    ]
    return "\n".join(lines)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The least and the largest value, made different."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
