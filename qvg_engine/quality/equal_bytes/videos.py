"""Making the videos, and keeping what is found in them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import torch

from qvg_engine.block_manager.format import get_format
from qvg_engine.config import EngineConfig
from qvg_engine.engine import VideoEngine
from qvg_engine.errors import ConfigError
from qvg_engine.loading import load_family
from qvg_engine.models.family import ModelFamily
from qvg_engine.models.pocket.clips import FRAMES_PER_LATENT, Scene, all_scenes, draw_clip
from qvg_engine.models.pocket.family import PocketCodec
from qvg_engine.models.pocket.memory import revisits
from qvg_engine.quality.bench import pick_prompts
from qvg_engine.quality.chunk_frames import with_room
from qvg_engine.quality.equal_bytes.budgets import Budget
from qvg_engine.quality.equal_bytes.looks import Look, look_at
from qvg_engine.quality.equal_bytes.settings import EXACT, EqualBytesSettings
from qvg_engine.quality.pocket_videos import Frames, adherence
from qvg_engine.quality.table.parts import Part, Parts

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many videos of it are done, and how many there are."""

_SEED_STEP = 1000
_REAL_SEED = 72_000_000


class Arm(NamedTuple):
    """A format and a window in latent frames: videos that differ in nothing else."""

    kv_format: str
    window: int

    def __str__(self) -> str:
        return f"{self.kv_format}, {self.window}"


class Batch(NamedTuple):
    """Videos that are made together: `scenes` with seeds from `seed` on; `first` is their place."""

    seed_index: int
    first: int
    seed: int
    scenes: tuple[Scene, ...]


class VideoFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in one video; `adherence` is the share of frames that are as prompted."""

    prompt: str
    seed: int
    adherence: float
    looks: tuple[Look, ...]


class BatchFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One batch of an arm: bytes a stream at the step of peak page use, and its videos.

    `page_bytes` and `codebook_bytes` (reserved, refinements included) are the engine's own figures
    after the run, and so is `kv_ratio`; all are 0 for real clips.
    """

    page_bytes: float
    codebook_bytes: float
    kv_ratio: float
    videos: tuple[VideoFigures, ...]


