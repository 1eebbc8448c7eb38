"""Which window of a format takes no more bytes than one of bf16."""

import msgspec

from qvg_engine.block_manager.format import PageFormat, get_format
from qvg_engine.errors import ConfigError
from qvg_engine.quality.equal_bytes.settings import EXACT, EqualBytesSettings
from qvg_engine.quality.memory import VideoShape, memory_curve

_LONG_SECONDS = 3600.0
_MOST_FRAMES = 1000
"""Of a window, so that `_LONG_SECONDS` of video fill whatever takes as many bytes."""


class Budget(msgspec.Struct, frozen=True):
    """Two windows in latent frames: `short` in bf16, `long` in the other format.

    `long` is the longest that takes no more bytes.
    """

    short: int
    long: int


def find_budgets(settings: EqualBytesSettings, shape: VideoShape) -> tuple[Budget, ...]:
    """A budget for each of the settings' windows; `ConfigError` where videos do not fill them."""
    return tuple(_budget(short, settings, shape) for short in settings.windows)


def stream_bytes(shape: VideoShape, page_format: PageFormat, window_frames: int) -> int:
    """Bytes of a stream that fills its window, by the engine's formulas."""
    windowed = msgspec.structs.replace(shape, window_frames=window_frames)
    curve = memory_curve(windowed, page_format, windowed=True, seconds=(_LONG_SECONDS,))
    return curve.total_bytes[0]


def _budget(short: int, settings: EqualBytesSettings, shape: VideoShape) -> Budget:
    chunk = shape.frames_per_chunk
    if not chunk < short <= _MOST_FRAMES or short % chunk:
        raise ConfigError(
            f"windows has {short}: give multiples of a chunk's {chunk} latent frames, above "
            f"{chunk}, up to {_MOST_FRAMES:,}"
        )
    limit = stream_bytes(shape, get_format(EXACT), short)
    page_format, long = get_format(settings.kv_format), short
    while stream_bytes(shape, page_format, long + chunk) <= limit:
        long += chunk
    # The last chunk of a video is never stored.
    num_chunks = shape.num_chunks(settings.num_frames / shape.frames_per_second)
    if long > (num_chunks - 1) * chunk:
        raise ConfigError(
            f"num_frames is {settings.num_frames}: videos do not fill {long} latent frames, the "
            f"window of {settings.kv_format} that takes the bytes of {short} of {EXACT}; give "
            "longer videos, or shorter windows"
        )
    return Budget(short, long)
