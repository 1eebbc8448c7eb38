"""How long a video was asked to be."""

import math

import msgspec

from qvg_engine.errors import RequestError

_DEFAULT_SECONDS = 10.0


class VideoLength(msgspec.Struct, frozen=True, kw_only=True):
    """A length in seconds or in frames; ten seconds if neither is given."""

    seconds: float | None = None
    num_frames: int | None = None

    def __post_init__(self) -> None:
        if self.seconds is not None and self.num_frames is not None:
            raise RequestError("--seconds and --num-frames are both given: give one of them")
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds > 0):
            raise RequestError(f"--seconds is {self.seconds}: give a number greater than 0")

    def count_frames(self, frames_per_second: int) -> int:
        """Pixel frames, at least one."""
        if self.num_frames is not None:
            return self.num_frames
        seconds = _DEFAULT_SECONDS if self.seconds is None else self.seconds
        return max(1, round(seconds * frames_per_second))
