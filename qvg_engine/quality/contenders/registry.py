"""All contenders by name.

* Page formats: the engine's named ones, those of `comparison.py`, and others that its codec can
  store. `four` has four levels, `sixteen`, `signs` (two) and `ternary` as many as they say, all
  with searched scales, channel widths and one stage; a name says what is changed of that.
* Baselines, all asymmetric: `rtn`, `kivi` and `quarot` with the bits of a code. Scales and zero
  points are float16, `-e4m3` has them in a byte; `-searched` tries narrower ranges for the least
  squared error, which the published methods do not.
* Changes of `four`, `signs` and `ternary`, and of the presets `q2` and `q1`, whatever these are,
  that an engine does not have: `-hadamard` rotates before clustering, `-fp16-centroids`,
  `-fp8-centroids`, `-fp8-scaled-centroids` and `-int8-centroids` store those otherwise, `-aware`
  tries four centroids a stage for the least final error, `-refit` fits centroids to codes,
  `-channels64` has scales of a channel for 64 tokens.
"""

import msgspec

from qvg_engine.block_manager.format import PageFormat
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.codec import PRESETS, CodecSpec
from qvg_engine.quality.comparison import QUALITY_FORMATS, without_centroids
from qvg_engine.quality.contender import Contender
from qvg_engine.quality.contenders.asymmetric import AsymmetricGrid
from qvg_engine.quality.contenders.centroids import CentroidType
from qvg_engine.quality.contenders.format import FormatContender
from qvg_engine.quality.contenders.residual import ChannelGroups, TokenGroups
from qvg_engine.quality.contenders.rotated import RotatedContender
from qvg_engine.quality.contenders.rounded import KiviContender, RtnContender
from qvg_engine.quality.contenders.smoothed import SmoothedContender

_RANGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
_CANDIDATES, _REFITS = 4, 4

_replace = msgspec.structs.replace
_FOUR = CodecSpec(
    stages=1,
    centroids=256,
    bits=2,
    levels=(-0.625, -0.1875, 0.1875, 0.625),
    group=64,
    scale_rule="searched",
    scale_type="e4m3",
    channel_widths=True,
    centroid_type="float16",
)
_SIGNS = _replace(_FOUR, bits=1, levels=(-1.0, 1.0))
_TERNARY = _replace(_FOUR, levels=(-1.0, 0.0, 1.0))
_NO_WIDTHS = _replace(_FOUR, channel_widths=False)
_SIXTEEN = _replace(
    _FOUR,
    bits=4,
    levels=tuple(
        x / 64 for x in (-86, -65, -51, -40, -30, -21, -12, -4, 4, 12, 21, 30, 40, 51, 65, 86)
    ),
)

# Whatever else `CodecSpec` can say, such as other trellises, belongs here.
_CODECS: dict[str, CodecSpec] = {
    "qvg-searched": _replace(PRESETS["qvg"], scale_rule="searched"),
    "four": _FOUR,
    # The levels with the least squared error for normally distributed numbers.
    "four-lloyd-max": _replace(_FOUR, levels=(-1.5104, -0.4528, 0.4528, 1.5104)),
    "four-uniform": _replace(_FOUR, levels=(-1.5, -0.5, 0.5, 1.5)),
    "four-no-widths": _NO_WIDTHS,
    "four-group32": _replace(_FOUR, group=32),
    "four-group128": _replace(_FOUR, group=128),
    "four-2stages": _replace(_FOUR, stages=2),
    "sixteen": _SIXTEEN,
    "signs": _SIGNS,
    "signs-2stages": _replace(_SIGNS, stages=2),
    "signs-2stages-group128": _replace(_SIGNS, stages=2, group=128),
    "q2-2stages": _replace(PRESETS["q2"], stages=2),
}


def _format(name: str, codec: CodecSpec) -> FormatContender:
    return FormatContender(page_format=PageFormat(name=name, codec=codec))


def _page_formats() -> list[Contender]:
    named = [FormatContender(page_format=item) for item in QUALITY_FORMATS.values()]
    return [*named, *(_format(name, codec) for name, codec in _CODECS.items())]


