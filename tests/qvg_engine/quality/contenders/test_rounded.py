import pytest
import torch

from qvg_engine.errors import ConfigError, NonFiniteError
from qvg_engine.kernels.rope.layout import half_split_index
from qvg_engine.quality.contender import Contender
from qvg_engine.quality.contenders import contender
from qvg_engine.quality.contenders.asymmetric import AsymmetricGrid
from qvg_engine.quality.contenders.rounded import KiviContender, RtnContender
from qvg_engine.quality.format_errors import squared_error
from tests.qvg_engine.quality.contenders.conftest import normal_rows, rows_with_outliers

GRID = AsymmetricGrid(bits=2)


def error(item: Contender, rows: torch.Tensor, *, is_key: bool) -> float:
    return squared_error(item.round_trip(rows, is_key=is_key, seed=0, centroids=1).rows, rows)


@pytest.mark.parametrize(
    ("name", "is_key", "bits"),
    [
        ("rtn2-asym", True, 2 + (16 + 16) / 64),
        ("rtn2-asym-e4m3", True, 2 + (8 + 8) / 64),
        ("rtn4-asym", False, 4 + (16 + 16) / 64),
        # 70 tokens are one group of 64 and one of 6.
        ("kivi2", True, 2 + 2 * (16 + 16) / 70),
        ("kivi2-e4m3", True, 2 + 2 * (8 + 8) / 70),
        ("kivi2-group32", True, 2 + 3 * (16 + 16) / 70),
        ("kivi2", False, 2 + (16 + 16) / 64),
        ("kivi2-group32", False, 2 + (16 + 16) / 32),
        ("quarot2", True, 2 + (16 + 16) / 64),
    ],
)
def test_every_bit_is_counted(name: str, is_key: bool, bits: float) -> None:
    found = contender(name).round_trip(normal_rows(70), is_key=is_key, seed=0, centroids=64)
    assert found.bits == pytest.approx(bits)
    assert found.shared_bits == 0


def test_a_small_head_is_one_group() -> None:
    found = contender("rtn2-asym").round_trip(
        normal_rows(head_dim=32), is_key=True, seed=0, centroids=64
    )
    assert found.bits == 2 + (16 + 16) / 32


def test_groups_of_rtn_are_channels_of_one_token() -> None:
    """Loud channels of one published group cost the other group nothing."""
    rows = normal_rows(70)
    loud = rows.clone()
    in_first = half_split_index(128) < 64
    loud[..., in_first] *= 1000
    item = RtnContender(name="rtn", grid=GRID)
    quiet, beside = (
        item.round_trip(part, is_key=True, seed=0, centroids=1).rows[..., ~in_first]
        for part in (rows, loud)
    )
    assert torch.equal(quiet, beside)
    # Each token has its own scales.
    assert torch.equal(
        item.round_trip(rows[3:4], is_key=True, seed=0, centroids=1).rows,
        item.round_trip(rows, is_key=True, seed=0, centroids=1).rows[3:4],
    )


def test_groups_of_kivi_are_tokens_of_one_channel_for_keys_alone() -> None:
    rows = normal_rows(70)
    loud = rows.clone()
    loud[..., 5] *= 1000
    item = KiviContender(name="kivi", grid=GRID)
    others = [channel for channel in range(128) if channel != 5]
    for is_key in (True, False):
        quiet, beside = (
            item.round_trip(part, is_key=is_key, seed=0, centroids=1).rows[..., others]
            for part in (rows, loud)
        )
        assert torch.equal(quiet, beside) == is_key
    # Tokens 64 to 69 have grids of their own.
    assert torch.equal(
        item.round_trip(rows[64:], is_key=True, seed=0, centroids=1).rows,
        item.round_trip(rows, is_key=True, seed=0, centroids=1).rows[64:],
    )


def test_values_of_kivi_are_those_of_rtn() -> None:
    rows = normal_rows(70)
    rtn, kivi = (
        contender(name).round_trip(rows, is_key=False, seed=0, centroids=1).rows
        for name in ("rtn2-asym", "kivi2")
    )
    assert torch.equal(rtn, kivi)


def test_outlier_channels_call_for_grids_of_channels_or_a_rotation() -> None:
    rows = rows_with_outliers()
    by_token, by_channel, rotated = (
        error(contender(name), rows, is_key=True) for name in ("rtn2-asym", "kivi2", "quarot2")
    )
    assert by_channel < 0.1 * rotated
    assert rotated < by_token


@pytest.mark.parametrize("name", ["rtn2-asym", "kivi2", "quarot2"])
def test_four_bits_lose_less_than_two(name: str) -> None:
    rows = normal_rows()
    two, four = (contender(x) for x in (name, name.replace("2", "4")))
    assert error(four, rows, is_key=True) < 0.06 * error(two, rows, is_key=True)


@pytest.mark.parametrize("is_key", [False, True])
@pytest.mark.parametrize("name", ["rtn2-asym", "kivi2"])
def test_rows_that_are_not_finite_are_refused(name: str, is_key: bool) -> None:
    rows = normal_rows()
    rows[3, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="keys" if is_key else "values"):
        contender(name).round_trip(rows, is_key=is_key, seed=0, centroids=1)


def test_wrong_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match="group is 0: give a whole number from 1"):
        RtnContender(name="rtn", grid=GRID, group=0)
    with pytest.raises(ConfigError, match="token_group is 0"):
        KiviContender(name="kivi", grid=GRID, token_group=0)
    with pytest.raises(ConfigError, match="channel_group is 0"):
        KiviContender(name="kivi", grid=GRID, channel_group=0)
