"""Formats to compare with: plain 2-bit rounding, without centroids and without widths.

They are not among the named formats of the engine, but are `PageFormat`s like those, and run
through the same kernels and the same engine.
"""

import msgspec

from qvg_engine.block_manager.format import FORMATS, PageFormat
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.codec import PRESETS, CodecSpec


def without_centroids(spec: CodecSpec) -> CodecSpec:
    """The same rounding of the rows themselves; where there are widths, they stay."""
    return msgspec.structs.replace(spec, stages=0, centroids=1)


COMPARISON_FORMATS: dict[str, PageFormat] = {
    page_format.name: page_format
    for page_format in (
        PageFormat(name="rtn2", codec=without_centroids(PRESETS["qvg"])),
        PageFormat(
            name="rtn2-searched",
            codec=msgspec.structs.replace(
                without_centroids(PRESETS["q2"]),
                channel_widths=False,
                trellis=False,
                levels=(-0.625, -0.1875, 0.1875, 0.625),
            ),
        ),
    )
}
"""Round to nearest with 2 bits, groups of 64 and E4M3 scales.

`rtn2` does it as `qvg` does with what centroids leave: three levels, the largest magnitude of a
group is one of them. `rtn2-searched` makes the most of 2 bits that a plain code without zero points
can: the four levels of Lloyd and Max, and scales searched for the least squared error.
"""

QUALITY_FORMATS: dict[str, PageFormat] = FORMATS | COMPARISON_FORMATS
"""All formats that quality can be measured of."""


def quality_format(name: str) -> PageFormat:
    """The named format, of the engine or to compare with; `ConfigError` for any other name."""
    try:
        return QUALITY_FORMATS[name]
    except KeyError:
        known = ", ".join(QUALITY_FORMATS)
        raise ConfigError(f"unknown page format {name!r}: use one of {known}") from None


def with_centroids(page_format: PageFormat, centroids: int) -> PageFormat:
    """The same with at most so many centroids a stage; itself where it has none."""
    codec = page_format.codec
    if codec is None or not codec.stages:
        return page_format
    few = min(centroids, codec.centroids)
    codec = msgspec.structs.replace(codec, centroids=few)
    return msgspec.structs.replace(page_format, codec=codec)