def _baselines() -> list[Contender]:
    two, four = AsymmetricGrid(bits=2), AsymmetricGrid(bits=4)
    grids = {
        "": two,
        "-e4m3": _replace(two, number_type="e4m3"),
        "-searched": _replace(two, ranges=_RANGES),
    }
    found: list[Contender] = []
    for change, grid in (*grids.items(), ("", four)):
        # `rtn2` is a page format: three levels, as published.
        rtn = RtnContender(name=f"rtn{grid.bits}-asym{change}", grid=grid)
        found += [
            rtn,
            KiviContender(name=f"kivi{grid.bits}{change}", grid=grid),
            RotatedContender(name=f"quarot{grid.bits}{change}", inner=rtn),
        ]
    fine = KiviContender(name="kivi2-group32", grid=two, token_group=32, channel_group=32)
    return [*found, fine]


def _changes(name: str, codec: CodecSpec, *, trits: bool = False) -> list[Contender]:
    """Other ways to find the centroids and ids of a codec."""
    plain = SmoothedContender(
        name=name,
        residual=TokenGroups(spec=without_centroids(codec), trits=trits),
        stages=codec.stages,
        centroid_type=_type_of(codec),
    )
    aware = _replace(plain, name=f"{name}-aware", candidates=_CANDIDATES)
    refit = _replace(plain, name=f"{name}-refit", refits=_REFITS)
    return [aware, refit, _replace(aware, name=f"{name}-aware-refit", refits=_REFITS)]


def _type_of(codec: CodecSpec) -> CentroidType:
    assert codec.centroid_type in ("float16", "e4m3"), codec
    return codec.centroid_type


def _centroid_types(name: str, codec: CodecSpec) -> list[Contender]:
    """The same with other numbers for centroids; widths stay."""
    plain = SmoothedContender(
        name=name, residual=TokenGroups(spec=without_centroids(codec)), stages=codec.stages
    )
    types: dict[str, CentroidType] = {
        "fp16": "float16",
        "fp8": "e4m3",
        "fp8-scaled": "e4m3-scaled",
        "int8": "int8",
    }
    return [
        _replace(plain, name=f"{name}-{label}-centroids", centroid_type=centroid_type)
        for label, centroid_type in types.items()
        if centroid_type != codec.centroid_type
    ]


def _channel_groups(name: str, codec: CodecSpec) -> list[Contender]:
    spec = _replace(without_centroids(codec), channel_widths=False)
    return [
        SmoothedContender(
            name=f"{name}-channels{block}",
            residual=ChannelGroups(spec=spec, block=block),
            stages=codec.stages,
        )
        for block in (64, 128)
    ]


def _studies() -> list[Contender]:
    ternary = TokenGroups(spec=without_centroids(_TERNARY), trits=True)
    rotated = ("four", "four-no-widths", "signs-2stages")
    coded = {
        "four": _FOUR,
        "four-2stages": _CODECS["four-2stages"],
        "signs": _SIGNS,
        "signs-2stages": _CODECS["signs-2stages"],
        "q2": PRESETS["q2"],
        "q2-2stages": _CODECS["q2-2stages"],
        "q1": PRESETS["q1"],
    }
    return [
        *(
            RotatedContender(name=f"{name}-hadamard", inner=_format(name, _CODECS[name]))
            for name in rotated
        ),
        *(item for name, codec in coded.items() for item in _changes(name, codec)),
        *(
            item
            for name in ("four", "signs-2stages", "q2", "q1")
            for item in _centroid_types(name, coded[name])
        ),
        *(
            item
            for name in ("four", "four-2stages", "signs", "signs-2stages")
            for item in _channel_groups(name, coded[name])
        ),
        SmoothedContender(name="ternary", residual=ternary),
        SmoothedContender(name="ternary-2stages", residual=ternary, stages=2),
        *_changes("ternary", _TERNARY, trits=True),
    ]


CONTENDERS: dict[str, Contender] = {
    item.name: item for item in (*_page_formats(), *_baselines(), *_studies())
}


def contender(name: str) -> Contender:
    """The contender of that name; `ConfigError` with the known names for any other."""
    try:
        return CONTENDERS[name]
    except KeyError:
        known = ", ".join(CONTENDERS)
        raise ConfigError(f"unknown contender {name!r}: use one of {known}") from None
