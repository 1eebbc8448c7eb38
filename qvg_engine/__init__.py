"""A paged-attention engine that generates many long auto-regressive videos at once."""

from qvg_engine.accounting import EngineStats
from qvg_engine.config import EngineConfig
from qvg_engine.engine import VideoEngine
from qvg_engine.generate import GeneratedVideo
from qvg_engine.output import LayerCache, Trace, VideoOutput
from qvg_engine.request import VideoRequest
from qvg_engine.version import __version__

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
