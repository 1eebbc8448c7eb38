"""How K or V of a page is stored, and the bytes that this takes.

Knows sizes only, no tensors: the page store turns a format into tensors, the scheduler into numbers
of pages. K and V of a page may have different formats.
"""

import enum

import msgspec

from qvg_engine.errors import ConfigError


class ElementType(enum.Enum):
    """What one stored element is."""

    COMPUTE = "compute"
    """The dtype that the network computes in."""
    BFLOAT16 = "bfloat16"


class PageFormat(msgspec.Struct, frozen=True, kw_only=True):
    """How the elements of K or V are stored.

    Every property is a field. K is stored after QK-norm and before RoPE, V as the network made it.
    """

    name: str
    element: ElementType

    def bits_per_element(self, compute_itemsize: int) -> int:
        """Bits that one element takes; `compute_itemsize` is the compute dtype's size in bytes."""
        return 16 if self.element is ElementType.BFLOAT16 else 8 * compute_itemsize


FORMATS: dict[str, PageFormat] = {
    page_format.name: page_format
    for page_format in (
        PageFormat(name="dense", element=ElementType.COMPUTE),
        PageFormat(name="bf16", element=ElementType.BFLOAT16),
    )
}
"""The named formats."""


def get_format(name: str) -> PageFormat:
    """The named format; `ConfigError` with the known names for any other name."""
    try:
        return FORMATS[name]
    except KeyError:
        known = ", ".join(FORMATS)
        raise ConfigError(f"unknown page format {name!r}: use one of {known}") from None


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
    key_format: PageFormat,
    value_format: PageFormat,
    compute_itemsize: int,
) -> int:
    """Bytes of one page: all layers, K and V, for `page_size` tokens."""
    elements = geometry.elements(page_size)
    bits = sum(
        page_format.bits_per_element(compute_itemsize) for page_format in (key_format, value_format)
    )
    return elements * bits // 8
