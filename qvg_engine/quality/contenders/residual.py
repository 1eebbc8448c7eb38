"""How what centroids leave is stored: along the channels of a token, or the tokens of a channel."""

from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np
from torch import Tensor

from qvg_engine.checks import check_range
from qvg_engine.kernels.codec import (
    CodecSpec,
    CodedPages,
    encode_span,
    fit_codebook,
)
from qvg_engine.kernels.codec.packing import pack, unpack
from qvg_engine.quality.contenders.groups import from_token_blocks, token_blocks
from qvg_engine.quality.contenders.trits import pack_trits, trit_bytes, unpack_trits
from qvg_engine.quality.stored import PAGE_SIZE, StoredRows, pages_like


class ResidualCoder(Protocol):
    """Stores residuals of so many tokens, with widths that were fitted to one of them.

    bits: stored for each element. shared_bits: of widths, spread over the elements.
    """

    @property
    def bits(self) -> float: ...

    @property
    def shared_bits(self) -> float: ...

    def read_back(self, residual: Tensor) -> Tensor:
        """Residual fp32 [tokens, heads, head_dim] as it is read, a new tensor."""
        ...


class ResidualFormat(Protocol):
    """A way to store residuals."""

    @property
    def tokens_are_apart(self) -> bool:
        """Whether what one token reads back as depends on no other token."""
        ...

    def fit(self, residual: Tensor, *, is_key: bool) -> ResidualCoder:
        """A coder for residuals like this one, fp32 [tokens, heads, head_dim].

        Raises `ConfigError` if the format does not suit the head.
        """
        ...


class TokenGroups(msgspec.Struct, frozen=True, kw_only=True):
    """Scales for groups of channels of one token: what page formats do, by their own kernels.

    * `spec`: of stages and centroids it says nothing, they are another's.
    * `trits`: pack five codes to a byte, where there are three levels.
    """

    spec: CodecSpec
    trits: bool = False

    def __post_init__(self) -> None:
        assert not self.spec.stages, self.spec
        assert not self.trits or len(self.spec.levels) == 3, self.spec

    @property
    def tokens_are_apart(self) -> bool:
        return True

    def fit(self, residual: Tensor, *, is_key: bool) -> ResidualCoder:
        """See `ResidualFormat`."""
        return _PagedCoder(residual, self.spec, is_key=is_key, trits=self.trits)


class ChannelGroups(msgspec.Struct, frozen=True, kw_only=True):
    """Scales for one channel of `block` consecutive tokens each, chosen as `spec` chooses them.

    Tokens at the end that fill no block have scales of their own. `spec` has no channel widths:
    every channel has scales of its own anyhow. Its group is not used.
    """

    spec: CodecSpec
    block: int

    def __post_init__(self) -> None:
        assert not self.spec.stages, self.spec
        assert not self.spec.channel_widths, self.spec
        check_range("block", self.block, 1, 65_536)

    @property
    def tokens_are_apart(self) -> bool:
        return False

    def fit(self, residual: Tensor, *, is_key: bool) -> ResidualCoder:
        """See `ResidualFormat`."""
        return _ChannelCoder(self.spec, self.block, residual.shape[0])


class _PagedCoder:
    """Pages of the engine without centroids."""

    def __init__(self, residual: Tensor, spec: CodecSpec, *, is_key: bool, trits: bool) -> None:
        self._num_tokens = residual.shape[0]
        self._trits = trits
        self._page_ids = np.arange(-(-self._num_tokens // PAGE_SIZE))
        self._pages = pages_like(
            residual,
            spec.for_head_dim(residual.shape[2]),
            num_pages=len(self._page_ids),
            is_key=is_key,
        )
        fit_codebook(
            self._pages,
            residual,
            slot=0,
            num_centroids=1,
            seed=0,
            warm_from=None,
            iterations=1,
            name="residuals",
        )

    @property
    def bits(self) -> float:
        spec, head_dim = self._pages.spec, self._pages.head_dim
        row_bytes = spec.row_bytes(head_dim)
        if self._trits:
            row_bytes += trit_bytes(head_dim) - spec.code_bytes(head_dim)
        return 8 * row_bytes / head_dim

    @property
    def shared_bits(self) -> float:
        pages = self._pages
        elements = self._num_tokens * pages.num_heads * pages.head_dim
        return 8 * pages.codebooks.num_bytes / elements

    def read_back(self, residual: Tensor) -> Tensor:
        assert residual.shape[0] == self._num_tokens, residual.shape
        encode_span(self._pages, self._page_ids, residual, slot=0, name="residuals")
        if self._trits:
            _through_trits(self._pages)
        # Its figures of bits are not asked for.
        return StoredRows(self._pages, self._num_tokens, 0.0, 0.0).decoded()


@dataclass(frozen=True, slots=True)
class _ChannelCoder:
    """Channels as if they were tokens, of as many channels as there are tokens in a block."""

    spec: CodecSpec
    block: int
    num_tokens: int

    @property
    def bits(self) -> float:
        whole, rest = divmod(self.num_tokens, self.block)
        num_bytes = whole * _of_size(self.spec, self.block).row_bytes(self.block)
        if rest:
            num_bytes += _of_size(self.spec, rest).row_bytes(rest)
        return 8 * num_bytes / self.num_tokens

    @property
    def shared_bits(self) -> float:
        return 0.0

    def read_back(self, residual: Tensor) -> Tensor:
        assert residual.shape[0] == self.num_tokens, residual.shape
        return from_token_blocks(
            self._read_blocks(blocks) for blocks in token_blocks(residual, self.block)
        )

    def _read_blocks(self, blocks: Tensor) -> Tensor:
        """[blocks, heads, head_dim, tokens of a block], and the same read back."""
        spec = _of_size(self.spec, blocks.shape[-1])
        rows = blocks.transpose(1, 2).flatten(0, 1).contiguous()
        read = _PagedCoder(rows, spec, is_key=False, trits=False).read_back(rows)
        read_blocks: Tensor = read.unflatten(0, (blocks.shape[0], -1))
        return read_blocks.transpose(1, 2)


def _of_size(spec: CodecSpec, group: int) -> CodecSpec:
    return msgspec.structs.replace(spec, group=group)


def _through_trits(pages: CodedPages) -> None:
    """Codes packed as trits, and back: what is read comes from the bytes that are counted."""
    bits, head_dim = pages.spec.bits, pages.head_dim
    packed = pack_trits(unpack(pages.codes, bits, head_dim))
    pages.codes.copy_(pack(unpack_trits(packed, head_dim), bits))
