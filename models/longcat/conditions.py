"""What a request to LongCat-Video may say beside its prompt."""

import math
from typing import Literal, get_args

import msgspec
from torch import Tensor

from qvg_engine.errors import RequestError
from qvg_engine.models.longcat.schedule import TABLE_STEPS, ScheduleName

MAX_STEPS = 1000

ContinueFrom = Literal["pixels", "latents"]


class LongCatConditions(
    msgspec.Struct, frozen=True, kw_only=True, eq=False, forbid_unknown_fields=True
):
    """Guidance, schedule and segments of one video; a field that is None takes the default.

    * `guidance`: 1 or more; 4, or 1 with the distilled schedule. At 1 the prompt is run
      alone, and what is negative is not used.
    * `negative_prompt`, or `negative_prompt_embeds` [L, text_dim]: the other branch of guidance.
      Where there is a text encoder it has a default.
    * `prompt_mask`, `negative_mask` [L]: which rows of the embeddings are of the text (not 0); the
      others are padding, and the L rows are all that is attended to. Without a mask every row is
      of the text, and padding up to the engine's `text_len` follows.
    * `schedule`: "standard" or "distilled"; "distilled" if its LoRA was merged into the weights.
    * `num_steps`: denoising steps before `enhance_hf`; 50, or 16 with the distilled schedule.
    * `enhance_hf`: replace the steps at t <= 500 by ten even ones. By default in segments that
      continue a clip, of the standard schedule.
    * `segment_frames`: new latent frames of a segment that continues a clip; the engine's
      `frames_per_chunk`. A segment of text alone has `condition_frames` more.
    * `condition_frames`: latent frames that a later segment continues from; as many as
      `context_latents`, or 4.
    * `continue_from`: "pixels" decodes a segment and encodes its last frames anew, as published;
      "latents" takes its last latent frames as they are. "pixels" where there is a VAE that
      encodes.

    Raises `RequestError` naming field and value.
    """

    guidance: float | None = None
    negative_prompt: str | None = None
    negative_prompt_embeds: Tensor | None = None
    prompt_mask: Tensor | None = None
    negative_mask: Tensor | None = None
    schedule: ScheduleName | None = None
    num_steps: int | None = None
    enhance_hf: bool | None = None
    segment_frames: int | None = None
    condition_frames: int | None = None
    continue_from: ContinueFrom | None = None

    def __post_init__(self) -> None:
        if self.guidance is not None and not (
            type(self.guidance) in (int, float) and 1 <= self.guidance < math.inf
        ):
            raise RequestError(f"guidance is {self.guidance!r}: give a number of at least 1")
        if self.negative_prompt is not None and self.negative_prompt_embeds is not None:
            raise RequestError(
                "negative_prompt and negative_prompt_embeds are both given: give one of them"
            )
        if self.negative_mask is not None and self.negative_prompt_embeds is None:
            raise RequestError("negative_mask is given without negative_prompt_embeds")
        for name, choices in (("schedule", ScheduleName), ("continue_from", ContinueFrom)):
            value = getattr(self, name)
            if value is not None and value not in get_args(choices):
                raise RequestError(
                    f"{name} is {value!r}: give one of {', '.join(get_args(choices))}"
                )
        for name in ("num_steps", "segment_frames", "condition_frames"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 1 <= value <= MAX_STEPS):
                raise RequestError(
                    f"{name} is {value!r}: give a whole number from 1 to {MAX_STEPS}"
                )
        if self.enhance_hf is not None and type(self.enhance_hf) is not bool:
            raise RequestError(f"enhance_hf is {self.enhance_hf!r}: give True or False")


def check_steps(num_steps: int, schedule: ScheduleName) -> None:
    """`RequestError` for more steps than the distilled schedule has."""
    if schedule == "distilled" and num_steps > TABLE_STEPS:
        raise RequestError(
            f"num_steps is {num_steps}: the distilled schedule has at most {TABLE_STEPS}"
        )
