"""What WorldPlay's two models have in common as families of the engine."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor

from qvg_engine.block_manager.format import CacheGeometry
from qvg_engine.errors import ConfigError, RequestError
from qvg_engine.kernels.device_table import send
from qvg_engine.kernels.rope import RopeGrid, RopeTables
from qvg_engine.kernels.rope.layout import to_interleaved
from qvg_engine.models.family import PromptEncoder, VideoCodec
from qvg_engine.models.noise import GivenNoise
from qvg_engine.models.patch_grid import check_channels
from qvg_engine.models.program import StreamInputs, TextRows
from qvg_engine.models.turns import Turns
from qvg_engine.models.worldplay.conditions import WorldPlayConditions, check_rows
from qvg_engine.models.worldplay.hunyuan_network import HunyuanNetwork
from qvg_engine.models.worldplay.passes import WorldPlayPass
from qvg_engine.models.worldplay.program import WorldPlayProgram, WorldPlayVideo
from qvg_engine.models.worldplay.sampler import EulerSampler
from qvg_engine.models.worldplay.settings import WorldPlaySettings
from qvg_engine.models.worldplay.wan_network import CameraWanNetwork


class FrameNumbers(msgspec.Struct, frozen=True):
    """Timesteps and action labels [F] of the latent frames of a batch, in one copy."""

    timesteps: Tensor
    labels: Tensor

    @classmethod
    def of(cls, passes: Sequence[WorldPlayPass], device: torch.device) -> "FrameNumbers":
        timesteps = [t for item in passes for t in item.timesteps]
        labels = [label for item in passes for label in item.labels]
        both = send(torch.tensor([timesteps, labels], dtype=torch.float64), device)
        return cls(both[0], both[1])


class WorldPlayFamily(ABC):
    """A network with cameras and actions, with a VAE and a prompt encoder where they are there."""

    conditions_type: type[msgspec.Struct] = WorldPlayConditions
    network: CameraWanNetwork | HunyuanNetwork

    def __init__(
        self,
        settings: WorldPlaySettings,
        *,
        name: str,
        latent_channels: int,
        tables: RopeTables,
        weight: Tensor,
        codec: VideoCodec | None,
        prompt_encoder: PromptEncoder | None,
        turns: Turns | None,
    ) -> None:
        """`weight` has the device and dtype of all; the network is on the device in its `turns`.

        Raises `ConfigError`.
        """
        if settings.latent_shape[0] != latent_channels:
            raise ConfigError(
                f"latent_shape is {settings.latent_shape}: the network takes {latent_channels} "
                "channels"
            )
        self._latent_channels = latent_channels
        self.name = name
        self.settings = settings
        self.surround(codec, prompt_encoder)
        self.device, self.dtype = weight.device if turns is None else turns.device, weight.dtype
        self._turns = turns
        self.sampler = EulerSampler(
            settings.timesteps,
            shift=settings.shift,
            warp_timesteps=settings.warp_timesteps,
            commit_timestep=settings.commit_timestep,
        )
        self._tables = tables
        rows, columns = self.tokens_in_frame(*settings.latent_shape[1:])
        self.tokens_per_frame = rows * columns

    def surround(self, codec: VideoCodec | None, prompt_encoder: PromptEncoder | None) -> None:
        """Set what is around the network; ConfigError for a VAE of another one."""
        if codec is not None and codec.latent_channels != self._latent_channels:
            raise ConfigError(
                f"the VAE has {codec.latent_channels} channels, the network "
                f"{self._latent_channels}: give the one that belongs to it"
            )
        self.codec = codec
        self.prompt_encoder = prompt_encoder

    @property
    def geometry(self) -> CacheGeometry:
        config = self.network.config
        return CacheGeometry(
            num_layers=config.num_layers,
            num_kv_heads=config.num_heads,
            head_dim=config.head_dim,
        )

    @property
    def text_dim(self) -> int:
        return self.network.config.text_dim

    @abstractmethod
    def tokens_in_frame(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of a latent size; RequestError if patches do not fit."""

    @abstractmethod
    def _texts(
        self, inputs: StreamInputs, given: WorldPlayConditions, negative: Tensor | None
    ) -> tuple[tuple[TextRows, ...], int]:
        """The text of every branch, and the most rows that they will have together."""

    @abstractmethod
    def _retext(self, text: TextRows, given: WorldPlayConditions) -> TextRows:
        """The first branch's text after a switch."""

    @abstractmethod
    def _condition(self, image: Tensor | None, inputs: StreamInputs) -> Tensor | None:
        """Channels [Cc, h, w] that go to the network with the first latent frame."""

    def published_keys(self, keys: Tensor) -> Tensor:
        """Keys [..., head_dim] in the original channel order."""
        return to_interleaved(keys)

    @torch.no_grad()
    def open(self, inputs: StreamInputs, *, page_size: int) -> WorldPlayProgram:
        """Start a program; RequestError if the inputs do not suit the model."""
        check_channels(inputs.latent_shape[0], self._latent_channels)
        if isinstance(inputs.noise, GivenNoise) and inputs.noise.has_renoise:
            raise RequestError(
                "renoise is given: Euler steps take no noise in between; leave it out"
            )
        given = inputs.conditions or WorldPlayConditions()
        assert isinstance(given, WorldPlayConditions)
        image, context = self._beginning(inputs, given)
        num_frames = inputs.num_frames + (0 if context is None else len(context))
        cameras = given.camera_path(num_frames)
        guidance = given.guidance(self.settings)
        negative = self._negative(given, guidance)
        texts, text_rows = self._texts(inputs, given, negative)
        rows, columns = self.tokens_in_frame(*inputs.latent_shape[1:])
        video = WorldPlayVideo(
            inputs=inputs,
            context=context,
            cameras=cameras,
            labels=given.labels(cameras),
            texts=texts,
            text_rows=text_rows,
            retext=lambda text: self._retext(text, given),
            points=given.points(),
            guidance_scale=guidance,
            condition=self._condition(image, inputs),
            image=image if self.settings.keeps_image else None,
        )
        return WorldPlayProgram(
            video,
            settings=self.settings,
            sampler=self.sampler,
            grid=RopeGrid(self._tables, rows, columns),
            page_size=page_size,
            device=self.device,
            dtype=self.dtype,
        )

    def _beginning(
        self, inputs: StreamInputs, given: WorldPlayConditions
    ) -> tuple[Tensor | None, Tensor | None]:
        """The first image [C, h, w], in fp32 on the device, and the context [F, C, h, w]."""
        context, image = inputs.context_latents, self._image_latents(given)
        chunk = self.settings.frames_per_chunk
        if context is not None and len(context) % chunk:
            raise RequestError(
                f"context_latents has {len(context)} latent frames: give a multiple of "
                f"frames_per_chunk, {chunk}; a first image goes to the conditions' image_latents"
            )
        if context is not None and image is not None and self.settings.keeps_image:
            raise RequestError(
                "give image_latents or context_latents, not both: either is how the video begins"
            )
        if image is None:
            return None, context
        if tuple(image.shape) != (1, *inputs.latent_shape) or not image.isfinite().all():
            raise RequestError(
                f"the first image's latents are {list(image.shape)}: give finite [1, "
                f"{', '.join(map(str, inputs.latent_shape))}], or an image of the video's size"
            )
        return send(image[0], self.device, torch.float32), context

    def _image_latents(self, given: WorldPlayConditions) -> Tensor | None:
        if given.image is None:
            return given.image_latents
        if self.codec is None:
            raise RequestError(
                "image is given, and there is no VAE here to encode it: give image_latents"
            )
        return self.codec.encode(given.image[None])

    def _negative(self, given: WorldPlayConditions, guidance: float) -> Tensor | None:
        """The language states that guidance leads away from; None without guidance."""
        rows = given.negative_prompt_embeds
        if guidance == 1:
            for name in ("negative_prompt", "negative_prompt_embeds", "negative_glyph_embeds"):
                if getattr(given, name) is not None:
                    raise RequestError(
                        f"{name} is given, but guidance_scale is 1: give more, or leave it out"
                    )
            return None
        if rows is None:
            if given.negative_prompt is None or self.prompt_encoder is None:
                raise RequestError(
                    "guidance needs negative_prompt_embeds [L, text_dim], or negative_prompt and "
                    "a model with its text encoder: give one, or guidance_scale 1"
                )
            rows, _ = self.prompt_encoder.encode(given.negative_prompt)
        check_rows("negative_prompt_embeds", rows, self.text_dim)
        if len(rows) > self.settings.text_len:
            raise RequestError(
                f"negative_prompt_embeds has {len(rows)} rows: give up to {self.settings.text_len}"
            )
        return rows
