"""A pool of encoded clips on disk, which the network is trained from."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.errors import CheckpointError
from qvg_engine.models.pocket.clips import (
    FRAMES_PER_LATENT,
    Scene,
    draw_clip,
    scene_of,
    shape_track,
    stumbling_pace,
)
from qvg_engine.models.pocket.vae import PocketVae

CLIP_LATENTS: Final = 60
"""Latent frames of every clip in a pool: a full window of 48 and some history before it."""


def stumbles(clip: int) -> bool:
    """Whether the camera of a pool's clip stumbles: every other one's does."""
    return clip % 2 == 1


class _PoolIndex(msgspec.Struct, frozen=True):
    """What the file of latents holds; `num_done` of its clips are there."""

    first_seed: int
    num_clips: int
    num_done: int
    clip_latents: int
    channels: int


class ClipPool:
    """Latents of the clips of consecutive seeds, bf16, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        """Open a pool that `build_pool` wrote, finished or not."""
        self._folder = folder
        index = _read_index(folder)
        if index is None:
            raise CheckpointError(f"{folder} holds no pool of clips: build one first")
        self._index = index
        self._latents = _map_latents(folder, index)
        self._tracks: dict[int, NDArray[np.float64]] = {}
        self._paces: dict[int, NDArray[np.bool_]] = {}

    def refresh(self) -> int:
        """Look again how many clips are there, and return it."""
        self._index = _read_index(self._folder) or self._index
        return self._index.num_done

    @property
    def clip_latents(self) -> int:
        """Latent frames of every clip."""
        return self._index.clip_latents

    def __len__(self) -> int:
        return self._index.num_done

    def scene(self, clip: int) -> Scene:
        """What a clip shows."""
        return scene_of(self._index.first_seed + clip)

    def shape_track(self, clip: int, first: int, length: int) -> NDArray[np.float64]:
        """The shape's x, y and radius in pixels, [length, 3], in the middle of latent frames."""
        if clip not in self._tracks:
            frames = FRAMES_PER_LATENT * self.clip_latents
            track = shape_track(self._index.first_seed + clip, num_frames=frames)
            self._tracks[clip] = track.reshape(-1, FRAMES_PER_LATENT, 3).mean(axis=1)
        return self._tracks[clip][first : first + length]

    def on_pace(self, clip: int, first: int, length: int) -> NDArray[np.bool_]:
        """Whether the camera keeps its pace in all of a latent frame, [length]."""
        if not stumbles(clip):
            return np.ones(length, dtype=bool)
        if clip not in self._paces:
            frames = FRAMES_PER_LATENT * self.clip_latents
            pace = stumbling_pace(self._index.first_seed + clip, num_frames=frames)
            in_frames = pace.reshape(-1, FRAMES_PER_LATENT)
            self._paces[clip] = np.asarray(in_frames.all(axis=1))
        return self._paces[clip][first : first + length]

    def window(self, clip: int, first: int, length: int) -> Tensor:
        """Latent frames [length, C, h, w] of a clip, fp32."""
        return self._latents[clip, first : first + length].float()


def build_pool(
    folder: Path,
    vae: PocketVae,
    *,
    num_clips: int,
    first_seed: int = 0,
    clip_latents: int = CLIP_LATENTS,
) -> None:
    """Draw and encode clips until the pool holds `num_clips`; goes on where it was stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    index = _read_index(folder) or _PoolIndex(
        first_seed, num_clips, 0, clip_latents, vae.latent_channels
    )
    latents = _map_latents(folder, index)

    def draw(clip: int) -> Tensor:
        drawn = draw_clip(
            index.first_seed + clip,
            num_frames=FRAMES_PER_LATENT * clip_latents,
            stumbling=stumbles(clip),
        )
        return torch.from_numpy(drawn.frames)

    vae = vae.eval()
    with ThreadPoolExecutor(1) as executor:
        upcoming = executor.submit(draw, index.num_done)
        for clip in range(index.num_done, num_clips):
            frames = upcoming.result()
            upcoming = executor.submit(draw, clip + 1)
            with torch.autocast("cpu", torch.bfloat16):
                latents[clip] = vae.encode_chunk(frames)[0].to(torch.bfloat16)
            if (clip + 1) % 64 == 0 or clip + 1 == num_clips:
                index = msgspec.structs.replace(index, num_done=clip + 1)
                _write_index(folder, index)
                typer.echo(f"pool: {clip + 1} of {num_clips} clips")


def _map_latents(folder: Path, index: _PoolIndex) -> Tensor:
    shape = (index.num_clips, index.clip_latents, index.channels, 8, 8)
    flat = torch.from_file(
        str(folder / "latents.bf16"), shared=True, size=int(np.prod(shape)), dtype=torch.bfloat16
    )
    return flat.view(shape)


def _read_index(folder: Path) -> _PoolIndex | None:
    path = folder / "index.json"
    return msgspec.json.decode(path.read_bytes(), type=_PoolIndex) if path.exists() else None


def _write_index(folder: Path, index: _PoolIndex) -> None:
    temporary = folder / "index.json.tmp"
    temporary.write_bytes(msgspec.json.encode(index))
    temporary.replace(folder / "index.json")
