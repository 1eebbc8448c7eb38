"""How K or V of a page is stored, and the bytes that this takes.

Knows sizes only, no tensors: the page store turns a format into tensors, the scheduler into numbers
of pages. K and V of a page may have different formats, and so may its layers.
"""

import enum
from collections.abc import Sequence

import msgspec

from qvg_engine.errors import ConfigError
from qvg_engine.kernels.codec.spec import PRESETS, CodecSpec


class ElementType(enum.Enum):
    """What one stored element is."""

    COMPUTE = "compute"
    """The dtype that the network computes in."""
    BFLOAT16 = "bfloat16"


class PageFormat(msgspec.Struct, frozen=True, kw_only=True):
    """How K or V is stored: element by element, or by a codec. Every property is a field.

    K is stored after QK-norm and before RoPE, V as the network made it. Exactly one of `element`
    and `codec` is set. `refined` says whether a branch's newest pages are refined by default, see
    `kernels/codec/refinement.py`.
    """

    name: str
    element: ElementType | None = None
    codec: CodecSpec | None = None
    refined: bool = False

    def __post_init__(self) -> None:
        assert (self.element is None) != (self.codec is None), self.name
        assert self.codec is not None or not self.refined, self.name

    def row_bytes(self, head_dim: int, compute_itemsize: int) -> int:
        """Bytes of one row, one head of one token, without codebooks.

        `compute_itemsize` is the compute dtype's size in bytes. Raises `ConfigError` if the codec
        does not suit the head.
        """
        if self.codec is not None:
            return self.codec.for_head_dim(head_dim).row_bytes(head_dim)
        return head_dim * (2 if self.element is ElementType.BFLOAT16 else compute_itemsize)

    @property
    def most_codebook_rows(self) -> int:
        """Rows of its largest codebook: a centroid, or the widths, is one row a head; else 0."""
        return self.codebook_rows(self.codec.centroids) if self.codec is not None else 0

    def codebook_rows(self, centroids: int) -> int:
        """Rows of a codebook of so many centroids a stage; 0 for a format without codebooks.

        A codec with neither centroids nor widths has a codebook of one row, which is not read.
        """
        if self.codec is None:
            return 0
        return max(1, self.codec.stages * centroids + self.codec.channel_widths)


FORMATS: dict[str, PageFormat] = {
    page_format.name: page_format
    for page_format in (
        PageFormat(name="dense", element=ElementType.COMPUTE),
        PageFormat(name="bf16", element=ElementType.BFLOAT16),
        *(
            PageFormat(name=name, codec=codec, refined=name not in ("qvg", "qvg-pro"))
            for name, codec in PRESETS.items()
        ),
    )
}
"""The named formats."""


def get_format(name: str | PageFormat) -> PageFormat:
    """The named format, or the one that is given.

    Raises `ConfigError` with the known names for any other name.
    """
    if isinstance(name, PageFormat):
        return name
    try:
        return FORMATS[name]
    except KeyError:
        known = ", ".join(FORMATS)
        raise ConfigError(f"unknown page format {name!r}: use one of {known}") from None


class LayerFormats(msgspec.Struct, frozen=True, kw_only=True):
    """How one layer stores its K and its V."""

    keys: PageFormat
    values: PageFormat

    @property
    def coded(self) -> tuple[PageFormat, ...]:
        """Those of K and V, in this order, that have codebooks."""
        return tuple(f for f in (self.keys, self.values) if f.codec is not None)


def check_layer_formats(formats: Sequence[LayerFormats]) -> None:
    """`ConfigError` unless K has codebooks in all layers or in none, and V too."""
    assert formats, "a cache has at least one layer"
    for part in ("keys", "values"):
        first = getattr(formats[0], part)
        for layer, pair in enumerate(formats):
            other = getattr(pair, part)
            if (other.codec is None) != (first.codec is None):
                raise ConfigError(
                    f"{part} of layer {layer} are {other.name!r} but those of layer 0 "
                    f"{first.name!r}: give formats with codebooks to all layers, or to none"
                )


class CacheGeometry(msgspec.Struct, frozen=True, kw_only=True):
    """What a model caches: `num_layers * num_kv_heads * head_dim` elements of K and V a token."""

    num_layers: int
    num_kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            value = getattr(self, field)
            if value < 1:
                raise ConfigError(f"{field} must be at least 1, got {value}")

    def elements(self, num_tokens: int) -> int:
        """Elements of K (and as many of V) that `num_tokens` tokens have, all layers together."""
        return self.num_layers * self.num_kv_heads * self.head_dim * num_tokens


def page_bytes(
    geometry: CacheGeometry,
    *,
    page_size: int,
    formats: Sequence[LayerFormats],
    compute_itemsize: int,
) -> int:
    """Bytes of one page, codebooks apart: K and V of these layers for `page_size` tokens."""
    return (
        geometry.num_kv_heads
        * page_size
        * sum(
            page_format.row_bytes(geometry.head_dim, compute_itemsize)
            for pair in formats
            for page_format in (pair.keys, pair.values)
        )
    )
