"""Prompt adherence over long videos of some contenders, judged from their pixels."""

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from qvg_engine.block_manager.format import PageFormat
from qvg_engine.engine import VideoEngine
from qvg_engine.errors import ConfigError
from qvg_engine.quality.chunk_frames import with_room
from qvg_engine.quality.contenders.format import FormatContender
from qvg_engine.quality.contenders.registry import contender
from qvg_engine.quality.pocket_videos import (
    Frames,
    JudgedVideo,
    JudgedVideos,
    Sampling,
    compare,
    judged_videos,
)
from qvg_engine.quality.table.context import TableContext
from qvg_engine.quality.table.part_names import PartNames
from qvg_engine.quality.table.parts import Parts

_TOGETHER = 4


def judge_adherence(context: TableContext) -> None:
    """Make and judge the videos of all contenders that were asked for."""
    names = context.names
    total = len(names.settings.adherence) * names.settings.adherence_prompts
    context.on_progress("adherence", 0, total)
    for place, name in enumerate(names.settings.adherence):
        before = place * names.settings.adherence_prompts
        context.measure(
            names.adherence(name), JudgedVideos, partial(_judge, context, name, before, total)
        )
        done = before + names.settings.adherence_prompts
        context.on_progress("adherence", done, total)


def _judge(context: TableContext, name: str, before: int, total: int) -> JudgedVideos:
    """One contender, in batches that are kept as they are finished."""
    item = contender(name)
    if not isinstance(item, FormatContender):
        raise ConfigError(f"adherence is {name!r}: give page formats, which an engine runs")
    names, part = context.names, context.names.adherence(name)
    sampling = sampling_of(context, name)
    videos = judged_videos(
        partial(_generate, context, item.page_format),
        names.scenes(names.settings.adherence_prompts),
        sampling,
        context.parts.beside(part, ".videos.json"),
        on_batch=lambda done: context.on_progress("adherence", before + done, total),
    )
    return JudgedVideos(sampling, videos)


def sampling_of(context: TableContext, name: str) -> Sampling:
    """How a contender's videos are made and judged; its definition goes with its name."""
    assert context.config.dtype == "float32", context.config.dtype
    settings = context.names.settings
    window = context.family.settings.window_frames
    part = context.names.adherence(name)
    digest = hashlib.sha256(repr(sorted(part.key.items())).encode()).hexdigest()[:12]
    return Sampling(
        kv_format=f"{name} {digest}",
        num_frames=settings.adherence_frames,
        window_frames=window or 0,
        every=settings.judge_every,
        together=_TOGETHER,
        dtype="float32",
        weights=context.names.weights,
    )


def _generate(
    context: TableContext,
    page_format: PageFormat,
    prompts: Sequence[str],
    num_frames: int,
    window_frames: int,
) -> list[Frames]:
    """One batch of videos with the model's own window."""
    config = msgspec.structs.replace(context.config, kv_format=page_format, value_format=None)
    config = with_room(config, context.family, num_streams=len(prompts), num_frames=num_frames)
    engine = VideoEngine(config, family=context.family)
    videos = engine.generate(prompts, num_frames=num_frames, seed=context.names.settings.seed)
    return [video.frames for video in videos]


def adherence_report(names: PartNames, parts: Parts) -> dict[str, Any] | None:
    """What `compare` finds of the contenders that are judged; None without the first one."""
    judged: dict[str, list[JudgedVideo]] = {}
    sampling = None
    for name in names.settings.adherence:
        found = parts.read(names.adherence(name), JudgedVideos)
        if found is not None:
            judged[name] = found.videos
            sampling = sampling or found.sampling
    if sampling is None or names.settings.adherence[0] not in judged:
        return None
    return compare(judged, sampling)
