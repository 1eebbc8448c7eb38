"""The errors of contenders on captured K and V; see `format_errors.py` for what they are."""

import msgspec

from qvg_engine.block_manager.format import FORMATS
from qvg_engine.kernels.paged_attention import LayerPages
from qvg_engine.quality.contender import Contender, RoundTrip
from qvg_engine.quality.format_errors import LayerErrors, squared_error
from qvg_engine.quality.stored import store_rows


class ContenderErrors(msgspec.Struct, frozen=True, kw_only=True):
    """One contender on one layer.

    `bits` and `shared_bits` are the means of K's and V's, see `RoundTrip`. Errors of K and V are
    squared and relative, that of attention's output is the square root of such a ratio.
    """

    layer: int
    bits: float
    shared_bits: float
    key_error: float
    value_error: float
    attention_error: float


class ContenderMeasure(LayerErrors):
    """Measures contenders on one layer of a capture, codebooks fitted to all tokens."""

    def measure_contender(self, contender: Contender, *, centroids: int) -> ContenderErrors:
        """The errors of a contender with so many centroids a stage, where it has any."""
        keys = self._round_trip(contender, centroids, is_key=True)
        values = self._round_trip(contender, centroids, is_key=False)
        # What was read is put into pages that lose nothing, so that attention reads just that.
        stored_keys, stored_values = (
            store_rows(part.rows, FORMATS["dense"], is_key=is_key, seed=0)
            for part, is_key in ((keys, True), (values, False))
        )
        pages = LayerPages(stored_keys.pages, stored_values.pages)
        return ContenderErrors(
            layer=self._layer,
            bits=(keys.bits + values.bits) / 2,
            shared_bits=(keys.shared_bits + values.shared_bits) / 2,
            key_error=squared_error(keys.rows, self._rows.keys),
            value_error=squared_error(values.rows, self._rows.values),
            attention_error=self._attention_error(pages, stored_keys),
        )

    def _round_trip(self, contender: Contender, centroids: int, *, is_key: bool) -> RoundTrip:
        rows = self._rows.keys if is_key else self._rows.values
        return contender.round_trip(
            rows.float(), is_key=is_key, seed=self._seed + (not is_key), centroids=centroids
        )
