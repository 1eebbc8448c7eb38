"""What `qvg-engine generate` does: check, load, make all videos together, say what it took."""

import contextlib
import sys
import time

import msgspec
import torch
from rich.console import Console

from qvg_engine.cli.calibration import choose_on_prompts
from qvg_engine.cli.conditions import read_conditions
from qvg_engine.cli.console import make_console
from qvg_engine.cli.display import make_display
from qvg_engine.cli.exit_code import ExitCode
from qvg_engine.cli.interrupt import StopSignals
from qvg_engine.cli.prompts import video_name
from qvg_engine.cli.report import make_report, print_report, write_json
from qvg_engine.cli.run import run_jobs
from qvg_engine.cli.settings import GenerateSettings
from qvg_engine.cli.start_frames import Start, read_start
from qvg_engine.cli.video_family import load_video_family, with_size
from qvg_engine.cli.video_job import JobState, VideoJob
from qvg_engine.config import EngineConfig
from qvg_engine.engine import VideoEngine
from qvg_engine.errors import RequestError
from qvg_engine.kernels.host import keep_freed_memory
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.calibration import CalibrationSettings, chunks_to_calibrate
from qvg_engine.request import VideoRequest
from qvg_engine.video.writer import require_writable_folder


def make_videos(settings: GenerateSettings) -> int:
    """Make the videos and return the exit code.

    Raises a QvgError for a mistake that keeps the run from starting.
    """
    config = with_size(EngineConfig(**settings.engine_settings), settings.size)
    require_writable_folder(settings.output_dir)
    if settings.json_path is not None:
        require_writable_folder(settings.json_path.parent)
    keep_freed_memory()
    console = make_console()
    load_started_at = time.perf_counter()
    family = None
    if settings.kv_bits is not None:
        family = load_video_family(config)
        config = _calibrated(config, family, settings, console)
    engine = open_engine(config, prompt=settings.prompts[0], family=family)
    warmup_s = time.perf_counter() - load_started_at
    assert engine.family.codec is not None, "checked when the engine was opened"
    start = None
    if settings.start_path is not None:
        start = read_start(settings.start_path, engine.family)
    conditions = None
    if settings.conditions is not None:
        conditions = read_conditions(settings.conditions, engine.family)
    jobs = _make_jobs(settings, engine.family.codec.frames_per_second, start, conditions)
    with StopSignals() as stop, make_display(console) as display:
        wall_s = run_jobs(engine, jobs, display=display, stop=stop)
    report = make_report(
        jobs, engine.stats(), wall_s=wall_s, warmup_s=warmup_s, formats=config.layer_formats
    )
    print_report(jobs, report, console)
    for job in jobs:
        if job.state is JobState.FAILED:
            print(f"error: {job.request.prompt!r} failed: {job.error}", file=sys.stderr)
    if stop.received is not None:
        print(f"stopped: {len(report.videos)} of {len(jobs)} videos are complete", file=sys.stderr)
        return 128 + stop.received
    if settings.json_path is not None:
        write_json(report, settings.json_path)
    return ExitCode.DONE if len(report.videos) == len(jobs) else ExitCode.USER_ERROR


def open_engine(
    config: EngineConfig, *, prompt: str, family: ModelFamily | None = None
) -> VideoEngine:
    """Load the model, unless it is given, and make two chunks of a video: all is compiled then.

    That runs in an engine of its own: the one that is returned has counted nothing yet.
    """
    family = family or load_video_family(config)
    engine = VideoEngine(config, family=family)
    num_frames = 2 * family.settings.frames_per_chunk
    noise = torch.zeros(num_frames, *family.settings.latent_shape)
    # What does not fit, or needs conditions, is better said of the video that was asked for.
    with contextlib.suppress(RequestError):
        engine.add_request(VideoRequest(request_id="warm-up", prompt=prompt, noise=noise))
    while engine.has_unfinished_requests():
        engine.step()
    del engine
    return VideoEngine(config, family=family)


def _calibrated(
    config: EngineConfig, family: ModelFamily, settings: GenerateSettings, console: Console
) -> EngineConfig:
    """The settings with formats chosen on the first prompt."""
    assert settings.kv_bits is not None
    assert family.codec is not None, "a family that makes videos has a codec"
    num_frames = settings.length.count_frames(family.codec.frames_per_second)
    choice = choose_on_prompts(
        family,
        config,
        CalibrationSettings(
            prompts=settings.prompts[:1],
            seed=settings.seed,
            kv_bits=settings.kv_bits,
            num_frames=num_frames,
            num_chunks=chunks_to_calibrate(family, num_frames=num_frames),
        ),
        console=console,
    )
    return msgspec.structs.replace(config, kv_format=choice.allocation)


def _make_jobs(
    settings: GenerateSettings,
    frames_per_second: int,
    start: Start | None,
    conditions: msgspec.Struct | None,
) -> list[VideoJob]:
    num_frames = settings.length.count_frames(frames_per_second)
    jobs = []
    for index, prompt in enumerate(settings.prompts):
        seed = settings.seed + index
        request = VideoRequest(
            request_id=f"video-{index + 1}",
            prompt=prompt,
            num_frames=num_frames,
            seed=seed,
            context_latents=None if start is None else start.latents,
            conditions=conditions,
        )
        job = VideoJob(
            request,
            path=settings.output_dir / video_name(prompt, seed),
            frames_per_second=frames_per_second,
            scale=settings.scale,
            overwrite=settings.overwrite,
            start=None if start is None else start.frames,
        )
        jobs.append(job)
    return jobs
