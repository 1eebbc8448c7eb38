"""The sizes of the HunyuanVideo-1.5 network with WorldPlay's additions."""

from collections.abc import Mapping

import msgspec
from torch import Tensor

from qvg_engine.errors import CheckpointError, ConfigError

PUBLISHED_ROPE_DIMS = (16, 56, 56)
PUBLISHED_ROPE_THETA = 256.0


class HunyuanConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of the network, by default those of the published 8B.

    `latent_channels` are those of the VAE: the network takes them twice, noisy and of the first
    image, with a mask channel. `rope_dims` are channels of a head for time, height and width.
    `glyph_*` are of ByT5's states, `image_dim` of SigLIP's, `text_dim` of the language model's.
    """

    dim: int = 2048
    num_heads: int = 16
    num_layers: int = 54
    mlp_dim: int = 8192
    latent_channels: int = 32
    text_dim: int = 3584
    refiner_layers: int = 2
    refiner_mlp_dim: int = 8192
    glyph_dim: int = 1472
    glyph_hidden: int = 2048
    image_dim: int = 1152
    freq_dim: int = 256
    rope_dims: tuple[int, int, int] = PUBLISHED_ROPE_DIMS
    rope_theta: float = PUBLISHED_ROPE_THETA
    eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, int | float) and value <= 0:
                raise ConfigError(f"{name} is {value}: give a positive number")
        if self.freq_dim % 2:
            raise ConfigError(f"freq_dim is {self.freq_dim}: give an even number")
        if self.dim % self.num_heads or self.head_dim % 4:
            raise ConfigError(
                f"dim {self.dim} over num_heads {self.num_heads}: give a number of heads that "
                "divides dim into heads of a multiple of 4 channels"
            )
        if sum(self.rope_dims) != self.head_dim or any(d < 0 or d % 2 for d in self.rope_dims):
            raise ConfigError(
                f"rope_dims is {self.rope_dims}: give three even numbers that add up to the "
                f"{self.head_dim} channels of a head"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.dim // self.num_heads

    @property
    def in_channels(self) -> int:
        """Channels that the network takes."""
        return 2 * self.latent_channels + 1

    @property
    def rope_pairs(self) -> tuple[int, int, int]:
        """Rotation pairs of time, height and width."""
        t, h, w = self.rope_dims
        return t // 2, h // 2, w // 2


def config_from_weights(
    weights: Mapping[str, Tensor],
    *,
    rope_dims: tuple[int, int, int] = PUBLISHED_ROPE_DIMS,
    rope_theta: float = PUBLISHED_ROPE_THETA,
) -> HunyuanConfig:
    """Read every size from a state dict with the published names; RoPE is not among them.

    Raises `CheckpointError` if a key that carries a size is missing.
    """
    refiner = "txt_in.individual_token_refiner.blocks."
    try:
        dim = weights["img_in.proj.weight"].shape[0]
        layers = {int(key.split(".")[1]) for key in weights if key.startswith("double_blocks.")}
        refiners = {int(key.split(".")[3]) for key in weights if key.startswith(refiner)}
        return HunyuanConfig(
            dim=dim,
            num_heads=dim // weights["double_blocks.0.img_attn_q_norm.weight"].shape[0],
            num_layers=len(layers),
            mlp_dim=weights["double_blocks.0.img_mlp.fc1.weight"].shape[0],
            latent_channels=weights["final_layer.linear.weight"].shape[0],
            text_dim=weights["txt_in.input_embedder.weight"].shape[1],
            refiner_layers=len(refiners),
            refiner_mlp_dim=weights[f"{refiner}0.mlp.fc1.weight"].shape[0],
            glyph_dim=weights["byt5_in.fc1.weight"].shape[1],
            glyph_hidden=weights["byt5_in.fc1.weight"].shape[0],
            image_dim=weights["vision_in.proj.0.weight"].shape[0],
            freq_dim=weights["time_in.mlp.0.weight"].shape[1],
            rope_dims=rope_dims,
            rope_theta=rope_theta,
        )
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"not a WorldPlay-8B network: {error} is missing or malformed; give the state dict of "
            "its diffusion_pytorch_model.safetensors"
        ) from error
