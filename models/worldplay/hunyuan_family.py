"""WorldPlay-8B as the engine sees it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qvg_engine.kernels.device_table import send
from qvg_engine.kernels.rope import RopeTables
from qvg_engine.models.attention import EngineAttention
from qvg_engine.models.family import PromptEncoder, VideoCodec
from qvg_engine.models.program import PassInputs, StreamInputs, TextRows
from qvg_engine.models.ragged_batch import RaggedBatch
from qvg_engine.models.turns import Turns, turn
from qvg_engine.models.worldplay.conditions import WorldPlayConditions, check_rows
from qvg_engine.models.worldplay.family import FrameNumbers, WorldPlayFamily
from qvg_engine.models.worldplay.hunyuan_network import HunyuanNetwork
from qvg_engine.models.worldplay.hunyuan_states import pack_states, unpack_states
from qvg_engine.models.worldplay.passes import WorldPlayPass
from qvg_engine.models.worldplay.settings import WorldPlaySettings

MEMORY_FRAMES = 20
CHANNELS, LATENT_SIZE = 32, (30, 52)
"""Latent samples of 832x480 pixels."""
TEXT_LEN = 1000
DISTILLED_TIMESTEPS = (1000.0, 750.0, 500.0, 250.0)
GUIDED_STEPS, GUIDANCE_SCALE = 50, 6.0


def hunyuan_settings(
    latent_shape: tuple[int, int, int] = (CHANNELS, *LATENT_SIZE), *, distilled: bool = True
) -> WorldPlaySettings:
    """The published rollout of the 8B, at 832x480 unless another latent size is given.

    Distilled weights take 4 steps, the others 50 with guidance.
    """
    steps = tuple(1000.0 * (GUIDED_STEPS - i) / GUIDED_STEPS for i in range(GUIDED_STEPS))
    return WorldPlaySettings(
        latent_shape=latent_shape,
        window_frames=MEMORY_FRAMES + 4,
        sink_frames=4,
        timesteps=DISTILLED_TIMESTEPS if distilled else steps,
        warp_timesteps=True,
        shift=5.0,
        text_len=TEXT_LEN,
        guidance_scale=1.0 if distilled else GUIDANCE_SCALE,
    )


class WorldPlayHunyuanFamily(WorldPlayFamily):
    """The 8B: text joins the attention of the video, the first image comes as channels."""

    network: HunyuanNetwork

    def __init__(
        self,
        network: HunyuanNetwork,
        settings: WorldPlaySettings,
        *,
        name: str = "worldplay-8b",
        codec: VideoCodec | None = None,
        prompt_encoder: PromptEncoder | None = None,
        turns: Turns | None = None,
    ) -> None:
        """With `turns`, to which it was added, the network is on the device while it is used.

        Raises `ConfigError` if the settings or the VAE do not suit the network.
        """
        self.network = network
        config, weight = network.config, network.final_layer.linear.weight
        super().__init__(
            settings,
            name=name,
            latent_channels=config.latent_channels,
            tables=RopeTables(
                head_dim=config.head_dim,
                base=config.rope_theta,
                pairs=config.rope_pairs,
                device=weight.device if turns is None else turns.device,
            ),
            weight=weight,
            codec=codec,
            prompt_encoder=prompt_encoder,
            turns=turns,
        )

    def tokens_in_frame(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def published_text_keys(self, keys: Tensor) -> Tensor:
        """Text keys [..., head_dim] in the original channel order."""
        return self.published_keys(keys)

    @torch.no_grad()
    def forward(
        self, passes: Sequence[PassInputs], attention: EngineAttention, *, batch_invariant: bool
    ) -> list[Tensor]:
        own = [item for item in passes if isinstance(item, WorldPlayPass)]
        assert len(own) == len(passes), "passes of another family"
        samples = [item.latents.permute(0, 2, 3, 1).flatten(0, 2) for item in own]
        batch = RaggedBatch.of(own, samples)
        numbers = FrameNumbers.of(own, self.device)
        with turn(self._turns, self.network):
            flow = self.network(
                torch.cat(samples),
                numbers.timesteps,
                numbers.labels,
                batch.tokens_per_frame,
                attention,
                splits=batch.splits(batch_invariant=batch_invariant),
            )
        flows = []
        for part, item in zip(flow.split(batch.num_tokens), own, strict=True):
            height, width = item.latents.shape[2:]
            flows.append(part.unflatten(0, (-1, height, width)).permute(0, 3, 1, 2))
        return flows

    @torch.no_grad()
    def text_keys_values(self, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        """K and V in every block of a text, its rows packed by `pack_states`."""
        language, glyphs, image = (
            None if states is None else send(states, self.device, self.dtype)
            for states in unpack_states(self.network.config, rows)
        )
        assert language is not None
        with turn(self._turns, self.network):
            return self.network.text_keys_values(self.network.text_tokens(language, glyphs, image))

    def _texts(
        self, inputs: StreamInputs, given: WorldPlayConditions, negative: Tensor | None
    ) -> tuple[tuple[TextRows, ...], int]:
        config = self.network.config
        for name, width in (
            ("glyph_embeds", config.glyph_dim),
            ("negative_glyph_embeds", config.glyph_dim),
            ("image_embeds", config.image_dim),
        ):
            if getattr(given, name) is not None:
                check_rows(name, getattr(given, name), width)
        texts = [self._packed(inputs.text.rows, given.glyph_embeds, given)]
        longest = len(texts[0].rows) - len(inputs.text.rows) + self.settings.text_len
        if negative is not None:
            texts.append(self._packed(negative, given.negative_glyph_embeds, given))
            longest += len(texts[1].rows)
        return tuple(texts), longest

    def _retext(self, text: TextRows, given: WorldPlayConditions) -> TextRows:
        # Glyphs are of words that the old prompt quoted.
        return self._packed(text.rows, None, given)

    def _packed(
        self, language: Tensor, glyphs: Tensor | None, given: WorldPlayConditions
    ) -> TextRows:
        """The text of a branch; no padding, so nothing is masked."""
        rows = pack_states(self.network.config, language, glyphs, given.image_embeds)
        return TextRows(rows, len(rows))

    def _condition(self, image: Tensor | None, inputs: StreamInputs) -> Tensor | None:
        """The image's latents and a mask of ones, or zeros without an image, [C + 1, h, w]."""
        channels, height, width = inputs.latent_shape
        condition = torch.zeros(channels + 1, height, width, device=self.device)
        if image is not None:
            condition[:-1], condition[-1] = image, 1
        return condition
