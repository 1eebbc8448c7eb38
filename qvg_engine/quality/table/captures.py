"""The captures that a table is measured on, made once and kept in a folder."""

from collections.abc import Callable

import msgspec
import torch

from qvg_engine.config import EngineConfig
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.capture import Capture, load, save
from qvg_engine.quality.recorder import record_frames
from qvg_engine.quality.table.parts import Part, Parts


class CaptureNote(msgspec.Struct, frozen=True):
    """What is kept beside a capture's file, to tell what it is of."""

    num_tokens: int


class CaptureSource(msgspec.Struct, frozen=True, kw_only=True):
    """Which video is captured, its pixel frames, and the layers."""

    prompt: str
    seed: int
    num_frames: int
    layers: tuple[int, ...]


class Captures:
    """Videos 0, 1 ... of a table, captured when they are first asked for; one is held at a time.

    Args:
        parts: where they are kept.
        family, config: what generates them.
        on_chunk: told the video, how many of its chunks are captured, and of how many.

    Rows are kept in bf16, as the pages that contenders are compared with hold them.
    """

    def __init__(
        self,
        parts: Parts,
        family: ModelFamily,
        config: EngineConfig,
        *,
        on_chunk: Callable[[int, int, int], None] = lambda video, done, total: None,
    ) -> None:
        self._parts = parts
        self._family = family
        self._config = msgspec.structs.replace(
            config, kv_format="bf16", value_format=None, max_streams=1, batch_invariant=True
        )
        self._on_chunk = on_chunk
        self._held: tuple[Part, Capture] | None = None

    def get(self, video: int, part: Part, source: CaptureSource) -> Capture:
        """The capture of one video, which is kept under `part`."""
        if self._held is not None and self._held[0] == part:
            return self._held[1]
        self._held = None
        path = self._parts.beside(part, ".safetensors")
        if self._parts.read(part, CaptureNote) is not None and path.exists():
            capture = load(path)
        else:
            capture = record_frames(
                self._family,
                self._config,
                prompt=source.prompt,
                num_frames=source.num_frames,
                seed=source.seed,
                layers=source.layers,
                dtype=torch.bfloat16,
                on_chunk=lambda done, total: self._on_chunk(video, done, total),
            )
            save(capture, path)
            self._parts.write(part, CaptureNote(capture.num_tokens))
        self._held = (part, capture)
        return capture
