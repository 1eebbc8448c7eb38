"""The engine's own page formats as contenders."""

import msgspec
from torch import Tensor

from qvg_engine.block_manager.format import PageFormat
from qvg_engine.quality.comparison import with_centroids
from qvg_engine.quality.contender import RoundTrip
from qvg_engine.quality.stored import store_rows


class FormatContender(msgspec.Struct, frozen=True, kw_only=True):
    """A page format, through the engine's kernels, with one codebook for all tokens.

    It has at most as many centroids as the format's codec has.
    """

    page_format: PageFormat

    @property
    def name(self) -> str:
        """That of the format."""
        return self.page_format.name

    def round_trip(self, rows: Tensor, *, is_key: bool, seed: int, centroids: int) -> RoundTrip:
        """See `Contender`. Raises `ConfigError` if the codec does not suit the head."""
        page_format = with_centroids(self.page_format, centroids)
        stored = store_rows(rows, page_format, is_key=is_key, seed=seed)
        return RoundTrip(
            rows=stored.decoded(),
            bits=stored.bits_per_element,
            shared_bits=stored.codebook_bits,
        )
