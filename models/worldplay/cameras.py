"""The cameras of a video: one pose and one set of intrinsics per latent frame.

A camera looks along its own z, x is to its right and y down. Poses come from a string of
movements, as in "w-3,right-4", from a JSON file of camera-to-world matrices, or as tensors.
"""

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.errors import RequestError

STEP = 0.08
"""What a movement adds to the position, in world units a latent frame."""

TURN_DEGREES = 3.0
"""What a turn adds, in degrees a latent frame."""

FOCAL_PIXELS, IMAGE_CENTRE = 969.6969696969696, (960.0, 540.0)
"""Intrinsics of poses that say none: a 1920x1080 image of 89.4 degrees' width."""

_MOVES = {"w": (0.0, 0.0, STEP), "s": (0.0, 0.0, -STEP), "d": (STEP, 0.0, 0.0)}
_MOVES["a"] = (-STEP, 0.0, 0.0)
_YAWS = {"right": TURN_DEGREES, "left": -TURN_DEGREES}
_PITCHES = {"up": TURN_DEGREES, "down": -TURN_DEGREES}
MOVEMENTS = (*_MOVES, *_YAWS, *_PITCHES)

_RIGID_TOLERANCE = 1e-2
_MAX_FRAMES = 1_000_000


class CameraPath(msgspec.Struct, frozen=True, eq=False):
    """`world_to_camera` [F, 4, 4], rigid, and `intrinsics` [F, 3, 3] in units of the image's size.

    Raises `RequestError` for other shapes, values that are not finite, poses that are not rigid and
    focal lengths that are not positive.
    """

    world_to_camera: Tensor
    intrinsics: Tensor

    def __post_init__(self) -> None:
        _check_shape("world_to_camera", self.world_to_camera, (4, 4))
        _check_shape("intrinsics", self.intrinsics, (3, 3))
        if len(self.world_to_camera) != len(self.intrinsics):
            raise RequestError(
                f"world_to_camera has {len(self.world_to_camera)} poses, intrinsics has "
                f"{len(self.intrinsics)}: give one of each per latent frame"
            )
        world = self.world_to_camera.double().cpu()
        rotation = world[:, :3, :3]
        error = (rotation @ rotation.mT - torch.eye(3, dtype=torch.float64)).abs().amax((1, 2))
        last = world[:, 3] - torch.tensor([0.0, 0.0, 0.0, 1.0])
        wrong = torch.maximum(error, last.abs().amax(1)) > _RIGID_TOLERANCE
        if wrong.any():
            raise RequestError(
                f"world_to_camera of frame {int(wrong.nonzero()[0])} is not a rotation and a "
                "translation: give [R t; 0 1] with an orthonormal R"
            )
        focal = self.intrinsics.diagonal(dim1=1, dim2=2)[:, :2]
        if focal.min() <= 0:
            raise RequestError(f"a focal length is {float(focal.min())}: give positive numbers")

    @property
    def num_frames(self) -> int:
        """Latent frames that have a camera."""
        return len(self.world_to_camera)

    @classmethod
    def standing_still(cls, num_frames: int) -> "CameraPath":
        """A camera that stays where it is."""
        return _path(np.tile(np.eye(4), (num_frames, 1, 1)))

    @classmethod
    def from_pose(cls, pose: str) -> "CameraPath":
        """The path of a pose string, or of the pose file whose name it is (`.json`)."""
        if pose.strip().lower().endswith(".json"):
            return cls.from_pose_file(pose.strip())
        return cls.from_pose_string(pose)

    @classmethod
    def from_pose_string(cls, pose: str) -> "CameraPath":
        """The path of a string such as "w-3,right-4": a first pose, then one per latent frame.

        Movements are w, s, a, d (forward, backward, left, right), up, down, left and right (turns),
        each with the number of latent frames that it takes. Raises `RequestError`.
        """
        current = np.eye(4)
        poses = [current]
        for name, count in _parse(pose):
            for _ in range(count):
                current = current @ _movement(name)
                poses.append(current)
        return _path(np.stack(poses))

    @classmethod
    def from_pose_file(cls, path: str | Path) -> "CameraPath":
        """The path in a JSON file: {"0": {"extrinsic": c2w 4x4, "K": 3x3 in pixels}, ...}.

        The centre in K says how large the image is. Raises `RequestError`.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            poses = [content[key]["extrinsic"] for key in content]
            pixels = [content[key]["K"] for key in content]
            to_world, intrinsics = np.array(poses, np.float64), np.array(pixels, np.float64)
        except FileNotFoundError as error:
            raise RequestError(f"pose file {str(path)!r} does not exist") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(
                f"pose file {str(path)!r} is not one ({type(error).__name__}: {error}): give "
                '{"0": {"extrinsic": 4x4, "K": 3x3}, ...}'
            ) from error
        return _path(to_world, intrinsics)


def camera_to_world(world_to_camera: Tensor) -> Tensor:
    """The inverses of rigid poses, fp64 [F, 4, 4]."""
    world = world_to_camera.double()
    inverse = torch.zeros_like(world)
    inverse[:, :3, :3] = world[:, :3, :3].mT
    inverse[:, :3, 3:] = -world[:, :3, :3].mT @ world[:, :3, 3:]
    inverse[:, 3, 3] = 1
    return inverse


def _parse(pose: str) -> list[tuple[str, int]]:
    parsed = []
    for command in pose.split(","):
        name, _, count = command.strip().partition("-")
        if name not in MOVEMENTS or not count.isdecimal() or not 0 < int(count) <= _MAX_FRAMES:
            raise RequestError(
                f"pose has {command.strip()!r}: give movements such as 'w-3,right-4', of "
                f"{', '.join(MOVEMENTS)}, with the latent frames (1 to {_MAX_FRAMES:,}) of each"
            )
        parsed.append((name, int(count)))
    return parsed


def _movement(name: str) -> NDArray[np.float64]:
    """What one latent frame of a movement does, in the camera's own axes, [4, 4]."""
    step = np.eye(4)
    if name in _MOVES:
        step[:3, 3] = _MOVES[name]
        return step
    angle = math.radians(_YAWS[name] if name in _YAWS else _PITCHES[name])
    cos, sin = math.cos(angle), math.sin(angle)
    if name in _YAWS:
        step[:3, :3] = ((cos, 0, sin), (0, 1, 0), (-sin, 0, cos))
    else:
        step[:3, :3] = ((1, 0, 0), (0, cos, -sin), (0, sin, cos))
    return step


