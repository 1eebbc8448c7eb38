"""WorldPlay-5B as the engine sees it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qvg_engine.errors import RequestError
from qvg_engine.kernels.device_table import send
from qvg_engine.kernels.rope import RopeTables
from qvg_engine.models.attention import EngineAttention
from qvg_engine.models.family import PromptEncoder, VideoCodec
from qvg_engine.models.patch_grid import patch_grid
from qvg_engine.models.program import PassInputs, StreamInputs, TextRows
from qvg_engine.models.ragged_batch import RaggedBatch
from qvg_engine.models.turns import Turns, turn
from qvg_engine.models.worldplay.conditions import WorldPlayConditions
from qvg_engine.models.worldplay.family import FrameNumbers, WorldPlayFamily
from qvg_engine.models.worldplay.passes import WorldPlayPass
from qvg_engine.models.worldplay.settings import WorldPlaySettings
from qvg_engine.models.worldplay.wan_network import CameraWanNetwork

# The published steps of the 5B: 1000, 750, 500 and 250 warped by a shift of 8, rounded.
TIMESTEPS = (1000.0, 960.0, 888.8889, 727.2728)
MEMORY_FRAMES = 16
CHANNELS, LATENT_SIZE = 48, (44, 80)
"""Latent samples of 1280x704 pixels."""


def wan_settings(
    latent_shape: tuple[int, int, int] = (CHANNELS, *LATENT_SIZE),
) -> WorldPlaySettings:
    """The published rollout of the 5B, at 1280x704 unless another latent size is given."""
    return WorldPlaySettings(
        latent_shape=latent_shape,
        window_frames=MEMORY_FRAMES + 4,
        timesteps=TIMESTEPS,
        warp_timesteps=False,
        keeps_image=True,
    )


class WorldPlayWanFamily(WorldPlayFamily):
    """The 5B: text by cross-attention, the first latent frame kept clean."""

    network: CameraWanNetwork

    def __init__(
        self,
        network: CameraWanNetwork,
        settings: WorldPlaySettings,
        *,
        name: str = "worldplay-5b",
        codec: VideoCodec | None = None,
        prompt_encoder: PromptEncoder | None = None,
        turns: Turns | None = None,
    ) -> None:
        """With `turns`, to which it was added, the network is on the device while it is used.

        Raises `ConfigError` if the settings or the VAE do not suit the network.
        """
        self.network = network
        weight = network.head.modulation
        device = weight.device if turns is None else turns.device
        super().__init__(
            settings,
            name=name,
            latent_channels=network.config.in_dim,
            tables=RopeTables(head_dim=network.config.head_dim, device=device),
            weight=weight,
            codec=codec,
            prompt_encoder=prompt_encoder,
            turns=turns,
        )

    def tokens_in_frame(self, height: int, width: int) -> tuple[int, int]:
        return patch_grid(height, width, self.network.config.patch_size)

    @torch.no_grad()
    def forward(
        self, passes: Sequence[PassInputs], attention: EngineAttention, *, batch_invariant: bool
    ) -> list[Tensor]:
        own = [item for item in passes if isinstance(item, WorldPlayPass)]
        assert len(own) == len(passes), "passes of another family"
        patches = [self.network.patchify(item.latents) for item in own]
        batch = RaggedBatch.of(own, patches)
        numbers = FrameNumbers.of(own, self.device)
        with turn(self._turns, self.network):
            flow = self.network.forward_actions(
                torch.cat(patches),
                numbers.timesteps,
                numbers.labels,
                batch.tokens_per_frame,
                attention,
                splits=batch.splits(batch_invariant=batch_invariant),
            )
        return [
            self.network.unpatchify(part, item.latents.shape[2], item.latents.shape[3])
            for part, item in zip(flow.split(batch.num_tokens), own, strict=True)
        ]

    @torch.no_grad()
    def text_keys_values(self, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Cross-attention K and V of text rows [L, text_dim]."""
        with turn(self._turns, self.network):
            return self.network.text_keys_values(send(rows, self.device, self.dtype))

    def _texts(
        self, inputs: StreamInputs, given: WorldPlayConditions, negative: Tensor | None
    ) -> tuple[tuple[TextRows, ...], int]:
        for name in ("glyph_embeds", "negative_glyph_embeds", "image_embeds"):
            if getattr(given, name) is not None:
                raise RequestError(f"conditions have {name}: the 5B takes none")
        texts = [inputs.text]
        if negative is not None:
            texts.append(TextRows(negative.detach(), inputs.text.padded_len))
        return tuple(texts), len(texts) * inputs.text.padded_len

    def _retext(self, text: TextRows, given: WorldPlayConditions) -> TextRows:
        return text

    def _condition(self, image: Tensor | None, inputs: StreamInputs) -> Tensor | None:
        return None
