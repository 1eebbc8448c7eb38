"""What formats by layer cost a stream: all bits of an element, as the engine counts them."""

from fractions import Fraction
from itertools import product

import msgspec

from qvg_engine.admission import chunked_latent_frames
from qvg_engine.allocation import Allocation
from qvg_engine.block_manager.cache_layout import CacheLayout
from qvg_engine.block_manager.format import LayerFormats, PageFormat
from qvg_engine.block_manager.page_count import pages_for, peak_pages
from qvg_engine.cache import cache_layout
from qvg_engine.config import EngineConfig
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.codec import PRESETS, CodecSpec
from qvg_engine.models.family import ModelFamily
from qvg_engine.plan import planned_program

OVERHEADS = (0.065, 0.13, 0.197)
"""Bits an element that codebooks may add: the engine's two defaults, and between them."""


def _candidates() -> tuple[PageFormat, ...]:
    """The presets of ours, and what is left out of them or added; each codec once."""
    change = msgspec.structs.replace
    q1, q2, q4 = PRESETS["q1"], PRESETS["q2"], PRESETS["q4"]
    found: dict[CodecSpec, str] = {}
    for name, codec in (
        ("q1", q1),
        ("q2", q2),
        ("q4", q4),
        ("q1-lean", change(q1, stages=1, group=128)),
        ("q2-lean", change(q2, stages=1, group=128)),
        ("q2-2stages", change(q2, stages=2)),
    ):
        found.setdefault(codec, name)
    return tuple(PageFormat(name=name, codec=codec) for codec, name in found.items())


CANDIDATES = _candidates()
"""Formats to choose from. `lean` is one stage, and one scale for 128 channels."""


class StreamSize(msgspec.Struct, frozen=True, kw_only=True):
    """What of a stream decides what it takes, at its peak.

    `num_tokens` are kept, in `num_pages` pages, with `num_sets` sets of codebooks; a chunk takes
    `chunk_pages`.
    """

    num_tokens: int
    num_pages: int
    num_sets: int
    chunk_pages: int


