"""What is compared at equal bytes."""

from typing import Literal

import msgspec

from qvg_engine.block_manager.format import FORMATS
from qvg_engine.checks import check_choice, check_distinct, check_range
from qvg_engine.errors import ConfigError
from qvg_engine.models.pocket.clips import all_scenes

EXACT = "bf16"
"""The format of the shorter windows."""


class EqualBytesSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One comparison.

    * `model`: "pocket", or a folder of that kind.
    * `kv_format`: the engine's format that is compared with `bf16`.
    * `windows`: of `bf16`, in latent frames, each once; a budget of bytes for each.
    * `num_prompts`, `num_seeds`: a video of each prompt with each seed, in every format and window;
      `together` prompts are made at a time.
    * `num_frames`: pixel frames of a video; every `judge_every`-th is judged.
    * `dtype`: that the network computes in.
    * `seed`: of prompts and videos.

    Raises `ConfigError` naming field, value and range.
    """

    model: str = "pocket"
    kv_format: str = "q2"
    windows: tuple[int, ...] = (12, 15, 18)
    num_prompts: int = 8
    num_seeds: int = 1
    together: int = 4
    num_frames: int = 480
    judge_every: int = 16
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    seed: int = 0

    def __post_init__(self) -> None:
        most = len(all_scenes())
        ranges = {
            "num_prompts": (1, most),
            "num_seeds": (1, 1000),
            "together": (1, most),
            "num_frames": (96, 1_000_000),
            "judge_every": (1, 1_000_000),
            "seed": (0, 2**31 - 1),
        }
        for name, (low, high) in ranges.items():
            check_range(name, getattr(self, name), low, high)
        check_distinct("windows", self.windows)
        for window in self.windows:
            check_range("windows", window, 1, 1_000_000)
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        choices = [name for name in FORMATS if name not in ("dense", EXACT)]
        if self.kv_format not in choices:
            raise ConfigError(f"kv_format is {self.kv_format!r}: give one of {', '.join(choices)}")
