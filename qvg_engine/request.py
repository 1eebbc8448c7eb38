"""A request for one video."""

from typing import Literal

import msgspec
from torch import Tensor

from qvg_engine.errors import RequestError

MAX_PIXEL_FRAMES = 10_000_000


class VideoRequest(msgspec.Struct, frozen=True, kw_only=True, eq=False, forbid_unknown_fields=True):
    """One video to generate; no tensor has a batch axis.

    * `request_id`: a name that no other unfinished request has.
    * `prompt`, or `prompt_embeds` [L, text_dim] (L up to the engine's `text_len`).
    * `num_frames`: pixel frames; without it their number follows from `noise`.
    * `noise` [F, C, h, w]: start noise in latent frames, F a multiple of the chunk;
      `renoise` [chunks, steps - 1, frames per chunk, C, h, w]: the noise after each denoising
      pass but the last. Both are drawn from `seed` where they are not given.
    * `output`: "video" (uint8 frames) or "latents".
    * `priority`: smaller is served first.
    * `context_latents` [F, C, h, w]: clean latents that the video continues from.
    * `conditions`: a struct of the model family, for what else it is conditioned on.
    * `trace`: also return every pass's x0 and flow, and the K/V at the end.

    Raises `RequestError` naming field and value; what depends on the model is checked by
    `VideoEngine.add_request`.
    """

    request_id: str
    prompt: str | None = None
    prompt_embeds: Tensor | None = None
    noise: Tensor | None = None
    renoise: Tensor | None = None
    num_frames: int | None = None
    output: Literal["video", "latents"] = "video"
    seed: int = 0
    priority: int = 0
    context_latents: Tensor | None = None
    conditions: msgspec.Struct | None = None
    trace: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.request_id, str) or not self.request_id:
            raise RequestError(f"request_id is {self.request_id!r}: give a text that names it")
        if (self.prompt is None) == (self.prompt_embeds is None):
            raise RequestError(
                f"request {self.request_id!r}: give either prompt or prompt_embeds, not both"
            )
        if self.prompt is not None and not self.prompt.strip():
            raise RequestError(
                f"request {self.request_id!r}: the prompt is empty: describe a video"
            )
        if self.output not in ("video", "latents"):
            raise RequestError(f"output is {self.output!r}: give 'video' or 'latents'")
        if self.noise is None and self.num_frames is None:
            raise RequestError(f"request {self.request_id!r}: give num_frames or noise")
        if self.renoise is not None and self.noise is None:
            raise RequestError(f"request {self.request_id!r}: renoise needs noise")
        for name in ("seed", "priority"):
            if type(getattr(self, name)) is not int:
                raise RequestError(f"{name} is {getattr(self, name)!r}: give a whole number")
        if not 0 <= self.seed < 2**128:
            raise RequestError(f"seed is {self.seed}: give a number from 0 to 2**128 - 1")
        frames = self.num_frames
        if frames is not None and (type(frames) is not int or not 1 <= frames <= MAX_PIXEL_FRAMES):
            raise RequestError(
                f"num_frames is {frames!r}: give a whole number from 1 to {MAX_PIXEL_FRAMES:,}"
            )
