"""The buffer that pages of one layer are decoded into."""

import torch
from torch import Tensor

from qvg_engine.errors import ConfigError
from qvg_engine.kernels.free_memory import free_bytes, refuse, usable_bytes


class Workspace:
    """Room for `max_tokens` decoded tokens of one layer; allocated once, it never grows.

    Raises `ConfigError` for no tokens, or more than the device has memory for.

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
        device = torch.device(device)
        free = free_bytes(device)
        try:
            self.keys: Tensor = torch.empty(shape, device=device, dtype=dtype)
            self.values: Tensor = torch.empty(shape, device=device, dtype=dtype)
            self.bias: Tensor = torch.empty(max_tokens, device=device, dtype=torch.float32)
        except (RuntimeError, MemoryError) as error:
            token_bytes, num_bytes = (
                self.bytes_for(
                    num_heads=num_heads, head_dim=head_dim, max_tokens=count, dtype=dtype
                )
                for count in (1, max_tokens)
            )
            fits = usable_bytes(num_bytes, free) // token_bytes
            raise refuse(
                f"a workspace for {max_tokens:,} tokens",
                num_bytes,
                free=free,
                device=device,
                advice=f"give workspace_tokens of at most {fits:,}, less what the pages take"
                if fits
                else "there is no room for one token",
            ) from error

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
