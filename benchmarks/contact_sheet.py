"""Draws a picture of videos: a row for each, evenly spaced frames from its first to its last.

    python benchmarks/contact_sheet.py videos/*.mp4 --output docs/images/demo.png

Needs the extra dev (matplotlib).
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from matplotlib.image import imsave
from numpy.typing import NDArray

from qvg_engine.video.reader import read_video

_GAP = 4
_WHITE = 255


def main(
    videos: Annotated[list[Path], typer.Argument(help="MP4 files of one size, a row each.")],
    output: Annotated[Path, typer.Option(help="The PNG file to write.")],
    columns: Annotated[int, typer.Option(min=2, help="Frames of each video.")] = 8,
    shrink: Annotated[int, typer.Option(min=1, help="Divide the size by this.")] = 2,
) -> None:
    """Draw a contact sheet of videos."""
    rows = [_row(read_video(path, shrink=shrink), columns) for path in videos]
    output.parent.mkdir(parents=True, exist_ok=True)
    imsave(output, np.concatenate(rows)[:-_GAP])


def _row(frames: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """[H + gap, W of all columns, 3]: evenly spaced frames side by side, white between them."""
    picked = frames[np.linspace(0, len(frames) - 1, columns).round().astype(int)]
    bordered = np.pad(picked, ((0, 0), (0, _GAP), (0, _GAP), (0, 0)), constant_values=_WHITE)
    return np.concatenate(list(bordered), axis=1)[:, :-_GAP]


if __name__ == "__main__":
    typer.run(main)
