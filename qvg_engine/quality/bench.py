"""The whole measurement: captures, errors, frames, memory."""

from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np

from qvg_engine.block_manager.format import FORMATS, PageFormat
from qvg_engine.config import EngineConfig
from qvg_engine.errors import ConfigError
from qvg_engine.models.family import ModelFamily
from qvg_engine.models.pocket.clips import all_scenes
from qvg_engine.quality.capture import Capture
from qvg_engine.quality.comparison import QUALITY_FORMATS, quality_format, with_centroids
from qvg_engine.quality.figures import (
    BenchReport,
    BookErrors,
    FramePsnr,
    MemoryCurve,
    margins,
)
from qvg_engine.quality.format_errors import LayerErrors, summarise
from qvg_engine.quality.memory import WAN_1_3B, memory_curve, shape_of
from qvg_engine.quality.psnr import NUM_CHUNKS, FrameComparison
from qvg_engine.quality.recorder import record_video
from qvg_engine.quality.settings import BenchSettings
from qvg_engine.quality.stored import StoredRows
from qvg_engine.request import VideoRequest
from qvg_engine.version import __version__

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many parts of it are done, and how many there are."""

_Measured = dict[PageFormat, list[tuple[BookErrors, StoredRows]]]


def run_bench(
    settings: BenchSettings,
    family: ModelFamily,
    config: EngineConfig,
    *,
    on_progress: Progress = lambda what, done, total: None,
) -> BenchReport:
    """Measure everything.

    Args:
        settings: what to measure.
        family: with prompt encoder and VAE, and pocket's vocabulary.
        config: the engine's settings; pages and number of streams are set here.
        on_progress: called after every part.

    Raises `ConfigError` for layers that there are not, or videos too short to read their cache.
    """
    _check_length(settings, family)
    prompts = pick_prompts(settings.num_prompts, seed=settings.seed)
    formats = [quality_format(name) for name in settings.formats]
    measured: _Measured = {page_format: [] for page_format in _cases(formats, settings.centroids)}
    layers = settings.layers or tuple(range(family.geometry.num_layers))
    num_parts = len(prompts) * len(layers) * len(measured)
    captured = done = 0
    on_progress("K and V", 0, num_parts)
    for video, prompt in enumerate(prompts):
        capture = _record(settings, family, config, prompt, video)
        captured += capture.num_tokens
        for _ in _measure(capture, video, settings, measured):
            done += 1
            on_progress("K and V", done, num_parts)
    errors = tuple(summarise(page_format, books) for page_format, books in measured.items())
    return BenchReport(
        version=__version__,
        model=family.name,
        prompts=tuple(prompts),
        seed=settings.seed,
        num_frames=settings.num_frames,
        captured_tokens=captured,
        layers=layers,
        fit_on=settings.fit_on,
        errors=errors,
        margins=margins(errors),
        psnr=_compare_frames(settings, family, config, on_progress),
        memory=tuple(memory_curves(family, formats)),
    )


def pick_prompts(count: int, *, seed: int) -> list[str]:
    """Different prompts of pocket's vocabulary."""
    scenes = all_scenes()
    order = np.random.default_rng(seed).permutation(len(scenes))
    return [scenes[index].prompt for index in order[:count]]


def memory_curves(family: ModelFamily, formats: Sequence[PageFormat]) -> Iterator[MemoryCurve]:
    """Of the model and of Wan 1.3B, with a window and without, `bf16` first."""
    shown = [FORMATS["bf16"], *(item for item in formats if item.name != "bf16")]
    for shape in (shape_of(family), WAN_1_3B):
        for windowed in (True, False):
            for page_format in shown:
                yield memory_curve(shape, page_format, windowed=windowed)


def _cases(formats: Sequence[PageFormat], centroids: Sequence[int]) -> list[PageFormat]:
    """Every format with every number of centroids, once; formats without them come first."""
    cases = [with_centroids(item, number) for number in centroids for item in formats]
    cases = sorted(cases, key=_has_centroids)
    return [item for place, item in enumerate(cases) if item not in cases[:place]]


def _has_centroids(page_format: PageFormat) -> bool:
    return page_format.codec is not None and page_format.codec.stages > 0


def _check_length(settings: BenchSettings, family: ModelFamily) -> None:
    codec = family.codec
    assert codec is not None
    chunks = codec.latent_frames(settings.num_frames) / family.settings.frames_per_chunk
    if chunks < NUM_CHUNKS + 1:
        raise ConfigError(
            f"num_frames is {settings.num_frames}: give at least {NUM_CHUNKS + 1} chunks, since "
            f"the first reads no cache and the next {NUM_CHUNKS} are compared"
        )


def _record(
    settings: BenchSettings, family: ModelFamily, config: EngineConfig, prompt: str, video: int
) -> Capture:
    request = VideoRequest(
        request_id=f"capture-{video}",
        prompt=prompt,
        num_frames=settings.num_frames,
        seed=settings.seed + video,
        output="latents",
        trace=True,
    )
    alone = msgspec.structs.replace(
        config, kv_format="bf16", value_format=None, max_streams=1, batch_invariant=True
    )
    return record_video(family, alone, request, layers=settings.layers)


def _measure(
    capture: Capture, video: int, settings: BenchSettings, measured: _Measured
) -> Iterator[None]:
    """Add the errors of every format in every layer of a capture; a step for each."""
    fit_tokens = capture.chunk_tokens[0] if settings.fit_on == "first" else None
    for layer in capture.layers:
        errors = LayerErrors(capture, layer, video=video, seed=settings.seed, fit_tokens=fit_tokens)
        for page_format, books in measured.items():
            books.append(errors.measure(page_format))
            yield


def _compare_frames(
    settings: BenchSettings,
    family: ModelFamily,
    config: EngineConfig,
    on_progress: Progress,
) -> tuple[FramePsnr, ...]:
    """Every format with the codebooks that streams get, then with the fewest `centroids`."""
    formats = [QUALITY_FORMATS[name] for name in settings.formats]
    cases: list[tuple[PageFormat, int | None]] = [(item, None) for item in formats]
    cases += [(item, min(settings.centroids)) for item in formats if _has_centroids(item)]
    on_progress("frames", 0, len(cases) + 1)
    comparison = FrameComparison(
        family,
        config,
        prompts=pick_prompts(settings.num_psnr_prompts, seed=settings.seed),
        num_frames=settings.num_frames,
        seed=settings.seed,
    )
    figures = []
    for done, (page_format, centroids) in enumerate(cases, start=1):
        on_progress("frames", done, len(cases) + 1)
        figures.append(comparison.measure(page_format, centroids=centroids))
    on_progress("frames", len(cases) + 1, len(cases) + 1)
    return tuple(figures)
