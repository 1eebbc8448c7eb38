from typing import Any

import pytest
import torch

from qvg_engine.errors import ConfigError
from qvg_engine.quality.contenders.asymmetric import AsymmetricGrid
from qvg_engine.quality.figures import decibels
from qvg_engine.quality.format_errors import squared_error
from tests.qvg_engine.quality.contenders.conftest import normal_rows


def test_four_levels_from_the_least_to_the_largest_element() -> None:
    group = torch.tensor([[-2.0, -1.2, 0.1, 1.0]])
    read = AsymmetricGrid(bits=2).read_back(group)
    assert torch.equal(read, torch.tensor([[-2.0, -1.0, 0.0, 1.0]]))


def test_numbers_are_rounded_before_codes_are_chosen() -> None:
    """17 is 16 in E4M3: the scale then reaches from 16 to the largest element, and is 5 for 5."""
    group = torch.tensor([[17.0, 20.0, 25.0, 31.0]])
    read = AsymmetricGrid(bits=2, number_type="e4m3").read_back(group)
    assert torch.equal(read, torch.tensor([[16.0, 21.0, 26.0, 31.0]]))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_all_levels_are_used(bits: int) -> None:
    read = AsymmetricGrid(bits=bits).read_back(torch.linspace(-1, 1, 4096)[None])
    assert len(read.unique()) == 2**bits


@pytest.mark.parametrize("number_type", ["float16", "e4m3"])
def test_a_constant_group_is_its_zero_point(number_type: Any) -> None:
    grid = AsymmetricGrid(bits=2, number_type=number_type)
    constant = torch.tensor([[0.3], [-17.0], [1e-5], [0.0]]).expand(4, 64)
    read = grid.read_back(constant)
    assert torch.equal(read, read[:, :1].expand(4, 64))
    assert torch.allclose(read, constant, rtol=2**-4, atol=2**-10)


def test_elements_out_of_range_saturate() -> None:
    group = torch.tensor([[-1e6, 0.0, 1e6]])
    read = AsymmetricGrid(bits=2, number_type="e4m3").read_back(group)
    assert read.isfinite().all()
    assert read.min() == -448


@pytest.mark.parametrize(("bits", "gain"), [(2, 6.9), (4, 20.9)])
def test_plain_rounding_of_normal_numbers(bits: int, gain: float) -> None:
    """The extremes of 64 of them are 4.7 apart on the mean: 15 steps of 0.31, or 3 of 1.6."""
    groups = normal_rows(1000, 2, 64)
    error = squared_error(AsymmetricGrid(bits=bits).read_back(groups), groups)
    assert -decibels(error) == pytest.approx(gain, abs=0.2)


def test_narrower_ranges_are_taken_where_they_are_better() -> None:
    groups = normal_rows(200, 2, 64)
    plain = AsymmetricGrid(bits=2).read_back(groups)
    searched = AsymmetricGrid(bits=2, ranges=(1.0, 0.8, 0.6)).read_back(groups)

    def errors(read: torch.Tensor) -> torch.Tensor:
        return (read - groups).square().sum(dim=-1)

    assert (errors(searched) <= errors(plain)).all()
    assert squared_error(searched, groups) < 0.7 * squared_error(plain, groups)
    # Four even levels have no use for a narrower range.
    even = torch.arange(4.0)[None]
    assert torch.equal(AsymmetricGrid(bits=2, ranges=(1.0, 0.5)).read_back(even), even)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 0}, "bits is 0: give a whole number from 1 to 8"),
        ({"bits": 2, "number_type": "int8"}, "number_type is 'int8': give one of float16, e4m3"),
        ({"bits": 2, "ranges": (1.0, 1.5)}, "ranges is .*: give numbers above 0, up to 1"),
        ({"bits": 2, "ranges": ()}, "ranges is .*: give numbers above 0, up to 1"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AsymmetricGrid(**options)
