"""Reads MP4 files into arrays, for checks and reports. Knows nothing of how they were made."""

from collections import deque
from pathlib import Path

import av
import msgspec
import numpy as np
from numpy.typing import NDArray

from qvg_engine.errors import RequestError


class VideoInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a video file says of itself; sizes in pixels."""

    num_frames: int
    height: int
    width: int
    frames_per_second: float


def probe_video(path: str | Path) -> VideoInfo:
    """Return what the file at `path` says of itself, without decoding it.

    Raises RequestError if the file is not there or is no video.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            return VideoInfo(
                num_frames=stream.frames,
                height=stream.height,
                width=stream.width,
                frames_per_second=float(stream.average_rate or 0),
            )
    except (OSError, IndexError, av.FFmpegError) as error:
        raise _unreadable(path, error) from error


def read_video(path: str | Path, *, shrink: int = 1, last: int | None = None) -> NDArray[np.uint8]:
    """Return the frames of the video or image at `path` as uint8 [T, H, W, 3] (RGB).

    All of them, or the `last` ones, and no more than those are held at any time.

    With `shrink` every block of shrink x shrink pixels becomes its mean, which undoes the `scale`
    of the writer; height and width must be multiples of it. Raises RequestError if the file is not
    there, is no video, or does not divide.
    """
    try:
        with av.open(str(path)) as container:
            frames = deque(
                (
                    _shrunk(frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False), shrink)
                    for frame in container.decode(video=0)
                ),
                maxlen=last,
            )
    except (OSError, IndexError, av.FFmpegError) as error:
        raise _unreadable(path, error) from error
    if not frames:
        raise RequestError(f"{path} holds no frames: give a complete video")
    return np.stack(frames)


def _shrunk(frame: NDArray[np.uint8], shrink: int) -> NDArray[np.uint8]:
    if shrink == 1:
        return frame
    height, width, channels = frame.shape
    if shrink < 1 or height % shrink or width % shrink:
        raise RequestError(f"shrink={shrink} must divide the frame's {width}x{height} pixels")
    blocks = frame.reshape(height // shrink, shrink, width // shrink, shrink, channels)
    means: NDArray[np.float64] = blocks.mean(axis=(1, 3))
    return means.round().astype(np.uint8)


def _unreadable(path: str | Path, error: Exception) -> RequestError:
    return RequestError(f"cannot read the video {path}: {error}")
