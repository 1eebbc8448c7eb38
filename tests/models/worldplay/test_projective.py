"""The read transform between cameras, against matrices that are inverted as such."""

import numpy as np
import pytest
import torch

from qvg_engine.kernels.paged_attention import (
    DenseSegment,
    LayerPages,
    PagedSegment,
    PageRuns,
    PlainPages,
    RopeTransform,
    TransformSet,
    Workspace,
    paged_attention,
    transforms_in,
)
from qvg_engine.kernels.paged_attention.encode import encode
from qvg_engine.kernels.rope import RopeGrid, RopeTables
from qvg_engine.kernels.rope.layout import to_half_split
from qvg_engine.models.worldplay.cameras import CameraPath
from qvg_engine.models.worldplay.projective import ProjectiveTransform, projections
from tests.models.worldplay.plain import attend, lifted, multiply

TOKENS_PER_FRAME = 6
POSITIONS = [
    np.arange(48),
    np.array([0, 1, 2, 3, 7, 8, 9, 10, 11, 30]),
    np.arange(3, 40),
    np.array([47]),
    np.array([20, 20, 3, 46]),
]


@pytest.fixture
def path() -> CameraPath:
    return CameraPath.from_pose_string("w-2,right-2,d-1,up-2")


@pytest.fixture
def transform(path: CameraPath) -> ProjectiveTransform:
    return ProjectiveTransform(
        *projections(path.world_to_camera, path.intrinsics), TOKENS_PER_FRAME
    )


def cameras_of(path: CameraPath, positions: np.ndarray) -> list[torch.Tensor]:
    frames = positions // TOKENS_PER_FRAME
    world, focal = path.world_to_camera.double(), path.intrinsics.double()
    return [lifted(world[i], focal[i].diagonal()) for i in frames]


@pytest.mark.parametrize("positions", POSITIONS)
def test_each_function(
    path: CameraPath, transform: ProjectiveTransform, positions: np.ndarray
) -> None:
    x = torch.randn(len(positions), 2, 16)
    cameras = cameras_of(path, positions)
    inverses = [torch.linalg.inv(camera) for camera in cameras]
    split = to_half_split(x)
    for ours, matrices, is_split in (
        (transform.values(x, positions), inverses, False),
        (transform.output(x, positions), cameras, False),
        (transform.queries(split, positions), [camera.mT for camera in cameras], True),
        (transform.keys(split, positions), inverses, True),
    ):
        expected = multiply(x, matrices).float()
        expected = to_half_split(expected) if is_split else expected
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_pages_are_read_under_both_transforms(
    path: CameraPath, transform: ProjectiveTransform
) -> None:
    keys, values, queries = (torch.randn(48, 2, 16) for _ in range(3))
    key_pages, value_pages = (PlainPages(torch.empty(6, 2, 8, 16)) for _ in range(2))
    pages = LayerPages(keys=key_pages, values=value_pages)
    ids = np.arange(6, dtype=np.int32)
    encode(key_pages, ids, to_half_split(keys))
    encode(value_pages, ids, values)
    runs = PageRuns(np.arange(6), 8 * np.arange(6), np.zeros(6, np.int64), np.full(6, 8))
    text_keys, text_values = torch.randn(3, 2, 16), torch.randn(3, 2, 16)
    text = DenseSegment(keys=to_half_split(text_keys), values=text_values)
    positions = np.arange(42, 48)
    attended = paged_attention(
        to_half_split(queries[42:]),
        (text, PagedSegment(pages, runs)),
        transform=transform,
        query_positions=positions,
        workspace=Workspace(
            num_heads=2, head_dim=16, max_tokens=20, device="cpu", dtype=torch.float32
        ),
    )
    cameras = cameras_of(path, np.arange(48))
    inverses = [torch.linalg.inv(camera) for camera in cameras]
    plain = attend(
        multiply(queries[42:], [camera.mT for camera in cameras[42:]]),
        torch.cat([text_keys.double(), multiply(keys, inverses)]),
        torch.cat([text_values.double(), multiply(values, inverses)]),
    )
    expected = multiply(plain, cameras[42:])
    assert float((attended - expected).abs().max()) <= 1e-5


def test_a_set_is_its_first_transform_where_one_is_asked_for(
    transform: ProjectiveTransform,
) -> None:
    rope = RopeTransform(RopeGrid(RopeTables(head_dim=16), 2, 3))
    both = TransformSet((rope, transform))
    assert transforms_in(both) == (rope, transform)
    assert transforms_in(rope) == (rope,)
    assert both.rope is rope.grid
    x, positions = torch.randn(4, 2, 16), np.arange(4)
    assert torch.equal(both.keys(x, positions), rope.keys(x, positions))
    assert torch.equal(both.queries(x, positions), rope.queries(x, positions))
    assert both.values(x, positions) is x
    assert both.output(x, positions) is x
