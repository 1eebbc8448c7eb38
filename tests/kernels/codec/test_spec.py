from typing import Any

import msgspec
import numpy as np
import pytest

from qvg_engine.errors import ConfigError
from qvg_engine.kernels.codec import PRESETS, CodecSpec


@pytest.mark.parametrize(
    ("name", "bits"),
    [("qvg", 2.1875), ("qvg-pro", 2.75), ("q4", 4.1875), ("q2", 2.1875), ("q1", 1.25)],
)
def test_bits_of_the_presets(name: str, bits: float) -> None:
    assert PRESETS[name].bits_per_element(128) == bits


@pytest.mark.parametrize(
    ("num_tokens", "heads", "spans", "published_mib"),
    [(29_640, 32, 1, 67.32), (37_440, 12, 7, 220.45)],
    ids=["LongCat", "Self-Forcing"],
)
def test_published_sizes_of_a_layer(
    num_tokens: int, heads: int, spans: int, published_mib: float
) -> None:
    spec = PRESETS["qvg"]
    rows = num_tokens * heads * spec.row_bytes(128)
    size = 2 * spans * (rows + spec.codebook_bytes(heads, 128, 256))
    assert round(size / 2**20, 2) == published_mib


def test_sizes_count_every_field() -> None:
    spec = msgspec.structs.replace(
        PRESETS["q4"], stages=3, group=5, scale_type="float16", centroid_type="float32"
    )
    # 15 channels: 7.5 bytes of codes, three scales, three ids.
    assert spec.row_bytes(15) == 8 + 6 + 3
    assert spec.bits_per_element(15) == 8 * 17 / 15
    assert spec.codebook_bytes(2, 15, 7) == 2 * (3 * 7 + 1) * 15 * 4
    without = msgspec.structs.replace(spec, channel_widths=False, stages=0)
    assert without.codebook_bytes(2, 15, 7) == 0


def test_small_heads_are_one_group() -> None:
    spec = PRESETS["q2"]
    assert spec.for_head_dim(128) is spec
    assert spec.for_head_dim(24).group == 24
    assert spec.for_head_dim(24).num_groups(24) == 1
    with pytest.raises(ConfigError, match="group is 64: give a divisor of the head's 96"):
        spec.for_head_dim(96)


@pytest.mark.parametrize("top", [1, 7])
def test_thresholds_of_whole_levels_round_as_published(top: int) -> None:
    levels = tuple(float(x) for x in range(-top, top + 1))
    spec = msgspec.structs.replace(PRESETS["qvg"], bits=2 if top == 1 else 4, levels=levels)
    halves = np.arange(-top - 1, top + 1.5, 0.5, dtype=np.float32)
    near = [halves]
    for _ in range(3):
        near.append(np.nextafter(near[-1], np.float32(np.inf)))
        near.insert(0, np.nextafter(near[0], np.float32(-np.inf)))
    y = np.concatenate([*near, np.random.default_rng(0).normal(size=999).astype(np.float32)])
    published = np.trunc(y + np.copysign(np.float32(0.5), y)).clip(-top, top) + top
    codes = (y[:, None] > np.array(spec.thresholds, np.float32)).sum(axis=1)
    assert (codes == published).all()


def test_thresholds_of_other_levels_choose_the_nearest() -> None:
    spec = msgspec.structs.replace(PRESETS["qvg"], levels=(-1.0, -0.5, 0.25, 2.0))
    levels = np.array(spec.levels)
    y = np.arange(-640, 640).astype(np.float32) / 256
    codes = (y[:, None] > np.array(spec.thresholds, np.float32)).sum(axis=1)
    distance = np.abs(y[:, None] - levels)
    assert (distance[np.arange(len(y)), codes] == distance.min(axis=1)).all()
    # Half-way: away from zero, or the lower one.
    assert [codes[np.flatnonzero(y == x)[0]] for x in (-0.75, -0.125, 1.125)] == [0, 1, 3]


@pytest.mark.parametrize("name", [name for name, spec in PRESETS.items() if not spec.trellis])
def test_normal_scale_has_the_least_error(name: str) -> None:
    spec = PRESETS[name]
    x = np.linspace(-8, 8, 20_001)
    density = np.exp(-x * x / 2)
    levels = np.array(spec.levels)

    def error(scale: float) -> float:
        left = np.abs(x[:, None] - levels * scale).min(axis=1)
        return float((density * left * left).sum())

    best = error(spec.normal_scale)
    assert best <= min(error(spec.normal_scale * factor) for factor in (0.5, 0.98, 1.02, 2))


def test_a_trellis_has_twice_as_many_levels_and_each_with_either_sign() -> None:
    for levels in ((-1.0, 1.0), (-3.0, -1.0, 1.0, 2.0), (-1.0, 0.0, 0.5, 1.0)):
        with pytest.raises(ConfigError, match="give 4 symmetric ascending numbers"):
            msgspec.structs.replace(PRESETS["q1"], levels=levels)
    with pytest.raises(ConfigError, match="trellis is 1: give one of False, True"):
        msgspec.structs.replace(PRESETS["q1"], trellis=1)


@pytest.mark.parametrize(
    ("levels", "code"),
    [((-1.0, 0.0, 1.0), 1), ((-0.5, 0.5), 0), ((1.0, 2.0), 0), ((-3.0, -1.0, 0.5), 2)],
)
def test_zero_code(levels: tuple[float, ...], code: int) -> None:
    assert msgspec.structs.replace(PRESETS["qvg"], levels=levels).zero_code == code


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stages", -1),
        ("stages", 9),
        ("stages", 1.0),
        ("centroids", 0),
        ("centroids", 257),
        ("bits", 3),
        ("bits", True),
        ("levels", (1.0,)),
        ("levels", (-2.0, -1.0, 0.0, 1.0, 2.0)),
        ("levels", (1.0, -1.0)),
        ("levels", (0.0, 1e-60)),
        ("levels", (0.0, float("nan"))),
        ("levels", (0.0, 65.0)),
        ("levels", [0.0, 1.0]),
        ("group", 0),
        ("scale_rule", "minmax"),
        ("scale_type", "float32"),
        ("channel_widths", 1),
        ("centroid_type", "int8"),
    ],
)
def test_wrong_fields_are_refused_by_name_and_value(field: str, value: Any) -> None:
    fields = {**msgspec.structs.asdict(PRESETS["q2"]), field: value}
    with pytest.raises(ConfigError) as caught:
        CodecSpec(**fields)
    assert str(caught.value).startswith(f"{field} is {value!r}: give ")
