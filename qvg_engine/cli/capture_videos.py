"""What `qvg-engine capture` does: check, load, then generate, capture and write video by video."""

from pathlib import Path
from typing import Any, Literal

import msgspec
import torch

from qvg_engine.cli.console import make_console
from qvg_engine.cli.exit_code import ExitCode
from qvg_engine.cli.prompts import video_name
from qvg_engine.cli.steps import Steps
from qvg_engine.cli.video_family import load_video_family
from qvg_engine.cli.video_length import VideoLength
from qvg_engine.config import EngineConfig
from qvg_engine.errors import ConfigError, OutputError
from qvg_engine.kernels.host import keep_freed_memory
from qvg_engine.quality.capture import save
from qvg_engine.quality.recorder import record_frames
from qvg_engine.video.writer import require_writable_folder

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class CaptureSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One run: what is captured, and where it goes.

    Video i has seed `seed + i`. `layers`, `heads`: None for all. `dtype`: how rows are written.
    Raises `ConfigError` naming field, value and range.
    """

    prompts: tuple[str, ...]
    length: VideoLength
    seed: int
    layers: tuple[int, ...] | None
    heads: tuple[int, ...] | None
    dtype: Literal["float32", "float16", "bfloat16"]
    output_dir: Path
    overwrite: bool

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ConfigError(f"dtype is {self.dtype!r}: give one of {', '.join(_DTYPES)}")

    def path(self, index: int) -> Path:
        """The file of one video."""
        name = Path(video_name(self.prompts[index], self.seed + index))
        return self.output_dir / name.with_suffix(".safetensors")


def capture_videos(settings: CaptureSettings, engine_settings: dict[str, Any]) -> int:
    """Write a capture of every video; returns the exit code.

    Raises a QvgError for a mistake, before anything is generated where that can be known.
    """
    config = EngineConfig(**engine_settings)
    require_writable_folder(settings.output_dir)
    for index in range(len(settings.prompts)):
        _check_free(settings.path(index), overwrite=settings.overwrite)
    keep_freed_memory()
    console = make_console()
    family = load_video_family(config)
    assert family.codec is not None
    num_frames = settings.length.count_frames(family.codec.frames_per_second)
    with Steps(console, line="capturing") as steps:
        for index, prompt in enumerate(settings.prompts):
            path = settings.path(index)

            def show(done: int, total: int, name: str = path.stem) -> None:
                steps.show(name, done, total)

            capture = record_frames(
                family,
                config,
                prompt=prompt,
                num_frames=num_frames,
                seed=settings.seed + index,
                layers=settings.layers,
                heads=settings.heads,
                dtype=_DTYPES[settings.dtype],
                on_chunk=show,
            )
            save(capture, path)
            console.print(
                f"wrote {path}: {capture.num_tokens:,} tokens in {len(capture.chunk_tokens)} "
                f"chunks, layers {', '.join(map(str, capture.layers))}, "
                f"{path.stat().st_size / 2**20:,.1f} MiB",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    return ExitCode.DONE


def _check_free(path: Path, *, overwrite: bool) -> None:
    if path.is_dir():
        raise OutputError(f"{path} is a folder: name another --output-dir")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} is there: give --overwrite, or another --output-dir")
