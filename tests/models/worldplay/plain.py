"""The rollout as a plain loop: one video, dense memory, no pages, cameras token by token.

Written apart from the engine's program and transforms; the networks' own layers are the same.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qvg_engine.kernels.rope.layout import to_interleaved
from qvg_engine.models.worldplay.passes import WorldPlayPass
from qvg_engine.models.worldplay.settings import WorldPlaySettings


def lifted(camera: Tensor, focal: Tensor) -> Tensor:
    """P of one camera [4, 4]: its two focal lengths scale the first two rows."""
    return torch.diag(torch.tensor([float(focal[0]), float(focal[1]), 1.0, 1.0])).double() @ camera


def rotate(x: Tensor, places: Sequence[tuple[int, ...]], tables: Any) -> Tensor:
    """Rotate interleaved pairs of x [tokens, heads, head_dim] to (frame, row, column)."""
    pairs = x.double().unflatten(-1, (-1, 2))
    rotated = torch.view_as_complex(pairs.contiguous())
    for token, place in enumerate(places):
        angles = [
            place[axis] * tables.base ** (-i / count)
            for axis, count in enumerate(tables.pairs)
            for i in range(count)
        ]
        rotated[token] *= torch.exp(1j * torch.tensor(angles, dtype=torch.float64))
    return torch.view_as_real(rotated).flatten(-2)


def multiply(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Each run of four channels of token i, as a column, times matrices[i]."""
    runs = x.double().unflatten(-1, (-1, 4))
    return torch.stack([run @ m.mT for run, m in zip(runs, matrices, strict=True)]).flatten(-2)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    scores = torch.einsum("qhd,khd->hqk", queries, keys) / math.sqrt(queries.shape[-1])
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)


