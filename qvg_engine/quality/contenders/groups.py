"""Groups of elements that share numbers: channels of a token, or tokens of a channel."""

from collections.abc import Iterator

import torch
from torch import Tensor

from qvg_engine.errors import ConfigError
from qvg_engine.kernels.codec import consecutive_groups, half_split_groups


def channel_groups(head_dim: int, group: int, *, is_key: bool) -> Tensor:
    """The channels of each group of one head, int64 [groups, group].

    They are consecutive in the published order of channels, as those of page formats are. A head
    smaller than `group` is one group; `ConfigError` for one that is not a whole number of groups.
    """
    group = min(group, head_dim)
    if head_dim % group:
        raise ConfigError(f"group is {group}: give a divisor of the head's {head_dim} channels")
    of_channel = (half_split_groups if is_key else consecutive_groups)(head_dim, group)
    return torch.from_numpy(of_channel).argsort(stable=True).view(-1, group)


def token_blocks(rows: Tensor, block: int) -> Iterator[Tensor]:
    """Rows [tokens, heads, head_dim] as [blocks, heads, head_dim, block], tokens innermost.

    The whole blocks come first; tokens that fill no block come as one that is shorter.
    """
    num_tokens = rows.shape[0]
    whole = num_tokens // block * block
    if whole:
        yield rows[:whole].unflatten(0, (-1, block)).movedim(1, -1)
    if whole < num_tokens:
        yield rows[whole:].movedim(0, -1)[None]


def from_token_blocks(blocks: Iterator[Tensor]) -> Tensor:
    """The inverse of `token_blocks`."""
    return torch.cat([part.movedim(-1, 1).flatten(0, 1) for part in blocks])
