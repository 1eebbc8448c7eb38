"""The sizes of a causal Wan network, given or read from its weights."""

from collections.abc import Mapping

import msgspec
from torch import Tensor

from qvg_engine.errors import CheckpointError, ConfigError

# Every published network of this family has heads of 128 channels; the number of heads cannot be
# read from the weights, so this decides it where no config does.
PUBLISHED_HEAD_DIM = 128


class WanConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of the network; `patch_size` is (time, height, width) in latent samples."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int = 16
    out_dim: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim", "text_dim"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name} is {value}: give a positive number")
        if self.freq_dim < 2 or self.freq_dim % 2:
            raise ConfigError(f"freq_dim is {self.freq_dim}: give a positive even number")
        if self.dim % self.num_heads or self.head_dim % 2 or self.head_dim < 6:
            raise ConfigError(
                f"dim {self.dim} over num_heads {self.num_heads}: give a number of heads that "
                "divides dim into even heads of at least 6 channels"
            )
        if self.patch_size[0] != 1 or min(self.patch_size) < 1:
            raise ConfigError(
                f"patch_size is {self.patch_size}: the first number must be 1, the others positive"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.dim // self.num_heads

    @property
    def patch_samples(self) -> int:
        """Latent samples of one channel under one token."""
        return self.patch_size[0] * self.patch_size[1] * self.patch_size[2]


def config_from_weights(
    weights: Mapping[str, Tensor], *, num_heads: int | None = None
) -> WanConfig:
    """Read every size from a state dict with Wan's key names.

    Raises `CheckpointError` if a key that carries a size is missing.
    """
    try:
        patch = weights["patch_embedding.weight"]
        dim, in_dim = patch.shape[:2]
        patch_size = (int(patch.shape[2]), int(patch.shape[3]), int(patch.shape[4]))
        layers = {int(key.split(".")[1]) for key in weights if key.startswith("blocks.")}
        out_samples = weights["head.head.weight"].shape[0]
        return WanConfig(
            dim=dim,
            ffn_dim=weights["blocks.0.ffn.0.weight"].shape[0],
            num_heads=num_heads or max(1, dim // PUBLISHED_HEAD_DIM),
            num_layers=len(layers),
            in_dim=in_dim,
            out_dim=out_samples // (patch_size[0] * patch_size[1] * patch_size[2]),
            text_dim=weights["text_embedding.0.weight"].shape[1],
            freq_dim=weights["time_embedding.0.weight"].shape[1],
            patch_size=patch_size,
        )
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"not a causal Wan network: {error} is missing or malformed; give the generator's "
            "state dict with Wan or diffusers key names"
        ) from error
