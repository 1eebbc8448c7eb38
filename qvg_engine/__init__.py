"""A paged-attention engine that generates many long auto-regressive videos at once."""

import importlib
import typing

from qvg_engine.version import __version__

if typing.TYPE_CHECKING:
    from qvg_engine.config import EngineConfig
    from qvg_engine.engine import VideoEngine
    from qvg_engine.engine_stats import EngineStats
    from qvg_engine.generate import GeneratedVideo
    from qvg_engine.output import LayerCache, Trace, VideoOutput
    from qvg_engine.request import VideoRequest

__all__ = [
    "EngineConfig",
    "EngineStats",
    "GeneratedVideo",
    "LayerCache",
    "Trace",
    "VideoEngine",
    "VideoOutput",
    "VideoRequest",
    "__version__",
]

# Names are looked up when they are first used: torch takes seconds to import, and neither the
# scheduler nor `qvg-engine --help` needs it.
_HOMES = {
    "EngineConfig": "qvg_engine.config",
    "EngineStats": "qvg_engine.engine_stats",
    "GeneratedVideo": "qvg_engine.generate",
    "LayerCache": "qvg_engine.output",
    "Trace": "qvg_engine.output",
    "VideoEngine": "qvg_engine.engine",
    "VideoOutput": "qvg_engine.output",
    "VideoRequest": "qvg_engine.request",
}


def __getattr__(name: str) -> typing.Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
