"""Poses, and what their movements are called."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from qvg_engine.errors import RequestError
from qvg_engine.models.worldplay.actions import action_labels
from qvg_engine.models.worldplay.cameras import CameraPath, camera_to_world
from tests.models.worldplay.conftest import WorldPlayCase


@pytest.mark.parametrize("worldplay_case", ["5b", "8b-distilled"], indirect=True)
def test_a_pose_string_gives_the_originals_cameras(worldplay_case: WorldPlayCase) -> None:
    path = CameraPath.from_pose_string(worldplay_case.info["pose"])
    tensors = worldplay_case.tensors
    assert torch.equal(path.world_to_camera, tensors["viewmats"][0])
    assert torch.equal(path.intrinsics, tensors["Ks"][0])
    assert list(action_labels(path.world_to_camera)) == tensors["action"][0].tolist()


@pytest.mark.parametrize(
    ("movement", "label"),
    [
        ("w", 9),
        ("s", 18),
        ("d", 27),
        ("a", 36),
        ("right", 1),
        ("left", 2),
        ("up", 3),
        ("down", 4),
    ],
)
def test_labels_of_single_movements(movement: str, label: int) -> None:
    path = CameraPath.from_pose_string(f"{movement}-2")
    assert action_labels(path.world_to_camera) == (0, label, label)


def poses(*steps: tuple[tuple[float, float, float], tuple[float, float, float]]) -> torch.Tensor:
    """World-to-camera of steps of (translation, degrees about x, y, z), from the identity."""
    current = torch.eye(4, dtype=torch.float64)
    worlds = [current]
    for move, turns in steps:
        step = torch.eye(4, dtype=torch.float64)
        for axis, degrees in enumerate(turns):
            cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            i, j = (axis + 1) % 3, (axis + 2) % 3
            turn = torch.eye(3, dtype=torch.float64)
            turn[i, i], turn[i, j], turn[j, i], turn[j, j] = cos, -sin, sin, cos
            step[:3, :3] = turn @ step[:3, :3]
        step[:3, 3] = torch.tensor(move)
        current = current @ step
        worlds.append(current)
    return camera_to_world(torch.stack(worlds))


@pytest.mark.parametrize(
    ("move", "turns", "label"),
    [
        ((1, 0, 1), (0, 0, 0), 9 * 5),
        ((-1, 0, 1), (0, 0, 0), 9 * 6),
        ((1, 0, -1), (0, 0, 0), 9 * 7),
        ((-1, 0, -1), (0, 0, 0), 9 * 8),
        ((0, 0, 0), (1, 1, 0), 5),
        ((0, 0, 0), (-1, 1, 0), 6),
        ((0, 0, 0), (1, -1, 0), 7),
        ((0, 0, 0), (-1, -1, 0), 8),
        ((0, 0, 1), (0, 3, 0), 9 * 1 + 1),
        ((0, 1, 0), (0, 0, 0), 0),
        ((0, 0, 5e-5), (0, 0.04, 0), 0),
        ((0, 0, 2e-4), (0, 0.06, 0), 10),
        ((0, 0, 0), (0, 0, 5), 0),
    ],
)
def test_labels_of_joint_movements(move: Any, turns: Any, label: int) -> None:
    path = poses((move, turns), (move, turns))
    assert action_labels(path) == (0, label, label)


def test_a_pose_file_is_taken_as_it_is(tmp_path: Path) -> None:
    string = CameraPath.from_pose_string("w-1,left-2")
    world = camera_to_world(string.world_to_camera)
    k = [[800.0, 0.0, 320.0], [0.0, 600.0, 200.0], [0.0, 0.0, 1.0]]
    content = {str(i): {"extrinsic": pose.tolist(), "K": k} for i, pose in enumerate(world)}
    file = tmp_path / "pose.json"
    file.write_text(json.dumps(content))
    path = CameraPath.from_pose(str(file))
    assert torch.allclose(path.world_to_camera, string.world_to_camera, atol=1e-6)
    assert path.intrinsics[1].tolist() == [[1.25, 0, 0.5], [0, 1.5, 0.5], [0, 0, 1]]


@pytest.mark.parametrize(
    ("pose", "words"),
    [
        ("w", "'w'"),
        ("jump-3", "'jump-3'"),
        ("w-0", "'w-0'"),
        ("w-3,,d-1", "''"),
        ("w-1.5", "'w-1.5'"),
        ("w--3", "'w--3'"),
    ],
)
def test_wrong_pose_strings(pose: str, words: str) -> None:
    with pytest.raises(RequestError, match=f"pose has {words}: give movements"):
        CameraPath.from_pose_string(pose)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"0": {"K": []}}', '{"0": {"extrinsic": [1], "K": [2]}}', "{}"]
)
def test_wrong_pose_files(tmp_path: Path, content: str) -> None:
    file = tmp_path / "pose.json"
    file.write_text(content)
    with pytest.raises(RequestError) as caught:
        CameraPath.from_pose_file(file)
    assert "\n" not in str(caught.value)


def test_a_pose_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        CameraPath.from_pose_file(tmp_path / "pose.json")


def test_wrong_cameras() -> None:
    good = CameraPath.from_pose_string("w-2")
    world, intrinsics = good.world_to_camera, good.intrinsics
    for arguments, words in (
        ((world[:2], intrinsics), "2 poses, intrinsics has 3"),
        ((world[0], intrinsics), r"world_to_camera is \[4, 4\]"),
        ((world * 2, intrinsics), "frame 0 is not a rotation"),
        ((world, -intrinsics), "focal length"),
        ((world * float("nan"), intrinsics), "NaN"),
        (("w-2", intrinsics), "world_to_camera is str"),
    ):
        with pytest.raises(RequestError, match=words):
            CameraPath(*arguments)
