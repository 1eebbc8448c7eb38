"""Which earlier latent frames a chunk remembers: the first, the last, and what was seen from here.

Overlap of two views is estimated by Monte Carlo: of the points of a ball around a camera that lie
in its view, the share that another camera sees, too.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from qvg_engine.models.worldplay.cameras import camera_to_world
from qvg_engine.models.worldplay.settings import MEMORY_RADIUS, VIEW_DEGREES, WorldPlaySettings

NUM_POINTS = 50_000

_POINTS_KEY = 20_260_101


@cache
def default_points() -> Tensor:
    """Points spread evenly over a ball around the camera, fp32 [N, 3]; always the same ones."""
    generator = np.random.Generator(np.random.Philox(key=_POINTS_KEY))
    direction = generator.standard_normal((NUM_POINTS, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    radius = MEMORY_RADIUS * generator.random((NUM_POINTS, 1)) ** (1 / 3)
    return torch.from_numpy((direction * radius).astype(np.float32))


def select_memory(
    world_to_camera: Tensor, first_frame: int, *, settings: WorldPlaySettings, points: Tensor
) -> tuple[int, ...]:
    """The earlier frames that the chunk from `first_frame` on attends to, in order of time.

    Args:
        world_to_camera: poses of all latent frames, [F, 4, 4].
        points: [N, 3] around a camera, in its own axes.

    All of them while they fit; else the first `sink_frames`, the last `recent_frames`, and the
    groups of a chunk's length in between whose views overlap most with those of the chunk; of
    equal ones the earlier.
    """
    capacity = settings.memory_frames
    if capacity is None or first_frame <= capacity:
        return tuple(range(first_frame))
    group = settings.frames_per_chunk
    first_recent = first_frame - settings.recent_frames
    kept = [*range(settings.sink_frames), *range(first_recent, first_frame)]
    starts = range(settings.sink_frames, first_recent, group)
    chunk = world_to_camera[first_frame : first_frame + group]
    distances = _distances(world_to_camera, chunk, starts, points, within=group // 2)
    for place in np.argsort(distances, kind="stable"):
        if len(kept) >= capacity:
            break
        start = starts[place]
        kept += range(start, min(start + group, first_recent))
    return tuple(sorted(kept))


def view_overlap(query: Tensor, others: Tensor, points: Tensor) -> Tensor:
    """The share of what `query` [4, 4] sees that each of `others` [n, 4, 4] sees as well, [n].

    All are world-to-camera; a point that is farther than the memory's radius from a camera is not
    seen by it. 0 if no point lies in the query's view.
    """
    origin = torch.zeros(1, 3)
    seen = points[_in_view(points, origin, origin[:, 0], origin[:, 0])[0]]
    if not len(seen):
        return torch.zeros(len(others))
    relative = (query.double() @ camera_to_world(others)).float()
    forward, centre = relative[:, :3, 2], relative[:, :3, 3]
    yaw, pitch = _angles(forward)
    near = torch.cdist(centre[:, None], seen[None].expand(len(centre), -1, -1))[:, 0]
    both = _in_view(seen, centre, yaw, pitch) & (near < MEMORY_RADIUS)
    return both.float().mean(dim=1)


def _distances(
    world_to_camera: Tensor, chunk: Tensor, starts: Sequence[int], points: Tensor, *, within: int
) -> list[float]:
    """How little the chunk's views have in common with the first and middle frame of each group."""
    frames = [frame for start in starts for frame in (start, start + within)]
    others = world_to_camera[frames]
    shares = torch.stack([view_overlap(query, others, points) for query in chunk])
    per_group = 1 - shares.unflatten(1, (-1, 2)).mean(dim=2)
    distances: list[float] = per_group.mean(dim=0).tolist()
    return distances


def _angles(direction: Tensor) -> tuple[Tensor, Tensor]:
    """Yaw and pitch in degrees of vectors [..., 3]."""
    x, y, z = direction.unbind(-1)
    yaw = torch.atan2(x, z) * (180 / math.pi)
    pitch = torch.atan2(y, torch.sqrt(x**2 + z**2)) * (180 / math.pi)
    return yaw, pitch


def _in_view(points: Tensor, centre: Tensor, yaw: Tensor, pitch: Tensor) -> Tensor:
    """Whether each of `points` [N, 3] is in the view of n cameras, [n, N]; views do not roll."""
    azimuth, elevation = _angles(points[None] - centre[:, None])
    half_width, half_height = (degrees / 2 for degrees in VIEW_DEGREES)
    return (_turn(azimuth - yaw[:, None]) < half_width) & (
        _turn(elevation - pitch[:, None]) < half_height
    )


def _turn(degrees: Tensor) -> Tensor:
    """The size of an angle, 0 to 180."""
    return (torch.remainder(degrees + 180, 360) - 180).abs()
