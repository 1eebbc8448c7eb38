"""What an engine takes of a GPU, format by format, before any weights are read."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec

from qvg_engine.block_manager.cache_layout import CacheLayout
from qvg_engine.block_manager.format import FORMATS
from qvg_engine.block_manager.page_count import pages_for
from qvg_engine.cache import (
    cache_layout,
    codebook_needs,
    pages_for_streams,
    workspace_tokens,
)
from qvg_engine.config import EngineConfig
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.paged_attention import Workspace
from qvg_engine.models.family import GrowingCodec, ModelFamily
from qvg_engine.plan import MAX_PLANNED_FRAMES, decoder_state_bytes, planned_program
from qvg_engine.scheduler.unit import count_tokens

MAX_PLANNED_STREAMS = 4096


class PartBytes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of weights; with `offload` only the largest part is on the device at a time."""

    network: int
    vae: int
    text_encoder: int
    offload: bool

    @property
    def resident(self) -> int:
        """On the device."""
        parts = (self.network, self.vae, self.text_encoder)
        return max(parts) if self.offload else sum(parts)


class FormatPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The KV-cache of one format.

    `page_bytes`, `codebook_bytes` and `refinement_bytes` are those of the streams asked for,
    together `kv_bytes`; `bytes_per_token` those of a token in pages. Of such videos `num_streams`
    fit at most, and of the streams asked for `longest_frames` pixel frames each: 0 if not even one,
    None for any length.
    """

    kv_format: str
    bytes_per_token: float
    page_bytes: int
    codebook_bytes: int
    refinement_bytes: int
    kv_bytes: int
    num_streams: int
    longest_frames: int | None


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU's memory, shared out among `num_streams` videos of `num_frames` pixel frames.

    `activation_bytes` is an estimate of what a step computes with, or a decode after it, whichever
    is more; None where the family has none.
    `decoder_bytes` counts the slots on the device, at the end of the videos.
    """

    gpu_bytes: int
    num_frames: int
    num_streams: int
    weights: PartBytes
    workspace_bytes: int
    activation_bytes: int | None
    text_bytes: int
    decoder_bytes: int
    formats: tuple[FormatPlan, ...]

    @property
    def kv_bytes_left(self) -> int:
        """What is left for the KV-cache; negative if the rest does not fit."""
        return self.gpu_bytes - (
            self.weights.resident
            + self.workspace_bytes
            + (self.activation_bytes or 0)
            + self.text_bytes
            + self.decoder_bytes
        )


def plan_memory(
    config: EngineConfig,
    family: ModelFamily,
    *,
    num_frames: int,
    num_streams: int,
    gpu_bytes: int,
    kv_formats: Sequence[str] = tuple(FORMATS),
) -> MemoryPlan:
    """Plan videos of the family's own size on one GPU; allocates nothing.

    Raises `ConfigError` for a number of streams that is out of range, and `RequestError` if the
    family has no VAE, and so no pixel frames.
    """
    if not 1 <= num_streams <= MAX_PLANNED_STREAMS:
        raise ConfigError(
            f"--streams is {num_streams}: give a number from 1 to {MAX_PLANNED_STREAMS}"
        )
    planner = _Planner(config, family, num_frames=num_frames, gpu_bytes=gpu_bytes)
    plan = planner.without_kv(num_streams)
    formats = tuple(planner.for_format(name, plan) for name in kv_formats)
    return msgspec.structs.replace(plan, formats=formats)