class PlainAttention:
    """Attention of one pass: text if it is joint, the memory of the branch, its own tokens."""

    def __init__(
        self,
        text: list[tuple[Tensor, Tensor]],
        memory: dict[int, tuple[Tensor, Tensor]],
        *,
        cameras: Sequence[Tensor],
        size: tuple[int, int],
        tables: Any,
        keeps: bool,
    ) -> None:
        """`cameras` are P of the slots, those of the memory and then the chunk."""
        self.text, self.memory, self.keeps, self.tables = text, memory, keeps, tables
        frame = [(row, column) for row in range(size[0]) for column in range(size[1])]
        self.places = [(slot, *place) for slot in range(len(cameras)) for place in frame]
        self.cameras = [camera for camera in cameras for _ in frame]

    def self_attention(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        raise AssertionError("not of this family")

    def cross_attention(self, layer: int, queries: Tensor) -> Tensor:
        keys, values = self.text[layer]
        return attend(queries, keys, values)

    def self_attentions(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, *, with_text: bool = False
    ) -> tuple[Tensor, ...]:
        queries, keys = to_interleaved(queries), to_interleaved(keys)
        if self.keeps:
            self.memory[layer] = (keys, values)
        elif layer in self.memory:
            old_keys, old_values = self.memory[layer]
            keys, values = torch.cat([old_keys, keys]), torch.cat([old_values, values])
        own = slice(len(keys) - len(queries), None)
        text_keys, text_values = self.text[layer] if with_text else (keys[:0], values[:0])
        text_keys = to_interleaved(text_keys)

        def joint(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            return torch.cat([text_keys, keys]).double(), torch.cat([text_values, values]).double()

        places, cameras = self.places, self.cameras
        rotated = attend(
            rotate(queries, places[own], self.tables),
            *joint(rotate(keys, places[: len(keys)], self.tables), values),
        )
        inverses = [torch.linalg.inv(camera) for camera in cameras[: len(keys)]]
        projected = attend(
            multiply(queries, [camera.mT for camera in cameras[own]]),
            *joint(multiply(keys, inverses), multiply(values, inverses)),
        )
        projected = multiply(projected, cameras[own])
        return rotated.float(), projected.float()


def sees(point: np.ndarray, camera: np.ndarray) -> bool:
    """Whether a camera (camera-to-world) sees a point; pitch and yaw apart, without roll."""
    offset = point - camera[:3, 3]
    if np.linalg.norm(offset) >= 8:
        return False
    forward = camera[:3, 2]
    angles = []
    for x, y, z in (offset, forward):
        angles.append(
            (math.degrees(math.atan2(x, z)), math.degrees(math.atan2(y, math.hypot(x, z))))
        )
    apart = [abs((a - b + 180) % 360 - 180) for a, b in zip(*angles, strict=True)]
    return bool(apart[0] < 30 and apart[1] < 17.5)


def remembered(
    cameras: np.ndarray, first: int, settings: WorldPlaySettings, points: np.ndarray
) -> list[int]:
    """The memory of the chunk from `first` on, cameras being world-to-camera, point by point."""
    capacity = settings.memory_frames
    if capacity is None or first <= capacity:
        return list(range(first))
    recent = first - settings.recent_frames
    # The query's own view, in its own axes, is always the same.
    seen = [point for point in points if sees(point, np.eye(4))]
    distances = []
    for start in range(settings.sink_frames, recent, 4):
        shares = []
        for query in range(first, first + 4):
            for old in (start, start + 2):
                relative = cameras[query] @ np.linalg.inv(cameras[old])
                shares.append(sum(sees(point, relative) for point in seen) / len(seen))
        distances.append((1 - float(np.mean(shares)), start))
    chosen = [*range(settings.sink_frames), *range(recent, first)]
    for _, start in sorted(distances):
        if len(chosen) < capacity:
            chosen += range(start, start + 4)
    return sorted(chosen)


@dataclass
class PlainVideo:
    """What one plain rollout takes; texts are K and V of each branch, by chunk."""

    family: Any
    texts: Callable[[int], list[list[tuple[Tensor, Tensor]]]]
    noise: Tensor
    cameras: Any
    labels: Sequence[int]
    guidance: float = 1.0
    image: Tensor | None = None
    points: Tensor | None = None
    steps: Sequence[float] = ()

    def run(self) -> tuple[Tensor, list[list[int]]]:
        """The latents and the memory of every chunk."""
        settings = self.family.settings
        poses, focals = self.cameras.world_to_camera.double(), self.cameras.intrinsics.double()
        clean: list[Tensor] = []
        memories = []
        sigmas = [t / 1000 for t in self.steps]
        for chunk, x in enumerate(self.noise.split(4)):
            first, frames = 4 * chunk, list(range(4 * chunk, 4 * chunk + 4))
            assert self.points is not None
            memory = remembered(poses.numpy(), first, settings, self.points.double().numpy())
            memories.append(memory)
            slots = [lifted(poses[i], focals[i].diagonal()) for i in [*memory, *frames]]
            branches: list[Any] = []
            for text in self.texts(chunk):
                cache: dict[int, tuple[Tensor, Tensor]] = {}
                if memory:
                    past = torch.stack([clean[i] for i in memory])
                    times = [settings.commit_timestep] * len(memory)
                    self._forward(past, memory, times, text, cache, slots, keeps=True)
                branches.append((text, cache))
            holds = settings.keeps_image and self.image is not None and chunk == 0
            for i, sigma in enumerate(sigmas):
                if holds:
                    assert self.image is not None
                    x = torch.cat([self.image[None], x[1:]])
                times = [
                    settings.commit_timestep if holds and f == 0 else 1000 * sigma for f in frames
                ]
                flows = [
                    self._forward(x, frames, times, text, cache, slots, keeps=False)
                    for text, cache in branches
                ]
                flow = flows[0]
                if len(flows) == 2:
                    flow = flows[1] + self.guidance * (flows[0] - flows[1])
                x = x + ((sigmas[i + 1] if i + 1 < len(sigmas) else 0.0) - sigma) * flow
            if holds:
                assert self.image is not None
                x = torch.cat([self.image[None], x[1:]])
            clean += x.unbind(0)
        return torch.stack(clean), memories

    def _forward(
        self,
        latents: Tensor,
        frames: Sequence[int],
        times: Sequence[float],
        text: list[tuple[Tensor, Tensor]],
        cache: dict[int, tuple[Tensor, Tensor]],
        slots: Sequence[Tensor],
        *,
        keeps: bool,
    ) -> Tensor:
        family = self.family
        if not family.settings.keeps_image:
            channels = torch.zeros(len(latents), latents.shape[1] + 1, *latents.shape[2:])
            if frames[0] == 0 and self.image is not None:
                channels[0, :-1], channels[0, -1] = self.image, 1
            latents = torch.cat([latents, channels], dim=1)
        attention = PlainAttention(
            text,
            cache,
            cameras=slots[: len(frames)] if keeps else slots,
            size=family.tokens_in_frame(*latents.shape[2:]),
            tables=family._tables,
            keeps=keeps,
        )
        item = WorldPlayPass(
            latents=latents,
            timesteps=tuple(times),
            labels=tuple(self.labels[i] for i in frames),
            first_token=0,
            transform=None,  # type: ignore[arg-type]
        )
        (flow,) = family.forward([item], attention, batch_invariant=False)
        assert isinstance(flow, Tensor)
        return flow
