"""What a run of `qvg-engine bench` measures."""

from typing import Literal

import msgspec

from qvg_engine.checks import check_distinct, check_range
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.kmeans import MAX_CENTROIDS
from qvg_engine.quality.comparison import quality_format

DEFAULT_FORMATS = ("q4", "qvg-pro", "q2", "qvg", "q1", "rtn2-searched", "rtn2")
MAX_PROMPTS = 100


class BenchSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run.

    * `num_prompts`: videos that are captured, 1 to 100; `num_psnr_prompts`: videos whose frames
      are compared.
    * `num_frames`: pixel frames of each video.
    * `layers`: those that are captured; None for all.
    * `formats`: names of formats, of the engine or to compare with, each once.
    * `centroids`: centroids of a stage, 1 to 256; errors are measured for each of the numbers.
    * `fit_on`: the tokens that codebooks are fitted to: "all" that they serve, or those of the
      "first" chunk, as the engine does.
    * `seed`: of prompts, videos and k-means.

    Raises `ConfigError` naming field, value and range.
    """

    num_prompts: int = 3
    num_psnr_prompts: int = 6
    num_frames: int = 216
    layers: tuple[int, ...] | None = None
    formats: tuple[str, ...] = DEFAULT_FORMATS
    centroids: tuple[int, ...] = (64, 256)
    fit_on: Literal["all", "first"] = "all"
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("num_prompts", self.num_prompts, 1, MAX_PROMPTS)
        check_range("num_psnr_prompts", self.num_psnr_prompts, 1, MAX_PROMPTS)
        check_range("num_frames", self.num_frames, 1, 100_000)
        check_range("seed", self.seed, 0, 2**31 - 1)
        check_distinct("formats", self.formats)
        check_distinct("centroids", self.centroids)
        for name in self.formats:
            quality_format(name)
        for number in self.centroids:
            check_range("centroids", number, 1, MAX_CENTROIDS)
        if self.layers is not None:
            check_distinct("layers", self.layers)
        if self.fit_on not in ("all", "first"):
            raise ConfigError(f"fit_on is {self.fit_on!r}: give one of all, first")