class _Planner:
    """What does not depend on the format, counted once."""

    def __init__(
        self, config: EngineConfig, family: ModelFamily, *, num_frames: int, gpu_bytes: int
    ) -> None:
        self._config = config
        self._family = family
        self._num_frames = num_frames
        self._gpu_bytes = gpu_bytes
        self._weights = weight_bytes(family, offload=config.offload)
        height, width = family.settings.latent_shape[1:]
        codec = family.codec
        decode: Any = getattr(codec, "decode_bytes", None)
        self._decode_bytes = 0 if decode is None else int(decode(height, width))
        self._state_bytes = cache(lambda frames: decoder_state_bytes(family, frames))
        self._chunk_pages = pages_for(
            family.settings.frames_per_chunk * family.tokens_per_frame, config.page_size
        )
        # Some twenty lengths are looked at, and for every format anew.
        self._program = cache(lambda frames: planned_program(config, family, frames))

    def without_kv(self, num_streams: int) -> MemoryPlan:
        """Everything but the KV-cache of so many streams."""
        config, family = self._config, self._family
        geometry, program = family.geometry, self._program(self._num_frames)
        text = 2 * geometry.elements(program.needs.text_rows) * config.torch_dtype.itemsize
        first = program.next_gang()
        assert first is not None, "a video has passes"
        tokens = count_tokens(first)
        in_step = max(tokens, min(config.max_batch_tokens, num_streams * tokens))
        estimate: Any = getattr(family, "activation_bytes", None)
        # A step's forward is over when its chunks are decoded.
        activations = None if estimate is None else max(estimate(in_step), self._decode_bytes)
        return MemoryPlan(
            gpu_bytes=self._gpu_bytes,
            num_frames=self._num_frames,
            num_streams=num_streams,
            weights=self._weights,
            workspace_bytes=Workspace.bytes_for(
                num_heads=geometry.num_kv_heads,
                head_dim=geometry.head_dim,
                max_tokens=workspace_tokens(family, config),
                dtype=config.torch_dtype,
            ),
            activation_bytes=activations,
            text_bytes=num_streams * text,
            decoder_bytes=self._decoder_bytes(num_streams, self._num_frames),
            formats=(),
        )

    def for_format(self, kv_format: str, plan: MemoryPlan) -> FormatPlan:
        """The KV-cache of one format, for the streams of `plan` and for as many as fit."""
        config = msgspec.structs.replace(self._config, kv_format=kv_format, value_format=None)
        layout = cache_layout(self._family, config)
        pages = self._pages(layout, plan.num_streams, self._num_frames)
        refinements = layout.refinement_pages(pages * layout.page_size)
        return FormatPlan(
            kv_format=kv_format,
            bytes_per_token=layout.page_bytes / layout.page_size,
            page_bytes=pages * layout.page_bytes,
            codebook_bytes=layout.codebook_rows(pages) * layout.codebook_row_bytes,
            refinement_bytes=refinements * layout.refinement_page_bytes,
            kv_bytes=layout.num_bytes(pages),
            num_streams=self._most_streams(layout),
            longest_frames=self._longest(layout, plan),
        )

    def _most_streams(self, layout: CacheLayout) -> int:
        return bisect_right(
            range(1, MAX_PLANNED_STREAMS + 1),
            0,
            key=lambda count: (
                self._kv_bytes(layout, count, self._num_frames)
                - self.without_kv(count).kv_bytes_left
            ),
        )

    def _longest(self, layout: CacheLayout, plan: MemoryPlan) -> int | None:
        def missing(num_frames: int) -> int:
            decoders = self._decoder_bytes(plan.num_streams, num_frames) - plan.decoder_bytes
            needed = self._kv_bytes(layout, plan.num_streams, num_frames) + decoders
            return needed - plan.kv_bytes_left

        if missing(MAX_PLANNED_FRAMES) <= 0:
            return None
        return bisect_right(range(1, MAX_PLANNED_FRAMES), 0, key=missing)

    def _decoder_bytes(self, num_streams: int, num_frames: int) -> int:
        """The states on the device at the end of so many videos."""
        slots = self._config.decoder_slots
        in_slots = num_streams if slots is None else min(num_streams, slots)
        grows = isinstance(self._family.codec, GrowingCodec)
        return in_slots * self._state_bytes(num_frames if grows else self._num_frames)

    def _kv_bytes(self, layout: CacheLayout, num_streams: int, num_frames: int) -> int:
        return layout.num_bytes(self._pages(layout, num_streams, num_frames))

    def _pages(self, layout: CacheLayout, num_streams: int, num_frames: int) -> int:
        program = self._program(num_frames)
        books = codebook_needs(
            layout,
            peak_tokens=program.peak_tokens,
            num_sets=program.codebook_sets,
            chunk_pages=self._chunk_pages,
        )
        return pages_for_streams(layout, program.needs + books, num_streams)


def weight_bytes(family: ModelFamily, *, offload: bool) -> PartBytes:
    """Bytes of a family's weights, as they are held."""
    network: Any = getattr(family, "network", None)
    parameters = [] if network is None else network.parameters()
    return PartBytes(
        network=sum(parameter.nbytes for parameter in parameters),
        vae=_bytes_of(family.codec),
        text_encoder=_bytes_of(family.prompt_encoder),
        offload=offload,
    )


def _bytes_of(part: object) -> int:
    return int(getattr(part, "num_bytes", 0))
