"""LongCat-Video as the engine sees it: a network, its rollout settings, what is around it."""

from collections.abc import Sequence
from functools import lru_cache

import msgspec
import torch
from torch import Tensor

from qvg_engine.block_manager.format import CacheGeometry
from qvg_engine.errors import ConfigError, RequestError
from qvg_engine.kernels.paged_attention import RopeTransform
from qvg_engine.kernels.rope import RopeGrid, RopeTables
from qvg_engine.kernels.rope.layout import to_interleaved
from qvg_engine.models.attention import Attention
from qvg_engine.models.family import PromptEncoder, VideoCodec
from qvg_engine.models.longcat.conditions import LongCatConditions, check_steps
from qvg_engine.models.longcat.network import LongCatNetwork
from qvg_engine.models.longcat.program import LongCatProgram, Reencode, Rollout
from qvg_engine.models.longcat.reencode import reencoder_for
from qvg_engine.models.longcat.schedule import (
    DEFAULT_STEPS,
    Schedule,
    ScheduleName,
    make_schedule,
)
from qvg_engine.models.longcat.segments import Segment, split_segments
from qvg_engine.models.longcat.text import attended_text
from qvg_engine.models.patch_grid import check_channels, patch_grid
from qvg_engine.models.program import PassInputs, StreamInputs, TextRows
from qvg_engine.models.ragged_batch import RaggedBatch
from qvg_engine.models.rollout import RolloutSettings
from qvg_engine.models.turns import Turns, turn

PUBLISHED_LATENT_SIZE = (60, 104)
"""Height and width of the latents of 832x480 pixels."""
PUBLISHED_SHIFT = 12.0
PUBLISHED_GUIDANCE = 4.0
CONDITION_FRAMES = 4
SEGMENT_FRAMES = 20
TEXT_LEN = 512
DEFAULT_NEGATIVE_PROMPT = (
    "overexposed, washed-out colours, flat and grey picture, blurred details, grain, compression "
    "blocks, watermark, subtitles, deformed hands and faces, extra limbs, frozen motion"
)


