"""Says what a frame shows, from its pixels alone.

It knows the palette and the grammar of the clips, but neither the prompt nor how a frame was
made. Shape and colours are read from one frame, the camera's direction from two: the ground,
with the shape cut out of both, is searched for the shift that explains it best.
"""

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from qvg_engine.models.pocket.clips import (
    COLORS,
    FLAT_RGB,
    GROUND_RGB,
    SHAPES,
    Scene,
    shape_distance,
)

DIRECTION_GAP: Final = 10
"""Pixel frames between the two frames that the direction is read from."""

_MAX_SHIFT = 18
_MIN_SHAPE_PIXELS = 60
_UNKNOWN = len(COLORS)


class Verdict(msgspec.Struct, frozen=True):
    """What was found; None where nothing convincing was."""

    shape: str | None
    color: str | None
    background: str | None
    direction: str | None

    def matches(self, scene: Scene) -> dict[str, bool]:
        """Attribute by attribute, whether a scene was found as it should be."""
        return {name: getattr(self, name) == getattr(scene, name) for name in ATTRIBUTES}


ATTRIBUTES: Final = ("shape", "color", "background", "direction")


def judge(frame: NDArray[np.uint8], later: NDArray[np.uint8]) -> Verdict:
    """What `frame` [H, W, 3] shows; `later` is the frame `DIRECTION_GAP` frames after it."""
    classes = _classify(frame)
    background = _most_common(classes)
    if background is None:
        return Verdict(None, None, None, None)
    color, mask = _find_shape(classes, background)
    later_mask = _find_shape(_classify(later), background)[1]
    return Verdict(
        shape=None if color is None else _name_shape(mask),
        color=None if color is None else COLORS[color],
        background=COLORS[background],
        direction=_direction(frame, later, _grow(mask), _grow(later_mask)),
    )


def judge_video(frames: NDArray[np.uint8], *, every: int = 8) -> list[Verdict]:
    """Verdicts on every `every`-th frame of a video [T, H, W, 3] that has a later frame."""
    last = len(frames) - DIRECTION_GAP
    return [judge(frames[t], frames[t + DIRECTION_GAP]) for t in range(0, last, every)]


def is_alive(frames: NDArray[np.uint8]) -> bool:
    """Whether a stretch of video [T, H, W, 3] is neither grey, nor noise, nor still."""
    pixels = frames.astype(np.float32)
    contrast = pixels.std(axis=(1, 2)).mean()
    roughness = np.abs(np.diff(pixels, axis=2)).mean() / max(float(contrast), 1e-3)
    motion = np.abs(pixels[DIRECTION_GAP:] - pixels[:-DIRECTION_GAP]).mean()
    return bool(contrast > 8.0 and roughness < 0.6 and motion > 2.0)


