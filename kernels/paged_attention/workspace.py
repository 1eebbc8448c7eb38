"""The buffer that pages of one layer are decoded into."""

import torch
from torch import Tensor

from qvg_engine.errors import ConfigError


class Workspace:
    """Room for `max_tokens` decoded tokens of one layer; allocated once, it never grows.

    One workspace serves all layers and streams, one attention call at a time; nothing in it
    outlives a call.

    keys, values: [num_heads, max_tokens, head_dim] in the compute dtype.
    bias: fp32 [max_tokens], what is added to the scores of a token.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        max_tokens: int,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        if max_tokens < 1:
            raise ConfigError(f"a workspace needs room for at least 1 token, got {max_tokens}")
        shape = (num_heads, max_tokens, head_dim)
        self.keys: Tensor = torch.empty(shape, device=device, dtype=dtype)
        self.values: Tensor = torch.empty(shape, device=device, dtype=dtype)
        self.bias: Tensor = torch.empty(max_tokens, device=device, dtype=torch.float32)

    @staticmethod
    def bytes_for(*, num_heads: int, head_dim: int, max_tokens: int, dtype: torch.dtype) -> int:
        """Bytes that a workspace of this size would take."""
        elements = 2 * num_heads * head_dim * max_tokens
        return elements * dtype.itemsize + max_tokens * torch.float32.itemsize

    @property
    def max_tokens(self) -> int:
        """Tokens that fit."""
        return self.keys.shape[1]

    @property
    def num_bytes(self) -> int:
        """Bytes allocated."""
        return self.keys.nbytes + self.values.nbytes + self.bias.nbytes
