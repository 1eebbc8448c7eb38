"""Measures from pixels whether ground that left the view comes back as it was.

The camera's path is followed through the video, the moment is found at which the view is one lap
of the torus further, and both views are compared where neither shows the shape. Nothing is
known of how the video was made.
"""

from itertools import pairwise
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from qvg_engine.models.pocket.clips import GROUND_LENGTH, SIZE
from qvg_engine.models.pocket.judge import ground_mask, ground_mismatch

STRIDE: Final = 12
"""Pixel frames between two looks at the camera's motion."""

_MAX_SHIFT = 20
_SEARCH_FRAMES = 10
_SEARCH_PIXELS = 3
_EVERY = 24
_COLUMNS = range(0, SIZE + 1, 8)


class Revisit(msgspec.Struct, frozen=True):
    """One look at revisited ground: the frames compared, and PSNR in dB.

    `other_db` is the PSNR against a view half a lap away, all other ground: what no memory at
    all would give. `away` says when the ground was out of view: for each of some columns of the
    first view, from its one edge to the other, the frame in which the column was seen last, and
    the one in which it came back.
    """

    first_frame: int
    again_frame: int
    db: float
    other_db: float
    away: tuple[tuple[int, int], ...]


def revisits(frames: NDArray[np.uint8], direction: str) -> list[Revisit]:
    """Compare the first lap of a video [T, H, W, 3] with the second, every `_EVERY` frames.

    Empty where the video is too short for a second lap, or its camera cannot be followed.
    """
    views = frames if direction in ("left", "right") else frames.swapaxes(1, 2)
    if direction in ("left", "up"):
        views = views[:, :, ::-1]
    hidden = {t: ~ground_mask(views[t]) for t in range(0, len(views), STRIDE)}
    path = _camera_path(views, hidden)
    found = []
    laps = np.flatnonzero(path >= GROUND_LENGTH)
    if not len(laps):
        return []
    for first in range(0, int(laps[0]), _EVERY):
        again = int(np.searchsorted(path, path[first] + GROUND_LENGTH))
        other = int(np.searchsorted(path, path[first] + GROUND_LENGTH / 2))
        if again + _SEARCH_FRAMES < len(views):
            db, other_db = (_best_psnr(views, first, about) for about in (again, other))
            found.append(Revisit(first, again, db, other_db, _away(path, first)))
    return found


def _away(path: NDArray[np.float64], first: int) -> tuple[tuple[int, int], ...]:
    """When columns of the view in frame `first` were seen last, and came back a lap later."""
    columns = path[first] + np.asarray(_COLUMNS)
    seen = np.searchsorted(path, columns, side="right") - 1
    back = np.searchsorted(path, columns + GROUND_LENGTH - SIZE)
    return tuple(zip(seen.tolist(), back.tolist(), strict=True))


def _camera_path(
    views: NDArray[np.uint8], hidden: dict[int, NDArray[np.bool_]]
) -> NDArray[np.float64]:
    """Pixels that the view has moved to the right since frame 0, for every frame."""
    times = sorted(hidden)
    moved = [0.0]
    grey = {t: views[t].astype(np.float32).mean(2) for t in times}
    for now, then in pairwise(times):
        errors = [
            ground_mismatch(grey[now], grey[then], hidden[now], hidden[then], shift)
            for shift in range(_MAX_SHIFT + 1)
        ]
        moved.append(moved[-1] + _minimum(np.asarray(errors)))
    return np.interp(np.arange(len(views)), times, moved)


def _minimum(values: NDArray[np.float64]) -> float:
    """Where a sampled curve is least, between its samples by a parabola."""
    best = int(values.argmin())
    if not 0 < best < len(values) - 1:
        return float(best)
    before, here, after = values[best - 1 : best + 2]
    curvature = before - 2 * here + after
    return best + float(0.5 * (before - after) / curvature) if curvature > 0 else float(best)


def _best_psnr(views: NDArray[np.uint8], first: int, about: int) -> float:
    """PSNR of a view against those around frame `about`, at the best alignment."""
    best = np.inf
    seen = ground_mask(views[first])
    reference = views[first].astype(np.float32)
    stop = min(len(views), about + _SEARCH_FRAMES + 1)
    for t in range(max(0, about - _SEARCH_FRAMES), stop, 2):
        both_all = ground_mask(views[t])
        for shift in range(-_SEARCH_PIXELS, _SEARCH_PIXELS + 1):
            a, b = _overlap(shift, views.shape[2])
            both = seen[:, a] & both_all[:, b]
            if both.sum() > 500:
                difference = reference[:, a][both] - views[t][:, b][both]
                best = min(best, float(np.square(difference).mean()))
    return float(10 * np.log10(255**2 / max(best, 1e-3)))


def _overlap(shift: int, width: int) -> tuple[slice, slice]:
    if shift >= 0:
        return slice(shift, width), slice(0, width - shift)
    return slice(0, width + shift), slice(-shift, width)
