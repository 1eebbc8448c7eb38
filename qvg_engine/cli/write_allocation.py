"""What `qvg-engine calibrate` does: check, load, calibrate, write the allocation's file."""

from pathlib import Path
from typing import Any

import msgspec

from qvg_engine.allocation import AllocationOrigin, encode_allocation
from qvg_engine.cli.calibration import choose_on_prompts
from qvg_engine.cli.console import make_console
from qvg_engine.cli.options import ALLOCATION_SUFFIX
from qvg_engine.cli.video_family import load_video_family
from qvg_engine.cli.video_length import VideoLength
from qvg_engine.config import EngineConfig
from qvg_engine.errors import OutputError
from qvg_engine.kernels.host import keep_freed_memory
from qvg_engine.quality.calibration import CalibrationSettings
from qvg_engine.quality.files import write_whole
from qvg_engine.video.writer import require_writable_folder


class AllocationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One run: what is calibrated on, for which videos and bits, and where the choice goes.

    Calibration video i has seed `seed + i`. Raises `OutputError` for a file that cannot be one.
    """

    prompts: tuple[str, ...]
    length: VideoLength
    kv_bits: float
    num_chunks: int
    seed: int
    output: Path

    def __post_init__(self) -> None:
        if self.output.suffix != ALLOCATION_SUFFIX or self.output.is_dir():
            raise OutputError(
                f"--output is {self.output}: name a file that ends in {ALLOCATION_SUFFIX}"
            )


def write_allocation(settings: AllocationSettings, engine_settings: dict[str, Any]) -> None:
    """Calibrate and write the file; a QvgError for a mistake, before anything is generated."""
    config = EngineConfig(**engine_settings)
    require_writable_folder(settings.output.parent)
    keep_freed_memory()
    console = make_console()
    family = load_video_family(config)
    assert family.codec is not None, "a family that makes videos has a codec"
    choice = choose_on_prompts(
        family,
        config,
        CalibrationSettings(
            prompts=settings.prompts,
            seed=settings.seed,
            kv_bits=settings.kv_bits,
            num_frames=settings.length.count_frames(family.codec.frames_per_second),
            num_chunks=settings.num_chunks,
        ),
        console=console,
    )
    origin = AllocationOrigin(
        model=family.name,
        prompts=settings.prompts,
        bits=choice.bits,
        predicted_error=choice.predicted_error,
    )
    write_whole(settings.output, encode_allocation(choice.allocation, origin))
    console.print(f"wrote {settings.output}", markup=False, highlight=False, soft_wrap=True)
