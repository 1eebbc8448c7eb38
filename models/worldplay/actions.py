"""Action labels: what a camera's movement between two latent frames is called.

A label is 9 * translation + rotation. Each of the two counts 0 for none, 1 to 4 for its four
directions, and 5 to 8 for (1, 3), (1, 4), (2, 3) and (2, 4) together.
"""

import torch
from torch import Tensor

from qvg_engine.models.worldplay.cameras import camera_to_world

NUM_LABELS = 81
_KINDS = 9

_MOVED = 1e-4
_TURNED_DEGREES = 0.05
_NEAR_DEGREES, _FAR_DEGREES = 60.0, 120.0


def action_labels(world_to_camera: Tensor) -> tuple[int, ...]:
    """The labels of poses [F, 4, 4], from each to the one before it; the first has label 0.

    Translations are forward, backward, right, left; rotations right, left, up, down.
    """
    to_world = camera_to_world(world_to_camera)
    relative = camera_to_world(to_world[:-1]) @ to_world[1:]
    moves = (_translation(pose[:3, 3]) for pose in relative)
    turns = (_rotation(pose[:3, :3]) for pose in relative)
    return (0, *(_KINDS * move + turn for move, turn in zip(moves, turns, strict=True)))


def _translation(step: Tensor) -> int:
    length = step.norm()
    if length <= _MOVED:
        return 0
    degrees = torch.rad2deg(torch.arccos((step / length).clamp(-1, 1)))
    along_x, along_z = float(degrees[0]), float(degrees[2])
    return _combine(
        _side(_FAR_DEGREES - along_z, along_z - _NEAR_DEGREES),
        _side(_FAR_DEGREES - along_x, along_x - _NEAR_DEGREES),
    )


def _rotation(turn: Tensor) -> int:
    """From the angles of a rotation about the fixed axes x, y and z, in this order."""
    about_x = float(torch.rad2deg(torch.atan2(turn[2, 1], turn[2, 2])))
    about_y = float(torch.rad2deg(torch.asin((-turn[2, 0]).clamp(-1, 1))))
    return _combine(_sign(about_y), _sign(about_x))


def _side(beyond: float, short: float) -> int:
    """1 where `short` is negative, 2 where `beyond` is, else 0."""
    return 1 if short < 0 else 2 if beyond < 0 else 0


def _sign(degrees: float) -> int:
    """1 or 2 for an angle beyond the threshold, positive or negative, else 0."""
    return 1 if degrees > _TURNED_DEGREES else 2 if degrees < -_TURNED_DEGREES else 0


def _combine(first: int, second: int) -> int:
    """The kind of a direction on each of two axes: 0 none, 1 positive, 2 negative."""
    if not second:
        return first
    if not first:
        return 2 + second
    return 2 * first + 2 + second
