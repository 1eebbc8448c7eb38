"""What a request takes, and how many of its kind fit, before anything is generated."""

from bisect import bisect_right

import msgspec
import torch

from qvg_engine.admission import chunked_latent_frames
from qvg_engine.cache import cache_layout, workspace_bytes
from qvg_engine.config import EngineConfig
from qvg_engine.models.family import GrowingCodec, ModelFamily
from qvg_engine.models.noise import KeyedNoise
from qvg_engine.models.program import Program, StreamInputs, TextRows

MAX_PLANNED_FRAMES = 1_000_000
"""A video of this many pixel frames (17 hours at 16 a second) counts as one of any length."""


class CapacityPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes in bytes of an engine, and of `num_streams` videos of `num_frames` pixel frames.

    `kv_bytes_per_stream` are those of a video's pages and of the codebooks and refinements that
    belong to them.
    `longest_frames` is the longest video of which one fits; None if any length does, since the
    model's window bounds its cache.
    """

    num_frames: int
    num_pages: int
    page_bytes: int
    codebook_bytes: int
    refinement_bytes: int
    pages_per_stream: int
    kv_bytes_per_stream: int
    workspace_bytes: int
    decoder_bytes_per_stream: int
    text_bytes_per_stream: int
    num_streams: int
    longest_frames: int | None

    @property
    def fits(self) -> bool:
        """Whether one such video fits."""
        return self.num_streams > 0


def plan_capacity(config: EngineConfig, family: ModelFamily, *, num_frames: int) -> CapacityPlan:
    """Plan videos of the family's own size; allocates nothing.

    Raises `RequestError` if the family has no VAE, and so no pixel frames.
    """
    layout = cache_layout(family, config)
    num_pages = layout.num_pages_for(config.kv_memory)
    needs = planned_program(config, family, num_frames).needs
    pages, rows = needs.pages, needs.text_rows
    geometry = family.geometry
    by_resource = [
        num_pages // pages if pages else config.max_streams,
        config.num_decoders,
        config.max_text_rows // rows,
        config.max_streams,
    ]
    return CapacityPlan(
        num_frames=num_frames,
        num_pages=num_pages,
        page_bytes=layout.page_bytes,
        codebook_bytes=layout.codebook_rows(num_pages) * layout.codebook_row_bytes,
        refinement_bytes=layout.refinement_pages(num_pages * config.page_size)
        * layout.refinement_page_bytes,
        pages_per_stream=pages,
        kv_bytes_per_stream=layout.num_bytes(pages) if pages else 0,
        workspace_bytes=workspace_bytes(family, config),
        decoder_bytes_per_stream=decoder_state_bytes(family, num_frames),
        text_bytes_per_stream=2 * geometry.elements(rows) * config.torch_dtype.itemsize,
        num_streams=min(by_resource),
        longest_frames=_longest(config, family, num_pages),
    )


def decoder_state_bytes(family: ModelFamily, num_frames: int) -> int:
    """Bytes of a decoder state at the end of a video of `num_frames` pixel frames."""
    codec, (_, height, width) = family.codec, family.settings.latent_shape
    if codec is None:
        return 0
    if isinstance(codec, GrowingCodec):
        latent_frames = chunked_latent_frames(family, num_frames, request_id="plan")
        return codec.state_bytes_after(height, width, latent_frames)
    return codec.state_bytes(height, width)


def pages_for_video(config: EngineConfig, family: ModelFamily, num_frames: int) -> int:
    """Pages that one video of `num_frames` pixel frames holds at its peak."""
    return planned_program(config, family, num_frames).needs.pages


def planned_program(config: EngineConfig, family: ModelFamily, num_frames: int) -> Program:
    """The passes of a video of `num_frames` pixel frames, to be counted and not to be run."""
    settings = family.settings
    inputs = StreamInputs(
        text=TextRows(torch.zeros(1, family.text_dim), settings.text_len),
        num_frames=chunked_latent_frames(family, num_frames, request_id="plan"),
        latent_shape=settings.latent_shape,
        noise=KeyedNoise(0),
    )
    return family.open(inputs, page_size=config.page_size)


def _longest(config: EngineConfig, family: ModelFamily, num_pages: int) -> int | None:
    """The most pixel frames for which a video's pages fit, by bisection; None for any number."""
    if pages_for_video(config, family, MAX_PLANNED_FRAMES) <= num_pages:
        return None
    return bisect_right(
        range(1, MAX_PLANNED_FRAMES),
        num_pages,
        key=lambda num_frames: pages_for_video(config, family, num_frames),
    )
