"""Writes one MP4 file, chunk by chunk. Knows nothing of streams or engines.

The video grows in a hidden file beside its destination and takes its name when it is complete, so
that a file with the final name is always a whole video.
"""

import contextlib
import os
import secrets
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from qvg_engine.errors import OutputError, RequestError

# Visually lossless on flat colours and sharp edges. Encoding 256x256 frames takes about 1 ms of one
# core each at this preset; slower presets save little on such frames.
_ENCODER_OPTIONS = {"crf": "18", "preset": "veryfast"}
_BT601_MATRIX = 6
_LIMITED_RANGE = 1


def require_writable_folder(folder: Path) -> None:
    """Raise OutputError if no file can be made in `folder`, or if it cannot be created.

    Leaves nothing behind: a folder that is missing is missing again afterwards.
    """
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _create_hidden_file(folder / "probe").unlink()
        finally:
            for part in missing:
                part.rmdir()
    except OSError as error:
        raise OutputError(
            f"cannot write to the folder {folder}: {_reason(error)}; name another one"
        ) from error


def free_path(path: Path) -> Path:
    """Return `path` if nothing is there, else the first free one of path-2, path-3, ..."""
    candidate, number = path, 2
    while candidate.exists():
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return candidate


class VideoWriter:
    """Writes an H.264 MP4 (yuv420p, index in front) that any player opens.

    `scale` repeats every pixel scale x scale times, so that a tiny video is large enough to watch.
    H.264 needs even sizes: an odd height or width is padded by repeating its last row or column.

    The hidden file, and its folder if that is missing, are made at construction. As a context
    manager it closes on success and discards on an exception.
    Every method raises OutputError if the file cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        frames_per_second: float,
        scale: int = 1,
        overwrite: bool = False,
    ) -> None:
        """Prepare to write `path`; where a file is, `overwrite` replaces it when this one is done.

        Without `overwrite` the video goes to the first free name of path, path-2, path-3, ...
        """
        if not frames_per_second > 0:
            raise RequestError(f"frames_per_second={frames_per_second} must be greater than 0")
        if scale < 1:
            raise RequestError(f"scale={scale} must be 1 or more")
        self.path = Path(path)
        self.num_frames = 0
        self._rate = Fraction(frames_per_second).limit_denominator(1001)
        self._scale = scale
        self._overwrite = overwrite
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._part: Path | None = _create_hidden_file(self.path)
        except OSError as error:
            raise self._failure(error) from error

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append `frames`, uint8 [T, H, W, 3] (RGB); every call must bring the same H and W."""
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise RequestError(
                f"frames are {frames.dtype} {list(frames.shape)}: give uint8 [T, H, W, 3]"
            )
        if not len(frames):
            return
        try:
            container, stream = self._opened(frames)
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(self._fitted(frame), format="rgb24")
                picture.pts = self.num_frames
                container.mux(stream.encode(picture))
                self.num_frames += 1
        except (OSError, av.FFmpegError) as error:
            raise self._failure(error) from error

    def close(self) -> Path:
        """Finish the file and return the path it got. A video without frames is an OutputError."""
        if self._part is None:
            return self.path
        if self._container is None or self._stream is None:
            self.discard()
            raise OutputError(f"cannot write {self.path}: no frames were made")
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._container = None
            if not self._overwrite:
                self.path = free_path(self.path)
            os.replace(self._part, self.path)
        except (OSError, av.FFmpegError) as error:
            self.discard()
            raise self._failure(error) from error
        self._part = None
        return self.path

    def discard(self) -> None:
        """Remove what was written. Does nothing on a file that is closed or discarded already."""
        part, self._part = self._part, None
        container, self._container = self._container, None
        # The file goes whatever its end looks like, on a full disk for example.
        with contextlib.suppress(OSError, av.FFmpegError):
            if container is not None:
                container.close()
        if part is not None:
            part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.discard()

    def _opened(self, frames: NDArray[np.uint8]) -> tuple[OutputContainer, VideoStream]:
        height, width = (_even(size * self._scale) for size in frames.shape[1:3])
        if self._container is not None and self._stream is not None:
            if (height, width) != (self._stream.height, self._stream.width):
                raise RequestError(
                    f"frames of {frames.shape[2]}x{frames.shape[1]} pixels do not continue "
                    f"{self.path}: all frames of a video have one size"
                )
            return self._container, self._stream
        assert self._part is not None, "write() after close() or discard()"
        self._container = av.open(
            str(self._part), "w", format="mp4", options={"movflags": "faststart"}
        )
        stream = self._container.add_stream("libx264", rate=self._rate)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {**_ENCODER_OPTIONS}
        # Without these tags players guess the matrix from the size, and colours shift.
        stream.codec_context.colorspace = _BT601_MATRIX
        stream.codec_context.color_range = _LIMITED_RANGE
        self._stream = stream
        return self._container, stream

    def _fitted(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._scale > 1:
            frame = frame.repeat(self._scale, axis=0).repeat(self._scale, axis=1)
        height, width = frame.shape[:2]
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        return np.ascontiguousarray(frame)

    def _failure(self, error: Exception) -> OutputError:
        return OutputError(
            f"cannot write {self.path}: {_reason(error)}; free some room or name another folder"
        )


def _create_hidden_file(path: Path) -> Path:
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    hidden.open("xb").close()
    return hidden


def _even(size: int) -> int:
    return size + size % 2


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
