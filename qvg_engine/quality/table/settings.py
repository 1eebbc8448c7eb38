"""What the quality table measures."""

import msgspec

from qvg_engine.checks import check_distinct, check_range
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.kmeans import MAX_CENTROIDS
from qvg_engine.models.pocket.clips import all_scenes
from qvg_engine.quality.contenders.registry import CONTENDERS

NUM_WINDOW_CHUNKS = 3
"""The first chunks that read the cache, the second to the fourth: the first window."""
SHOWN = ("q4", "q2", "q1", "qvg-pro", "qvg", "rtn2", "rtn2-asym", "kivi2", "quarot2")


class TableSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table.

    * `model`: "pocket", or a folder of that kind.
    * `contenders`: names in the registry, each once; `baseline`, which the others are compared
      with, is one of them.
    * `centroids`: of a codebook's stage, the same for all contenders; a table for each number.
    * `num_captures`, `capture_frames`: captured videos, and the pixel frames of each.
      `layers`: those that are captured; None for all.
    * `attend_every`: the queries of every so many-th chunk are attended with.
    * `windows`: contenders whose first windows are compared, None for all; those that need
      codebooks that the engine does not have are left out. `num_prompts`, `num_seeds`: a video of
      each prompt with each seed; `stream_frames`: the length that they ask for, which says how
      large codebooks are.
    * `clips`: contenders whose whole clips are compared; `num_clips` of `clip_frames` each.
    * `adherence`: contenders whose prompt adherence is judged, the first is what the others are
      compared with; `adherence_prompts` videos of `adherence_frames`, every `judge_every`-th
      judged.
    * `shown`: contenders that pictures of a few show, if they are measured.
    * `seed`: of prompts, videos and k-means.

    Raises `ConfigError` naming field, value and range.
    """

    model: str = "pocket"
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    baseline: str = "qvg"
    centroids: tuple[int, ...] = (64,)
    num_captures: int = 4
    capture_frames: int = 1128
    layers: tuple[int, ...] | None = None
    attend_every: int = 2
    windows: tuple[str, ...] | None = None
    num_prompts: int = 8
    num_seeds: int = 4
    stream_frames: int = 240
    clips: tuple[str, ...] = ("q2", "qvg", "q1")
    num_clips: int = 4
    clip_frames: int = 384
    adherence: tuple[str, ...] = ("bf16", "qvg", "q2", "q1")
    adherence_prompts: int = 8
    adherence_frames: int = 1008
    judge_every: int = 16
    shown: tuple[str, ...] = SHOWN
    seed: int = 0

    def __post_init__(self) -> None:
        most = len(all_scenes())
        ranges = {
            "num_captures": (1, most),
            "capture_frames": (1, 1_000_000),
            "attend_every": (1, 1_000_000),
            "num_prompts": (1, most),
            "num_seeds": (1, 1000),
            "stream_frames": (1, 1_000_000),
            "num_clips": (1, most),
            "clip_frames": (1, 1_000_000),
            "adherence_prompts": (1, most),
            "adherence_frames": (96, 1_000_000),
            "judge_every": (1, 1_000_000),
            "seed": (0, 2**31 - 1),
        }
        for name, (low, high) in ranges.items():
            check_range(name, getattr(self, name), low, high)
        for name in ("contenders", "centroids", "clips", "adherence", "shown"):
            check_distinct(name, getattr(self, name))
        for number in self.centroids:
            check_range("centroids", number, 1, MAX_CENTROIDS)
        for name in ("layers", "windows"):
            if getattr(self, name) is not None:
                check_distinct(name, getattr(self, name))
        chosen = self.windows or ()
        for name in (*self.contenders, *chosen, *self.clips, *self.adherence, *self.shown):
            if name not in CONTENDERS:
                known = ", ".join(CONTENDERS)
                raise ConfigError(f"unknown contender {name!r}: use one of {known}")
        if self.baseline not in self.contenders:
            listed = ", ".join(self.contenders)
            raise ConfigError(f"baseline is {self.baseline!r}: give one of {listed}")
