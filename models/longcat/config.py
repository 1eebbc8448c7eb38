"""The sizes of a LongCat-Video network, as `dit/config.json` states them."""

import warnings
from collections.abc import Mapping
from typing import Any

import msgspec

from qvg_engine.errors import CheckpointError, ConfigError

CLASS_NAME = "LongCatVideoTransformer3DModel"
_FFN_MULTIPLE = 256


class LongCatConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of the network under their published names; the defaults are those of 13.6B.

    `patch_size` is (time, height, width) in latent samples. With `text_tokens_zero_pad` the rows
    of a text's padding are zero behind the text MLP, and are attended to; else they are left out.
    Settings of the published implementation that do not change what is computed (which attention
    library runs, how it is split over devices) are not among the fields.
    """

    in_channels: int = 16
    out_channels: int = 16
    hidden_size: int = 4096
    depth: int = 48
    num_heads: int = 32
    caption_channels: int = 4096
    mlp_ratio: float = 4
    adaln_tembed_dim: int = 512
    frequency_embedding_size: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    text_tokens_zero_pad: bool = False
    eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in (
            "in_channels",
            "out_channels",
            "hidden_size",
            "depth",
            "num_heads",
            "caption_channels",
            "mlp_ratio",
            "adaln_tembed_dim",
        ):
            value = getattr(self, name)
            if value <= 0:
                raise ConfigError(f"{name} is {value}: give a positive number")
        if self.frequency_embedding_size < 2 or self.frequency_embedding_size % 2:
            raise ConfigError(
                f"frequency_embedding_size is {self.frequency_embedding_size}: give a positive "
                "even number"
            )
        if self.hidden_size % self.num_heads or self.head_dim % 2 or self.head_dim < 6:
            raise ConfigError(
                f"hidden_size {self.hidden_size} over num_heads {self.num_heads}: give a number "
                "of heads that divides it into even heads of at least 6 channels"
            )
        if self.patch_size[0] != 1 or min(self.patch_size) < 1:
            raise ConfigError(
                f"patch_size is {self.patch_size}: the first number must be 1, the others positive"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def ffn_dim(self) -> int:
        """Width of the SwiGLU: 2/3 of the MLP's, in whole multiples of 256."""
        width = int(2 * int(self.hidden_size * self.mlp_ratio) / 3)
        return -(-width // _FFN_MULTIPLE) * _FFN_MULTIPLE

    @property
    def patch_samples(self) -> int:
        """Latent samples of one channel under one token."""
        return self.patch_size[0] * self.patch_size[1] * self.patch_size[2]


def config_from_dict(content: Mapping[str, Any]) -> LongCatConfig:
    """The sizes in a parsed `dit/config.json`; every one of the network's must be there.

    `text_tokens_zero_pad` may be missing, as in the published class. Block-sparse attention is
    not offered: a config that turns it on gives a warning, and the dense attention that it
    approximates. Raises `CheckpointError` naming the field.
    """
    given_class = content.get("_class_name", CLASS_NAME)
    if given_class != CLASS_NAME:
        raise CheckpointError(f"the config is of {given_class!r}, not of {CLASS_NAME!r}")
    optional = {"text_tokens_zero_pad", "eps"}
    fields = LongCatConfig.__struct_fields__
    missing = [name for name in fields if name not in content and name not in optional]
    if missing:
        raise CheckpointError(f"the config lacks {', '.join(missing)}")
    if content.get("enable_bsa"):
        warnings.warn(
            "the config turns block-sparse attention on: attention is dense here", stacklevel=2
        )
    try:
        return msgspec.convert(
            {name: content[name] for name in fields if name in content}, LongCatConfig
        )
    except (msgspec.ValidationError, ConfigError) as error:
        raise CheckpointError(f"the config cannot be used: {error}") from error
