"""The parts that a table is made of: their names, and what their figures depend on."""

from collections.abc import Iterator
from typing import Any

import msgspec

from qvg_engine.models.pocket.clips import Scene, all_scenes
from qvg_engine.quality.bench import pick_prompts
from qvg_engine.quality.contenders.registry import contender
from qvg_engine.quality.table.captures import CaptureSource
from qvg_engine.quality.table.frame_figures import NUM_SAMPLES
from qvg_engine.quality.table.parts import Part
from qvg_engine.quality.table.settings import NUM_WINDOW_CHUNKS, TableSettings

EXACT = "bf16"
"""The contender whose frames the others' are compared with."""
DENSE_CONTROL = "control: fp32 pages"
BATCH_CONTROL = "control: other batch"
"""Runs that differ from `EXACT` in nothing but rounding: pages without any, and products of
matrices that are batched otherwise."""

_SEED_STEP = 1000


class PartNames:
    """The parts of one table.

    Args:
        settings: of the table.
        weights: the checksum of the model's weights.
        layers: that are captured.
    """

    def __init__(self, settings: TableSettings, *, weights: str, layers: tuple[int, ...]) -> None:
        self.settings = settings
        self.layers = layers
        self.weights = weights
        self._model = {"weights": weights}

    @property
    def controls(self) -> tuple[str, str]:
        """Runs that are no contenders."""
        return DENSE_CONTROL, BATCH_CONTROL

    @property
    def compared(self) -> list[str]:
        """Contenders whose first windows are compared, if they can be run."""
        settings = self.settings
        chosen = settings.contenders if settings.windows is None else settings.windows
        return [name for name in chosen if name != EXACT]

    @property
    def clips(self) -> list[str]:
        """Contenders and controls whose whole clips are compared."""
        return [*self.controls, *(name for name in self.settings.clips if name != EXACT)]

    def source(self, video: int) -> CaptureSource:
        """The video of one capture."""
        return CaptureSource(
            prompt=self.prompts(self.settings.num_captures)[video],
            seed=self.settings.seed + video,
            num_frames=self.settings.capture_frames,
            layers=self.layers,
        )

    def capture(self, video: int) -> Part:
        """One captured video."""
        return Part(f"captures/video{video}", self._model | msgspec.to_builtins(self.source(video)))

    def errors(self, name: str, centroids: int, video: int, layer: int) -> Part:
        """One contender on one layer of one capture."""
        key = self.capture(video).key | self._contender(name) | {"layer": layer}
        key |= {"centroids": centroids, "attend_every": self.settings.attend_every}
        return Part(f"errors/{name}/c{centroids}-video{video}-layer{layer}", key)

    def all_errors(self) -> Iterator[tuple[str, int, int]]:
        """Contender, video and layer of all of them, videos and layers in the outer loops."""
        for video in range(self.settings.num_captures):
            for layer in self.layers:
                for name in self.settings.contenders:
                    yield name, video, layer

    def times(self, name: str, centroids: int) -> Part:
        """The times of one contender's kernels."""
        key = self.capture(0).key | self._contender(name) | {"centroids": centroids}
        return Part(f"times/{name}/c{centroids}", key)

    def window(self, name: str, seed_index: int) -> Part:
        """The first windows of one contender, all prompts with one seed."""
        key = self._model | self._contender(name)
        key |= {
            "prompts": self.prompts(self.settings.num_prompts),
            "seeds": self.window_seeds(seed_index),
            "num_frames": self.settings.stream_frames,
            "num_chunks": NUM_WINDOW_CHUNKS,
            "num_samples": NUM_SAMPLES,
        }
        return Part(f"frames/{name}/seed{seed_index}", key)

    def window_seeds(self, seed_index: int) -> list[int]:
        """The seed of each prompt's video."""
        first = self.settings.seed + _SEED_STEP * seed_index
        return [first + index for index in range(self.settings.num_prompts)]

    def clip(self, name: str) -> Part:
        """The whole clips of a contender, or of one of the `CONTROLS`."""
        what = {"control": name} if name in self.controls else self._contender(name)
        key = self._model | what
        key |= {
            "prompts": self.prompts(self.settings.num_clips),
            "seeds": self.clip_seeds(),
            "num_frames": self.settings.clip_frames,
        }
        return Part(f"clips/{name.replace(': ', '-').replace(' ', '-')}", key)

    def clip_seeds(self) -> list[int]:
        """The seed of each prompt's clip."""
        return [self.settings.seed + index for index in range(self.settings.num_clips)]

    def adherence(self, name: str) -> Part:
        """The judged videos of one contender."""
        settings = self.settings
        key = self._model | self._contender(name)
        key |= {
            "prompts": self.prompts(settings.adherence_prompts),
            "num_frames": settings.adherence_frames,
            "every": settings.judge_every,
        }
        return Part(f"adherence/{name}", key)

    def scenes(self, count: int) -> list[Scene]:
        """The scenes of the first prompts."""
        by_prompt = {scene.prompt: scene for scene in all_scenes()}
        return [by_prompt[prompt] for prompt in self.prompts(count)]

    def prompts(self, count: int) -> list[str]:
        """The first prompts; fewer are among more."""
        return pick_prompts(count, seed=self.settings.seed)

    def _contender(self, name: str) -> dict[str, Any]:
        """What a contender is, so that a part is measured again when its definition changes."""
        return {"contender": repr(contender(name))}