def _classify(frame: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The index in COLORS of every pixel's nearest palette entry; _UNKNOWN for dark outlines."""
    pixels = frame.reshape(-1, 3).astype(np.float32)
    squares = (pixels**2).sum(1, keepdims=True) - 2 * pixels @ _PALETTE.T + _PALETTE_SQUARES
    classes: NDArray[np.int64] = _PALETTE_CLASS[squares.argmin(1)].reshape(frame.shape[:2])
    return classes


def _palette() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Sample colours [P, 3] and their classes: flat shapes, shades of ground, dark outlines."""
    samples: list[NDArray[np.float32]] = []
    classes: list[int] = []
    for index, color in enumerate(COLORS):
        flat = np.asarray(FLAT_RGB[color], dtype=np.float32)
        dark, light = (np.asarray(rgb, dtype=np.float32) for rgb in GROUND_RGB[color])
        shades = [dark + part * (light - dark) for part in np.linspace(0, 1, 7)]
        samples += [flat, *shades]
        classes += [index] * 8
    samples.append(np.full(3, 20, dtype=np.float32))
    classes.append(_UNKNOWN)
    return np.stack(samples), np.asarray(classes)


_PALETTE, _PALETTE_CLASS = _palette()
_PALETTE_SQUARES = (_PALETTE**2).sum(1)


def _most_common(classes: NDArray[np.int64]) -> int | None:
    counts = np.bincount(classes.ravel(), minlength=_UNKNOWN + 1)[:_UNKNOWN]
    best = int(counts.argmax())
    return best if counts[best] > classes.size // 4 else None


def _find_shape(
    classes: NDArray[np.int64], background: int
) -> tuple[int | None, NDArray[np.bool_]]:
    """The colour of the largest connected patch that is not ground, and the patch's mask."""
    best_color, best_mask = None, np.zeros(classes.shape, dtype=bool)
    best_size = _MIN_SHAPE_PIXELS
    for color in range(_UNKNOWN):
        candidate = classes == color
        if color == background or candidate.sum() <= best_size:
            continue
        patch = _largest_patch(candidate)
        if patch.sum() > best_size:
            best_color, best_mask, best_size = color, patch, int(patch.sum())
    return best_color, best_mask


def _largest_patch(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest 4-connected patch, by label propagation."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
        spread = np.maximum.reduce((labels, *neighbours))
        spread = np.where(mask, spread, 0)
        # Jump to the label's own label: patches settle in a few rounds.
        flat = np.concatenate([[0], spread.ravel()])
        spread = np.where(mask, flat[spread], 0)
        if np.array_equal(spread, labels):
            break
        labels = spread
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest: NDArray[np.bool_] = (labels == sizes.argmax()) & mask
    return largest


def _name_shape(mask: NDArray[np.bool_]) -> str | None:
    """The shape whose template of the same area and centre overlaps a patch best."""
    rows, columns = np.nonzero(mask)
    area = len(rows)
    dx = (np.arange(mask.shape[1]) - columns.mean()).astype(np.float32)[None, :]
    dy = (np.arange(mask.shape[0]) - rows.mean()).astype(np.float32)[:, None]
    overlaps = []
    for shape, per_square, centre in zip(SHAPES, _AREA, _CENTRE, strict=True):
        radius = float(np.sqrt(area / per_square))
        template = shape_distance(shape, dx, dy + np.float32(centre * radius), radius) < 0
        union = (template | mask).sum()
        overlaps.append((template & mask).sum() / union)
    best = int(np.argmax(overlaps))
    return SHAPES[best] if overlaps[best] > 0.7 else None


# Area over radius squared, and how far below the middle of its box a shape's centroid lies.
_AREA = (np.pi, 4 * 0.86**2, 2.0)
_CENTRE = (0.0, 0.0, 1 / 3)


def _grow(mask: NDArray[np.bool_], pixels: int = 4) -> NDArray[np.bool_]:
    """The mask with a margin for outline and blur."""
    grown = mask.copy()
    for _ in range(pixels):
        padded = np.pad(grown, 1)
        grown = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:] | grown
    return grown


def _direction(
    frame: NDArray[np.uint8],
    later: NDArray[np.uint8],
    hidden: NDArray[np.bool_],
    later_hidden: NDArray[np.bool_],
) -> str | None:
    """Where the view moved, from the shift that explains the ground of `later` best."""
    here, there = frame.astype(np.float32).mean(2), later.astype(np.float32).mean(2)
    ends = {}
    still = ground_mismatch(here, there, hidden, later_hidden, 0)
    for name, transpose in (("right", False), ("down", True)):
        images = [here, there, hidden, later_hidden]
        a, b, hide_a, hide_b = (x.T if transpose else x for x in images)
        for shift in range(2, _MAX_SHIFT + 1):
            ends[name, shift] = ground_mismatch(a, b, hide_a, hide_b, shift)
            back = {"right": "left", "down": "up"}[name]
            ends[back, shift] = ground_mismatch(b, a, hide_b, hide_a, shift)
    best = min(ends, key=lambda key: ends[key])
    return best[0] if ends[best] < 0.9 * still else None


def ground_mask(frame: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a frame shows ground: neither the shape nor its surroundings; all False if lost."""
    classes = _classify(frame)
    background = _most_common(classes)
    if background is None:
        return np.zeros(classes.shape, dtype=bool)
    return ~_grow(_find_shape(classes, background)[1])


def ground_mismatch(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    hide_a: NDArray[np.bool_],
    hide_b: NDArray[np.bool_],
    shift: int,
) -> float:
    """Variance of the difference if column x + shift of `a` were column x of `b`.

    Pixels that are hidden in either are left out; infinite if few remain.
    """
    width = a.shape[1] - shift
    seen = ~(hide_a[:, shift:] | hide_b[:, :width])
    count = int(seen.sum())
    if count < 200:
        return float("inf")
    difference = (a[:, shift:] - b[:, :width])[seen]
    # A uniform change of brightness is not motion.
    return float(np.var(difference))
