"""The causal Wan family as the engine sees it: a network, its rollout settings, its codecs."""

from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import torch
from torch import Tensor

from qvg_engine.block_manager.format import CacheGeometry
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.device_table import send
from qvg_engine.kernels.paged_attention import RopeTransform
from qvg_engine.kernels.rope import RopeGrid, RopeTables
from qvg_engine.kernels.rope.layout import to_interleaved
from qvg_engine.models.attention import Attention
from qvg_engine.models.family import PromptEncoder, VideoCodec
from qvg_engine.models.patch_grid import check_channels, patch_grid
from qvg_engine.models.program import PassInputs, StreamInputs
from qvg_engine.models.ragged_batch import RaggedBatch
from qvg_engine.models.rollout import RolloutSettings
from qvg_engine.models.turns import Turns, turn
from qvg_engine.models.wan.network import WanNetwork
from qvg_engine.models.wan.program import WanProgram
from qvg_engine.models.wan.rollouts import RolloutProgram
from qvg_engine.models.wan.sampler import FewStepSampler


class WanConditions(msgspec.Struct, frozen=True):
    """Conditions of a request to this family: none beside the text."""


class WanFamily:
    """A causal Wan network, with a VAE and a prompt encoder where they are there."""

    conditions_type: type[msgspec.Struct] = WanConditions

    def __init__(
        self,
        network: WanNetwork,
        settings: RolloutSettings,
        *,
        name: str = "wan",
        codec: VideoCodec | None = None,
        prompt_encoder: PromptEncoder | None = None,
        turns: Turns | None = None,
    ) -> None:
        """With `turns`, to which it was added, the network is on the device while it is used.

        Raises `ConfigError` if the settings do not suit the network.
        """
        if settings.latent_shape[0] != network.config.in_dim:
            raise ConfigError(
                f"latent_shape is {settings.latent_shape}: the network takes "
                f"{network.config.in_dim} channels"
            )
        self.name = name
        self.network = network
        self.settings = settings
        self.codec = codec
        self.prompt_encoder = prompt_encoder
        self._turns = turns
        self.sampler = FewStepSampler(
            settings.timesteps,
            shift=settings.shift,
            warp_timesteps=settings.warp_timesteps,
            commit_timestep=settings.commit_timestep,
        )
        self._tables = RopeTables(head_dim=network.config.head_dim, device=self._device)
        rows, columns = self.tokens_in_frame(*settings.latent_shape[1:])
        self.tokens_per_frame = rows * columns

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

    @property
    def _device(self) -> torch.device:
        if self._turns is not None:
            return self._turns.device
        return self.network.head.modulation.device

    def activation_bytes(self, num_tokens: int) -> int:
        """An estimate of what a step of so many tokens computes with, at its widest."""
        config = self.network.config
        in_attention, in_ffn = 9 * config.dim, 3 * config.dim + 2 * config.ffn_dim
        itemsize = self.network.head.modulation.element_size()
        return num_tokens * max(in_attention, in_ffn) * itemsize

    def tokens_in_frame(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of a latent size; RequestError if patches do not fit."""
        return patch_grid(height, width, self.network.config.patch_size)

    def open(self, inputs: StreamInputs, *, page_size: int) -> WanProgram:
        channels, height, width = inputs.latent_shape
        check_channels(channels, self.network.config.in_dim)
        rows, columns = self.tokens_in_frame(height, width)
        make: Callable[..., WanProgram] = WanProgram
        if self.settings.rollout_frames is not None:
            make = partial(RolloutProgram, codec=self.codec)
        return make(
            inputs,
            settings=self.settings,
            sampler=self.sampler,
            transform=RopeTransform(RopeGrid(self._tables, rows, columns)),
            tokens_per_frame=rows * columns,
            page_size=page_size,
            device=self._device,
            dtype=self.network.head.modulation.dtype,
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
            weight = self.network.head.modulation
            return self.network.text_keys_values(send(rows, weight.device, weight.dtype))

    def published_keys(self, keys: Tensor) -> Tensor:
        return to_interleaved(keys)

    def _forward(
        self, passes: Sequence[PassInputs], attention: Attention, *, batch_invariant: bool
    ) -> list[Tensor]:
        patches = [self.network.patchify(item.latents) for item in passes]
        batch = RaggedBatch.of(passes, patches)
        flow = self.network(
            torch.cat(patches),
            batch.timesteps(self._device),
            batch.tokens_per_frame,
            attention,
            splits=batch.splits(batch_invariant=batch_invariant),
        )
        return [
            self.network.unpatchify(part, item.latents.shape[2], item.latents.shape[3])
            for part, item in zip(flow.split(batch.num_tokens), passes, strict=True)
        ]