class LongCatFamily:
    """A LongCat-Video network, with a VAE and a prompt encoder where they are there."""

    conditions_type: type[msgspec.Struct] = LongCatConditions
    context_frames = CONDITION_FRAMES
    """Latent frames of context that videos start from unless a request says otherwise."""

    def __init__(
        self,
        network: LongCatNetwork,
        *,
        name: str = "longcat",
        latent_shape: tuple[int, int, int] | None = None,
        segment_frames: int = SEGMENT_FRAMES,
        shift: float = PUBLISHED_SHIFT,
        commit_timestep: float = 0.0,
        text_len: int = TEXT_LEN,
        distilled: bool = False,
        codec: VideoCodec | None = None,
        prompt_encoder: PromptEncoder | None = None,
        turns: Turns | None = None,
    ) -> None:
        """`latent_shape` and `segment_frames` are of requests that say nothing else.

        `distilled` says that the LoRA of the few-step schedule is in the weights, and makes that
        schedule the default. With `turns`, to which it was added, the network is on the device
        while it is used. Raises `ConfigError` if the settings do not suit the network.
        """
        config = network.config
        published = (config.in_channels, *PUBLISHED_LATENT_SIZE)
        channels, height, width = latent_shape or published
        if channels != config.in_channels:
            raise ConfigError(
                f"latent_shape is {latent_shape}: the network takes {config.in_channels} channels"
            )
        if segment_frames < 1:
            raise ConfigError(f"frames_per_chunk is {segment_frames}: give a positive number")
        if not 0 < shift < float("inf"):
            raise ConfigError(f"shift is {shift}: give a positive number")
        if not 0 <= commit_timestep < 1000:
            raise ConfigError(f"commit_timestep is {commit_timestep}: give a number in [0, 1000)")
        self.name = name
        self.network = network
        self.codec = codec
        self.prompt_encoder = prompt_encoder
        self.distilled = distilled
        self._segment_frames = segment_frames
        # The engine hands out noise frame by frame: what a segment is, the program says. Its
        # history is a segment's condition, which is replaced, as a window is.
        self.settings = RolloutSettings(
            latent_shape=(channels, height, width),
            frames_per_chunk=1,
            window_frames=CONDITION_FRAMES + segment_frames,
            timesteps=(1000.0,),
            warp_timesteps=False,
            shift=shift,
            commit_timestep=commit_timestep,
            text_len=text_len,
        )
        self._turns = turns
        self._tables = RopeTables(head_dim=config.head_dim, device=self._device)
        rows, columns = self.tokens_in_frame(height, width)
        self.tokens_per_frame = rows * columns
        self._encoded = lru_cache(maxsize=16)(self._encode)

    @property
    def geometry(self) -> CacheGeometry:
        config = self.network.config
        return CacheGeometry(
            num_layers=config.depth, num_kv_heads=config.num_heads, head_dim=config.head_dim
        )

    @property
    def text_dim(self) -> int:
        return self.network.config.caption_channels

    @property
    def _device(self) -> torch.device:
        return self.network.device if self._turns is None else self._turns.device

    def activation_bytes(self, num_tokens: int) -> int:
        """An estimate of what a step of so many tokens computes with, at its widest."""
        config = self.network.config
        itemsize = self.network.dtype.itemsize
        # Beside q, k, v and what attention makes of them: x, in fp32 where it is modulated.
        in_attention = 6 * itemsize + 3 * 4
        in_ffn = 2 * itemsize + 3 * 4
        hidden = max(
            in_attention * config.hidden_size,
            in_ffn * config.hidden_size + 3 * itemsize * config.ffn_dim,
        )
        return num_tokens * hidden

    def tokens_in_frame(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of a latent size; RequestError if patches do not fit."""
        return patch_grid(height, width, self.network.config.patch_size)

    def open(self, inputs: StreamInputs, *, page_size: int) -> LongCatProgram:
        channels, height, width = inputs.latent_shape
        check_channels(channels, self.network.config.in_channels)
        rows, columns = self.tokens_in_frame(height, width)
        conditions = inputs.conditions or LongCatConditions()
        assert isinstance(conditions, LongCatConditions)
        return LongCatProgram(
            inputs,
            self._rollout(inputs, conditions),
            transform=RopeTransform(RopeGrid(self._tables, rows, columns)),
            tokens_per_frame=rows * columns,
            page_size=page_size,
            device=self._device,
            dtype=self.network.dtype,
            attended=self._attended,
        )

    @torch.no_grad()
    def forward(
        self, passes: Sequence[PassInputs], attention: Attention, *, batch_invariant: bool
    ) -> list[Tensor]:
        with turn(self._turns, self.network):
            return self._forward(passes, attention, batch_invariant=batch_invariant)

    @torch.no_grad()
    def text_keys_values(self, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        with turn(self._turns, self.network):
            return self.network.text_keys_values(rows)

    def published_keys(self, keys: Tensor) -> Tensor:
        return to_interleaved(keys)

    def _forward(
        self, passes: Sequence[PassInputs], attention: Attention, *, batch_invariant: bool
    ) -> list[Tensor]:
        patches = [self.network.patchify(item.latents) for item in passes]
        batch = RaggedBatch.of(passes, patches)
        flow = self.network(
            torch.cat(patches),
            batch.timesteps(self.network.device),
            batch.tokens_per_frame,
            attention,
            tokens_per_pass=batch.num_tokens,
            reads_text=[item.reads_text for item in passes],
            splits=batch.splits(batch_invariant=batch_invariant),
        )
        return [
            self.network.unpatchify(part, item.latents.shape[2], item.latents.shape[3])
            for part, item in zip(flow.split(batch.num_tokens), passes, strict=True)
        ]

    def _rollout(self, inputs: StreamInputs, conditions: LongCatConditions) -> Rollout:
        name = conditions.schedule or ("distilled" if self.distilled else "standard")
        guidance = conditions.guidance
        if guidance is None:
            guidance = 1.0 if name == "distilled" else PUBLISHED_GUIDANCE
        segments = self._segments(inputs, conditions)
        from_text = self._schedule(name, conditions, continues=False)
        from_clip = self._schedule(name, conditions, continues=True)
        return Rollout(
            segments=segments,
            schedules=tuple(from_clip if item.continues else from_text for item in segments),
            guidance=guidance,
            prompt=self._attended(inputs.text, conditions.prompt_mask),
            negative=self._negative(conditions) if guidance > 1 else None,
            commit_timestep=self.settings.commit_timestep,
            reencode=self._reencode(conditions) if len(segments) > 1 else None,
        )

    def _schedule(
        self, name: ScheduleName, conditions: LongCatConditions, *, continues: bool
    ) -> Schedule:
        num_steps = conditions.num_steps or DEFAULT_STEPS[name]
        check_steps(num_steps, name)
        enhance_hf = conditions.enhance_hf
        if enhance_hf is None:
            enhance_hf = continues and name == "standard"
        return make_schedule(
            name, num_steps=num_steps, shift=self.settings.shift, enhance_hf=enhance_hf
        )

    def _segments(self, inputs: StreamInputs, conditions: LongCatConditions) -> tuple[Segment, ...]:
        context = 0 if inputs.context_latents is None else len(inputs.context_latents)
        return split_segments(
            inputs.num_frames,
            context_frames=context,
            condition_frames=conditions.condition_frames or context or CONDITION_FRAMES,
            segment_frames=conditions.segment_frames or self._segment_frames,
        )

    def _reencode(self, conditions: LongCatConditions) -> Reencode | None:
        if conditions.continue_from == "latents":
            return None
        reencode = reencoder_for(self.codec)
        if reencode is None and conditions.continue_from == "pixels":
            raise RequestError(
                f"continue_from is 'pixels', but model {self.name!r} has no VAE here that encodes: "
                "use 'latents'"
            )
        return reencode

    def _negative(self, conditions: LongCatConditions) -> TextRows:
        rows = conditions.negative_prompt_embeds
        if rows is None:
            if self.prompt_encoder is None:
                raise RequestError(
                    f"guidance needs a negative prompt, and model {self.name!r} has no text "
                    "encoder here: give negative_prompt_embeds, or guidance=1"
                )
            negative = conditions.negative_prompt
            rows = self._encoded(DEFAULT_NEGATIVE_PROMPT if negative is None else negative)
        text_len = self.settings.text_len
        if rows.ndim != 2 or rows.shape[1] != self.text_dim or not 1 <= len(rows) <= text_len:
            raise RequestError(
                f"negative_prompt_embeds is {list(rows.shape)}: give [L, {self.text_dim}] with L "
                f"from 1 to {text_len}"
            )
        if not rows.isfinite().all():
            raise RequestError("negative_prompt_embeds has NaN or Inf")
        text = TextRows(rows.detach().cpu(), text_len)
        return self._attended(text, conditions.negative_mask, name="negative prompt")

    def _encode(self, prompt: str) -> Tensor:
        assert self.prompt_encoder is not None
        if self.network.device.type == "meta":
            # A plan reads nothing but the size.
            return torch.zeros(1, self.text_dim)
        return self.prompt_encoder.encode(prompt)[0]

    def _attended(
        self, text: TextRows, mask: Tensor | None = None, *, name: str = "prompt"
    ) -> TextRows:
        zero_pad = self.network.config.text_tokens_zero_pad
        return attended_text(text, mask, zero_pad=zero_pad, name=name)