def stream_size(family: ModelFamily, config: EngineConfig, *, num_frames: int) -> StreamSize:
    """That of a video of `num_frames` pixel frames, or of the shortest one that keeps any tokens.

    Raises `RequestError` if the family has no VAE, and so no pixel frames.
    """
    program = planned_program(config, family, num_frames)
    while not program.peak_tokens:
        num_frames += 1
        program = planned_program(config, family, num_frames)
    settings, per_frame = family.settings, family.tokens_per_frame
    num_latent_frames = chunked_latent_frames(family, num_frames, request_id="plan")
    num_chunks = -(-num_latent_frames // settings.frames_per_chunk)
    window = settings.window_frames
    # What is used at the peak: a program reserves more, in case that its prompt is switched.
    num_pages = peak_pages(
        [settings.frames_per_chunk * per_frame] * num_chunks,
        page_size=config.page_size,
        window_tokens=None if window is None else window * per_frame,
        sink_tokens=settings.sink_frames * per_frame,
    )
    return StreamSize(
        num_tokens=program.peak_tokens,
        num_pages=max(num_pages, pages_for(program.peak_tokens, config.page_size)),
        num_sets=program.codebook_sets,
        chunk_pages=pages_for(settings.frames_per_chunk * per_frame, config.page_size),
    )


class KvPrices:
    """Prices of candidates for every layer's K and V, and the budgets that they allow.

    Args:
        layout: of the cache; its formats and the overhead of its codebooks are not used. What
            refinements add is counted with the codebooks.
        size: of the stream that bits are counted for, padding of its pages included.
        candidates: formats with codebooks, by their names all different.
        overheads: bits an element that codebooks may add, one of them for all layers.
    """

    def __init__(
        self,
        layout: CacheLayout,
        size: StreamSize,
        *,
        candidates: tuple[PageFormat, ...] = CANDIDATES,
        overheads: tuple[float, ...] = OVERHEADS,
    ) -> None:
        assert candidates, "nothing to choose from"
        assert overheads, "codebooks need bits"
        assert all(item.codec is not None for item in candidates), candidates
        assert len({item.name for item in candidates}) == len(candidates), candidates
        self.size = size
        self.candidates = candidates
        self.overheads = overheads
        self._layout = layout
        geometry = layout.geometry
        self.num_layers = geometry.num_layers
        self.row_bytes = tuple(
            item.row_bytes(geometry.head_dim, layout.compute_itemsize) for item in candidates
        )
        self._elements = 2 * geometry.elements(size.num_tokens)
        self._rows = size.num_pages * layout.page_size * geometry.num_kv_heads

    def layout(self, layers: tuple[LayerFormats, ...], overhead: float) -> CacheLayout:
        """The cache with these formats."""
        return msgspec.structs.replace(self._layout, formats=layers, codebook_overhead=overhead)

    def allocation(self, layers: tuple[LayerFormats, ...], overhead: float) -> Allocation:
        """The same as an engine takes it."""
        return Allocation(
            layers=layers,
            codebook_overhead=overhead,
            refinement_overhead=self._layout.refinement_overhead,
        )

    def bits(self, layers: tuple[LayerFormats, ...], overhead: float) -> Fraction:
        """All bits of an element with these formats: 16 over the engine's `kv_ratio`."""
        layout = self.layout(layers, overhead)
        pages = self.size.num_pages * layout.page_bytes
        return Fraction(8 * (pages + self._codebook_bytes(layout)), self._elements)

    def centroids(self, candidate: PageFormat, overhead: float) -> int:
        """Centroids of a stage that the budget leaves a codebook, beside those of the others."""
        assert candidate.codec is not None
        rows = min(self._budget_rows((other, candidate), overhead) for other in self.candidates)
        spec = candidate.codec
        each = (rows - spec.channel_widths) // max(1, spec.stages)
        return max(1, min(spec.centroids, each))

    def capacity(self, kv_bits: Fraction, overhead: float) -> int:
        """Bytes of a row that K and V of all layers may have together; negative for too few bits.

        Whatever is chosen within it takes `kv_bits` an element or less.
        """
        num_bytes = kv_bits * self._elements / 8 - self._most_codebook_bytes(overhead)
        return int(num_bytes // self._rows)

    @property
    def least_bits(self) -> Fraction:
        """The fewest bits an element for which there is a choice."""
        return min(self._uniform_bits(min(self.row_bytes), item) for item in self.overheads)

    @property
    def most_bits(self) -> Fraction:
        """The bits an element from which on everything is stored in the best way."""
        return max(self._uniform_bits(max(self.row_bytes), item) for item in self.overheads)

    def check(self, kv_bits: float, *, name: str) -> Fraction:
        """The same number, exactly; `ConfigError` unless it is from least to most."""
        least, most = self.least_bits, self.most_bits
        if not least <= kv_bits <= most:
            # Rounded inwards: what the message names is allowed.
            low, high = -(-least * 1000 // 1), most * 1000 // 1
            raise ConfigError(
                f"{name} is {kv_bits}: give bits an element, codebooks included, from "
                f"{int(low) / 1000} to {int(high) / 1000} for such a video"
            )
        return Fraction(kv_bits)

    def _uniform_bits(self, row_bytes: int, overhead: float) -> Fraction:
        pages = self._rows * 2 * self.num_layers * row_bytes
        return Fraction(8 * (pages + self._most_codebook_bytes(overhead)), self._elements)

    def _most_codebook_bytes(self, overhead: float) -> int:
        """An upper bound over all choices: any two formats decide how large codebooks are."""
        pairs = product(self.candidates, self.candidates)
        return max(self._codebook_bytes(self._pair_layout(pair, overhead)) for pair in pairs)

    def _codebook_bytes(self, layout: CacheLayout) -> int:
        tokens = max(1, self.size.num_tokens // self.size.num_sets)
        return self.size.num_sets * layout.set_bytes(tokens, chunk_pages=self.size.chunk_pages)

    def _budget_rows(self, pair: tuple[PageFormat, PageFormat], overhead: float) -> int:
        budget = self._pair_layout(pair, overhead).budget
        assert budget is not None
        return budget.rows_per_slot(max(1, self.size.num_tokens // self.size.num_sets))

    def _pair_layout(self, pair: tuple[PageFormat, PageFormat], overhead: float) -> CacheLayout:
        return self.layout((LayerFormats(keys=pair[0], values=pair[1]),), overhead)


def kv_prices(family: ModelFamily, config: EngineConfig, *, num_frames: int) -> KvPrices:
    """Those of a model's own cache, for a video of `num_frames` pixel frames.

    A `codebook_overhead` that the settings say is the only one.
    """
    given = config.codebook_overhead
    return KvPrices(
        cache_layout(family, config),
        stream_size(family, config, num_frames=num_frames),
        candidates=CANDIDATES,
        overheads=OVERHEADS if given is None else (given,),
    )