def _path(to_world: NDArray[np.float64], pixels: NDArray[np.float64] | None = None) -> CameraPath:
    if pixels is None:
        centre_x, centre_y = IMAGE_CENTRE
        single = ((FOCAL_PIXELS, 0, centre_x), (0, FOCAL_PIXELS, centre_y), (0, 0, 1))
        pixels = np.tile(np.array(single), (len(to_world), 1, 1))
    for name, given, size in (("extrinsic", to_world, 4), ("K", pixels, 3)):
        if given.ndim != 3 or given.shape[1:] != (size, size) or not np.isfinite(given).all():
            raise RequestError(f"{name} of the poses: give finite {size}x{size} matrices")
    if abs(np.linalg.det(to_world)).min() < _RIGID_TOLERANCE or pixels[:, :2, 2].min() <= 0:
        raise RequestError("the poses: give rigid extrinsics, and a K with a positive centre")
    intrinsics = pixels.copy()
    intrinsics[:, 0, 0] /= 2 * pixels[:, 0, 2]
    intrinsics[:, 1, 1] /= 2 * pixels[:, 1, 2]
    intrinsics[:, :2, 2] = 0.5
    return CameraPath(
        torch.from_numpy(np.linalg.inv(to_world)).float(), torch.from_numpy(intrinsics).float()
    )


def _check_shape(name: str, value: Any, tail: tuple[int, int]) -> None:
    if not isinstance(value, Tensor) or value.ndim != 3 or tuple(value.shape[1:]) != tail:
        shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise RequestError(f"{name} is {shape}: give [F, {tail[0]}, {tail[1]}]")
    if not len(value) or not value.isfinite().all():
        raise RequestError(f"{name} has no poses, or has NaN or Inf")
