"""What a run of `qvg-engine generate` was asked for."""

from pathlib import Path
from typing import Any

import msgspec

from qvg_engine.cli.video_length import VideoLength
from qvg_engine.errors import ConfigError, OutputError, RequestError


class GenerateSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One run: its prompts, how long the videos are, and where they go.

    Video i has seed `seed + i`. `scale` None enlarges what is too small to watch; `size` is
    (width, height) in pixels, None the model's own; `start_path` an image or a video that all of
    them go on from; `conditions` is JSON, see `read_conditions`.
    `engine_settings` are the fields of EngineConfig that were given; `kv_bits`, instead of a
    format among them, is what to calibrate for.
    """

    prompts: tuple[str, ...]
    length: VideoLength
    seed: int
    output_dir: Path
    overwrite: bool
    scale: int | None
    json_path: Path | None
    kv_bits: float | None
    size: tuple[int, int] | None
    start_path: Path | None
    conditions: str | None
    engine_settings: dict[str, Any]

    def __post_init__(self) -> None:
        if self.json_path is not None and self.json_path.is_dir():
            raise OutputError(f"--json {self.json_path} is a folder: name a file")
        if self.start_path is not None and not self.start_path.is_file():
            raise RequestError(f"--start-from {self.start_path} is no file: give an image or video")
        if self.kv_bits is not None and "kv_format" in self.engine_settings:
            raise ConfigError("--kv-bits and --kv-format are both given: give one of them")
