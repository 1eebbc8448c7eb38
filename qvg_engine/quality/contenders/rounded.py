"""Rounding without centroids, with scales and zero points: RTN and KIVI.

Both need nothing that many tokens share.
"""

import msgspec
import torch
from torch import Tensor

from qvg_engine.checks import check_range
from qvg_engine.kernels.kmeans.finite import require_finite
from qvg_engine.quality.contender import RoundTrip
from qvg_engine.quality.contenders.asymmetric import AsymmetricGrid
from qvg_engine.quality.contenders.groups import channel_groups, from_token_blocks, token_blocks

_MAX_GROUP = 65_536


class RtnContender(msgspec.Struct, frozen=True, kw_only=True):
    """Round to nearest: groups of channels of one token, for K and for V.

    * `grid`: the levels of a group.
    * `group`: consecutive channels, in the published order, that share a grid; a smaller head is
      one group.

    Raises `ConfigError` naming field, value and range.
    """

    name: str
    grid: AsymmetricGrid
    group: int = 64

    def __post_init__(self) -> None:
        check_range("group", self.group, 1, _MAX_GROUP)

    def round_trip(self, rows: Tensor, *, is_key: bool, seed: int, centroids: int) -> RoundTrip:
        """See `Contender`; nothing is random, and there are no centroids.

        Raises `NonFiniteError` for NaN or infinity.
        """
        return _by_token(rows, self.grid, self.group, is_key=is_key)


class KiviContender(msgspec.Struct, frozen=True, kw_only=True):
    """KIVI's axes: K by channel, V by token.

    A grid of K serves one channel of `token_group` consecutive tokens, before RoPE; tokens at the
    end that fill no group have one of their own. (KIVI itself leaves the newest tokens in 16 bits;
    here everything is stored, and counted, at one width.) A grid of V serves `channel_group`
    channels of one token, as in `RtnContender`.

    Raises `ConfigError` naming field, value and range.
    """

    name: str
    grid: AsymmetricGrid
    token_group: int = 64
    channel_group: int = 64

    def __post_init__(self) -> None:
        check_range("token_group", self.token_group, 1, _MAX_GROUP)
        check_range("channel_group", self.channel_group, 1, _MAX_GROUP)

    def round_trip(self, rows: Tensor, *, is_key: bool, seed: int, centroids: int) -> RoundTrip:
        """See `Contender`; nothing is random, and there are no centroids.

        Raises `NonFiniteError` for NaN or infinity.
        """
        if not is_key:
            return _by_token(rows, self.grid, self.channel_group, is_key=False)
        require_finite(rows, "keys")
        read = from_token_blocks(
            self.grid.read_back(block) for block in token_blocks(rows, self.token_group)
        )
        num_tokens = rows.shape[0]
        groups = -(-num_tokens // self.token_group)
        bits = self.grid.bits + self.grid.group_bits * groups / num_tokens
        return RoundTrip(rows=read, bits=bits, shared_bits=0.0)


def _by_token(rows: Tensor, grid: AsymmetricGrid, group: int, *, is_key: bool) -> RoundTrip:
    require_finite(rows, "keys" if is_key else "values")
    channels = channel_groups(rows.shape[-1], group, is_key=is_key).to(rows.device)
    read = torch.empty_like(rows)
    read[..., channels] = grid.read_back(rows[..., channels])
    bits = grid.bits + grid.group_bits / channels.shape[1]
    return RoundTrip(rows=read, bits=bits, shared_bits=0.0)
