"""From short videos of a model to formats for each of its layers under a budget of bits."""

from collections.abc import Callable
from functools import partial

import msgspec
import numpy as np

from qvg_engine.admission import chunked_latent_frames
from qvg_engine.config import EngineConfig
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.chunk_frames import with_room
from qvg_engine.quality.kv_choice import KvChoice, affordable_overheads, choose_formats
from qvg_engine.quality.kv_prices import KvPrices
from qvg_engine.quality.part_errors import measure_parts
from qvg_engine.quality.probes import Probes, measure_effects, weighted
from qvg_engine.quality.recorder import record_passes

NUM_CHUNKS = 8
"""Chunks of a calibration video, unless it is said."""

Progress = Callable[[str, int, int], None]
"""Told what is done, how many parts of it are done, and of how many."""


class CalibrationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is calibrated on: a video a prompt, video i with seed `seed` + i, and its chunks.

    `kv_bits` are all bits an element, of videos of `num_frames` pixel frames.
    """

    prompts: tuple[str, ...]
    seed: int
    kv_bits: float
    num_frames: int
    num_chunks: int = NUM_CHUNKS

    def __post_init__(self) -> None:
        assert self.prompts, "no videos to calibrate on"
        assert self.num_chunks >= 2, "the first chunk reads no cache"


def calibrate(
    family: ModelFamily,
    config: EngineConfig,
    prices: KvPrices,
    settings: CalibrationSettings,
    *,
    progress: Progress = lambda what, done, total: None,
) -> KvChoice:
    """Generate the videos with `bf16` pages, measure the parts and their effects, and choose.

    Errors are means over videos. Raises `ConfigError` for bits that `prices` have no formats for,
    before anything is generated, and what the engine raises.
    """
    kv_bits = prices.check(settings.kv_bits, name="kv_bits")
    overheads = affordable_overheads(prices, kv_bits)
    errors = []
    for index, prompt in enumerate(settings.prompts):
        video = "" if len(settings.prompts) == 1 else f" {index + 1}"
        # One capture at a time is kept.
        captures = record_passes(
            family,
            _recording(family, config, settings.num_chunks),
            prompt=prompt,
            num_frames=frames_of_chunks(family, settings.num_chunks),
            seed=settings.seed + index,
            on_chunk=partial(progress, f"calibration video{video}"),
        )
        found = measure_parts(
            captures,
            prices,
            config.codebooks,
            overheads=overheads,
            on_part=partial(progress, f"calibration of formats{video}"),
        )
        probes = Probes(
            family,
            config,
            prompt=prompt,
            seed=settings.seed + index,
            num_frames=max(settings.num_frames, frames_of_chunks(family, 2)),
        )
        effects = measure_effects(
            probes,
            prices,
            overhead=overheads[-1],
            on_probe=partial(progress, f"calibration of layers{video}"),
        )
        errors.append(weighted(found, effects, prices, overhead=overheads[-1]))
    return choose_formats(prices, np.mean(errors, axis=0), kv_bits)


def chunks_to_calibrate(family: ModelFamily, *, num_frames: int) -> int:
    """Chunks of a calibration for videos of `num_frames` pixel frames: no more than they have."""
    num_latent_frames = chunked_latent_frames(family, num_frames, request_id="calibration")
    return max(2, min(NUM_CHUNKS, -(-num_latent_frames // family.settings.frames_per_chunk)))


def frames_of_chunks(family: ModelFamily, num_chunks: int) -> int:
    """Pixel frames of the longest video of so many chunks."""
    codec = family.codec
    assert codec is not None, "the family makes videos"
    num_frames = 1
    while codec.latent_frames(num_frames + 1) <= num_chunks * family.settings.frames_per_chunk:
        num_frames += 1
    return num_frames


def _recording(family: ModelFamily, config: EngineConfig, num_chunks: int) -> EngineConfig:
    """The settings of the engine that makes a calibration video."""
    exact = msgspec.structs.replace(
        config, kv_format="bf16", value_format=None, batch_invariant=True
    )
    # A chunk is committed before the next one's first pass, so one more is begun.
    num_frames = frames_of_chunks(family, num_chunks + 1)
    return with_room(exact, family, num_streams=1, num_frames=num_frames)
