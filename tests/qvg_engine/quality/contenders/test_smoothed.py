from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from qvg_engine.block_manager.format import FORMATS, PageFormat
from qvg_engine.errors import ConfigError, NonFiniteError
from qvg_engine.quality.comparison import without_centroids
from qvg_engine.quality.contender import Contender, RoundTrip
from qvg_engine.quality.contenders import CONTENDERS
from qvg_engine.quality.contenders.format import FormatContender
from qvg_engine.quality.contenders.residual import TokenGroups
from qvg_engine.quality.contenders.smoothed import SmoothedContender
from qvg_engine.quality.format_errors import squared_error
from tests.qvg_engine.quality.contenders.conftest import clustered_rows, normal_rows


def trip(name: str, rows: Tensor, *, is_key: bool = True, centroids: int = 8) -> RoundTrip:
    return CONTENDERS[name].round_trip(rows, is_key=is_key, seed=3, centroids=centroids)


def page_format(name: str) -> PageFormat:
    item: Contender = CONTENDERS[name]
    assert isinstance(item, FormatContender)
    return item.page_format


@pytest.mark.parametrize("name", ["q1", "q2", "q4", "four", "signs-2stages", "four-no-widths"])
@pytest.mark.parametrize("is_key", [False, True])
def test_without_any_change_it_is_the_page_format(name: str, is_key: bool) -> None:
    """Bit for bit, with its bits."""
    codec = page_format(name).codec
    assert codec is not None
    assert codec.centroid_type in ("float16", "e4m3")
    same = SmoothedContender(
        name="same",
        residual=TokenGroups(spec=without_centroids(codec)),
        stages=codec.stages,
        centroid_type=codec.centroid_type,
    )
    # A whole number of pages: the page format counts whole ones.
    rows = clustered_rows(192)
    found = same.round_trip(rows, is_key=is_key, seed=3, centroids=8)
    expected = trip(name, rows, is_key=is_key)
    assert torch.equal(found.rows, expected.rows)
    assert found.bits == expected.bits
    assert found.shared_bits == pytest.approx(expected.shared_bits)


@pytest.mark.parametrize(
    ("name", "bits", "shared"),
    [
        # Bytes of codes, scales and ids of a row; bits of codebook and widths of a channel.
        ("four-aware", 32 + 2 + 1, 8 * 16 + 16),
        ("four-2stages-refit", 32 + 2 + 2, 2 * 8 * 16 + 16),
        ("signs-aware", 16 + 2 + 1, 8 * 16 + 16),
        ("signs-2stages-refit", 16 + 2 + 2, 2 * 8 * 16 + 16),
        ("ternary", 26 + 2 + 1, 8 * 16 + 16),
        ("ternary-2stages", 26 + 2 + 2, 2 * 8 * 16 + 16),
        ("four-fp8-centroids", 32 + 2 + 1, 8 * 8 + 16),
        ("four-fp8-scaled-centroids", 32 + 2 + 1, 8 * 8 + 8 + 16),
        ("q2-aware", 32 + 2 + 1, 8 * 8 + 8),
        ("q2-fp16-centroids", 32 + 2 + 1, 8 * 16 + 8),
        ("four-int8-centroids", 32 + 2 + 1, 8 * 8 + 32 + 16),
        ("signs-2stages-fp8-scaled-centroids", 16 + 2 + 2, 2 * (8 * 8 + 8) + 16),
    ],
)
def test_every_bit_is_counted(name: str, bits: int, shared: int) -> None:
    found = trip(name, clustered_rows(70))
    assert found.bits == pytest.approx(8 * bits / 128)
    assert found.shared_bits == pytest.approx(shared / 70)


def test_bits_of_scales_of_channels() -> None:
    found = trip("four-channels64", clustered_rows(70))
    # 64 and 6 tokens, each with a byte for the scale; an id for each token.
    assert found.bits == pytest.approx(8 * (16 + 1 + 2 + 1) / 70 + 8 / 128)
    assert found.shared_bits == pytest.approx(8 * 16 / 70)


@pytest.mark.parametrize("is_key", [False, True])
@pytest.mark.parametrize("name", ["four", "signs", "signs-2stages", "ternary"])
def test_more_candidates_are_never_worse_for_any_token(name: str, is_key: bool) -> None:
    rows = normal_rows(400)
    nearest, aware = (
        trip(x, rows, is_key=is_key, centroids=16).rows for x in (name, f"{name}-aware")
    )

    def errors(read: Tensor) -> Tensor:
        return (read - rows).square().sum(dim=-1)

    assert (errors(aware) <= errors(nearest) * (1 + 1e-5)).all()
    assert squared_error(aware, rows) < 0.995 * squared_error(nearest, rows)


def test_candidates_are_the_nearest_centroids() -> None:
    """With as many candidates as there are centroids, no id could have been better."""
    rows = clustered_rows(200, clusters=12)
    aware = CONTENDERS["four-aware"]
    assert isinstance(aware, SmoothedContender)
    four, all_of_them = (
        msgspec.structs.replace(aware, candidates=count).round_trip(
            rows, is_key=False, seed=0, centroids=6
        )
        for count in (4, 6)
    )
    best, found = squared_error(all_of_them.rows, rows), squared_error(four.rows, rows)
    assert best <= found <= 1.01 * best


@pytest.mark.parametrize("name", ["four", "four-2stages", "signs-2stages", "ternary"])
def test_refits_gain(name: str) -> None:
    """All the more the fewer tokens a centroid has: 12 here."""
    rows = normal_rows(400)
    plain, refit = (
        squared_error(trip(x, rows, centroids=32).rows, rows) for x in (name, f"{name}-refit")
    )
    assert refit < 0.95 * plain


def test_two_stages_lose_less_than_one() -> None:
    rows = clustered_rows(1000, clusters=64)
    for name in ("ternary", "four"):
        one, two = (
            squared_error(trip(x, rows, centroids=16).rows, rows) for x in (name, f"{name}-2stages")
        )
        assert two < 0.8 * one


def test_centroids_of_a_byte_cost_little() -> None:
    rows = clustered_rows()
    half, int8, fp8, scaled = (
        squared_error(trip(f"four{change}", rows).rows, rows)
        for change in ("", "-int8-centroids", "-fp8-centroids", "-fp8-scaled-centroids")
    )
    assert half != int8
    assert int8 < 1.01 * half
    assert half < fp8 < 1.1 * half
    assert half < scaled < 1.1 * half


def test_fewer_tokens_than_centroids() -> None:
    rows = clustered_rows(3)
    for name in ("four-aware-refit", "signs-2stages-channels64", "ternary-2stages"):
        assert squared_error(trip(name, rows, centroids=64).rows, rows) < 1e-6


def test_rows_that_are_not_finite_are_refused() -> None:
    rows = normal_rows()
    rows[3, 0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="values"):
        trip("four-aware", rows, is_key=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": 0}, "stages is 0: give a whole number from 1 to 8"),
        ({"candidates": 9}, "candidates is 9: give a whole number from 1 to 8"),
        ({"refits": -1}, "refits is -1: give a whole number from 0 to 100"),
        (
            {"centroid_type": "int4"},
            "centroid_type is 'int4': give one of float16, e4m3, e4m3-scaled, int8",
        ),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    codec = FORMATS["q4"].codec
    assert codec is not None
    with pytest.raises(ConfigError, match=message):
        SmoothedContender(name="x", residual=TokenGroups(spec=without_centroids(codec)), **options)
