"""Frames of the first chunks of videos, through the whole engine."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from qvg_engine.cache import cache_layout
from qvg_engine.config import EngineConfig
from qvg_engine.engine import VideoEngine
from qvg_engine.errors import StreamError
from qvg_engine.models.family import ModelFamily
from qvg_engine.plan import pages_for_video
from qvg_engine.request import VideoRequest

Video = list[NDArray[np.uint8]]
"""The frames of some chunks, in order, [T, H, W, 3] each."""


def with_room(
    config: EngineConfig, family: ModelFamily, *, num_streams: int, num_frames: int
) -> EngineConfig:
    """The same settings with memory for so many streams of so many pixel frames at once."""
    config = msgspec.structs.replace(config, max_streams=num_streams)
    pages = 1 + num_streams * pages_for_video(config, family, num_frames)
    memory = cache_layout(family, config).num_bytes(pages)
    return msgspec.structs.replace(config, kv_memory=memory)


def first_chunks(
    engine: VideoEngine, requests: Sequence[VideoRequest], *, first: int, count: int
) -> list[Video]:
    """The chunks [first, first + count) of every request's video, all made together.

    Requests are aborted once their chunks are there; shorter videos have fewer. Raises
    `StreamError` if one fails.
    """
    videos: dict[str, Video] = {request.request_id: [] for request in requests}
    for request in requests:
        engine.add_request(request)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finish_reason == "error":
                raise StreamError(output.error)
            video = videos[output.request_id]
            if output.frames is None or output.chunk_index is None or output.chunk_index < first:
                continue
            if len(video) < count:
                video.append(output.frames)
            if len(video) == count:
                engine.abort_request(output.request_id)
    return list(videos.values())