class Study:
    """The parts of one comparison.

    Args:
        settings: of the comparison.
        budgets: the windows that are compared.
        parts: where what is finished is kept.
        weights: the checksum of the model's weights.
    """

    def __init__(
        self,
        settings: EqualBytesSettings,
        budgets: Sequence[Budget],
        parts: Parts,
        *,
        weights: str,
    ) -> None:
        self.settings = settings
        self.budgets = tuple(budgets)
        self.weights = weights
        self._parts = parts

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Both formats with every window, each once."""
        windows = [window for budget in self.budgets for window in (budget.short, budget.long)]
        formats = (EXACT, self.settings.kv_format)
        return tuple(dict.fromkeys(Arm(name, window) for window in windows for name in formats))

    def measure(self, on_progress: Progress = lambda what, done, total: None) -> None:
        """Make the videos that are missing: all arms of a batch before those of the next."""
        batches = list(self.batches())
        total = (1 + len(self.arms)) * sum(len(batch.scenes) for batch in batches)
        done = 0
        for batch in batches:
            self._measure(self.real_part(batch), self._real_figures, batch)
            done += len(batch.scenes)
            for arm in self.arms:
                on_progress("videos", done, total)
                self._measure(self.part(arm, batch), self._figures, arm, batch)
                done += len(batch.scenes)
        on_progress("videos", done, total)

    def batches(self) -> Iterator[Batch]:
        """All prompts with the first seed, then with the second, and so on."""
        settings = self.settings
        by_prompt = {scene.prompt: scene for scene in all_scenes()}
        prompts = pick_prompts(settings.num_prompts, seed=settings.seed)
        scenes = tuple(by_prompt[prompt] for prompt in prompts)
        for index in range(settings.num_seeds):
            for first in range(0, len(scenes), settings.together):
                seed = settings.seed + _SEED_STEP * index + first
                yield Batch(index, first, seed, scenes[first : first + settings.together])

    def videos(self, arm: Arm | None) -> list[VideoFigures]:
        """The videos of an arm that are there; None for real clips."""
        return [video for figures in self.found(arm) for video in figures.videos]

    def found(self, arm: Arm | None) -> list[BatchFigures]:
        """The batches of an arm that are there; None for real clips."""
        parts = (
            self.real_part(batch) if arm is None else self.part(arm, batch)
            for batch in self.batches()
        )
        read = (self._parts.read(part, BatchFigures) for part in parts)
        return [figures for figures in read if figures is not None]

    def part(self, arm: Arm, batch: Batch) -> Part:
        """One batch of an arm."""
        key = self._key(batch) | {"weights": self.weights, "config": repr(self._config(arm))}
        name = f"{arm.kv_format}/window{arm.window}-seed{batch.seed_index}-from{batch.first}"
        return Part(name, key)

    def real_part(self, batch: Batch) -> Part:
        """Real clips of a batch's scenes through the VAE."""
        key = self._key(batch) | {"weights": self.weights}
        return Part(f"real/seed{batch.seed_index}-from{batch.first}", key)

    def _key(self, batch: Batch) -> dict[str, Any]:
        return {
            "prompts": [scene.prompt for scene in batch.scenes],
            "seed": batch.seed,
            "num_frames": self.settings.num_frames,
            "judge_every": self.settings.judge_every,
        }

    def _config(self, arm: Arm) -> EngineConfig:
        """The settings of an arm, but for the room that streams take."""
        return EngineConfig(
            model=self.settings.model,
            window_frames=arm.window,
            kv_format=get_format(arm.kv_format),
            dtype=self.settings.dtype,
            device="cpu",
        )

    def _measure(self, part: Part, call: Callable[..., BatchFigures], *arguments: Any) -> None:
        if self._parts.read(part, BatchFigures) is None:
            self._parts.write(part, call(*arguments))

    def _figures(self, arm: Arm, batch: Batch) -> BatchFigures:
        config = self._config(arm)
        family = load_family(config)
        count, num_frames = len(batch.scenes), self.settings.num_frames
        config = with_room(config, family, num_streams=count, num_frames=num_frames)
        engine = VideoEngine(config, family=family)
        prompts = [scene.prompt for scene in batch.scenes]
        made = engine.generate(prompts, num_frames=num_frames, seed=batch.seed)
        stats = engine.stats()
        return BatchFigures(
            page_bytes=stats.kv_bytes_peak / count,
            codebook_bytes=(stats.codebook_bytes + stats.refinement_bytes) / count,
            kv_ratio=stats.kv_ratio,
            videos=self._look_at([video.frames for video in made], batch, family),
        )

    def _real_figures(self, batch: Batch) -> BatchFigures:
        family = load_family(EngineConfig(model=self.settings.model, device="cpu"))
        if not isinstance(family.codec, PocketCodec):
            raise ConfigError(f"model is {self.settings.model!r}: give pocket, or one of its kind")
        vae, decoded = family.codec.vae, []
        length = self.settings.num_frames
        whole = -(-length // FRAMES_PER_LATENT) * FRAMES_PER_LATENT
        for place, scene in enumerate(batch.scenes):
            clip = draw_clip(_REAL_SEED + batch.seed + place, num_frames=whole, scene=scene)
            latents = vae.encode_chunk(torch.from_numpy(clip.frames))[0]
            decoded.append(vae.decode_chunk(latents)[0].numpy()[:length])
        return BatchFigures(
            page_bytes=0,
            codebook_bytes=0,
            kv_ratio=0,
            videos=self._look_at(decoded, batch, family),
        )

    def _look_at(
        self, videos: Sequence[Frames], batch: Batch, family: ModelFamily
    ) -> tuple[VideoFigures, ...]:
        chunk = family.settings.frames_per_chunk
        return tuple(
            VideoFigures(
                prompt=scene.prompt,
                seed=batch.seed + place,
                adherence=adherence([frames], [scene], every=self.settings.judge_every)["all"],
                looks=tuple(
                    look_at(revisit, frames_per_chunk=chunk)
                    for revisit in revisits(frames, scene.direction)
                ),
            )
            for place, (frames, scene) in enumerate(zip(videos, batch.scenes, strict=True))
        )
