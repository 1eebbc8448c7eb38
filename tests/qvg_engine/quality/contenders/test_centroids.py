from typing import get_args

import pytest
import torch

from qvg_engine.kernels.codec.e4m3 import from_e4m3, to_e4m3
from qvg_engine.quality.contenders.centroids import CENTROID_BITS, CentroidType, stored_centroids
from tests.qvg_engine.quality.contenders.conftest import normal_rows


def centroids() -> torch.Tensor:
    """fp32 [2, 40, 128], channels of very different size."""
    sizes = 10.0 ** torch.linspace(-4, 5, 128)
    return normal_rows(40).transpose(0, 1) * sizes


def test_every_type_has_its_bits() -> None:
    assert set(CENTROID_BITS) == set(get_args(CentroidType))


def test_float16_saturates() -> None:
    x = centroids()
    stored = stored_centroids(x, "float16")
    assert torch.equal(stored, x.clamp(-65504, 65504).half().float())


def test_e4m3_is_that_of_the_engine() -> None:
    x = centroids()
    assert torch.equal(stored_centroids(x, "e4m3"), from_e4m3(to_e4m3(x)))


def test_scaled_e4m3_is_relative_in_every_channel() -> None:
    x = centroids()
    stored = stored_centroids(x, "e4m3-scaled")
    peak = x.abs().amax(dim=1, keepdim=True)
    # Half a unit of three bits of mantissa, or of the smallest number there is.
    bound = torch.maximum(x.abs() * 2**-4, peak * 2**-17)
    assert ((stored - x).abs() <= bound).all()
    assert not torch.equal(stored, x)
    # A power of two changes nothing.
    assert torch.equal(stored_centroids(x * 8, "e4m3-scaled"), stored * 8)


def test_int8_has_256_even_levels_in_every_channel() -> None:
    x = centroids()[..., 60:100]
    stored = stored_centroids(x, "int8")
    width = x.amax(dim=1, keepdim=True) - x.amin(dim=1, keepdim=True)
    bound = width * (0.5 / 255 + 2**-11) + x.abs().amax(dim=1, keepdim=True) * 2**-11
    assert ((stored - x).abs() <= bound).all()
    many = stored_centroids(torch.linspace(3, 5, 4096).view(1, -1, 1), "int8")
    assert len(many.unique()) == 256


@pytest.mark.parametrize("centroid_type", get_args(CentroidType))
def test_one_centroid_and_zeros(centroid_type: CentroidType) -> None:
    zeros = torch.zeros(2, 3, 8)
    assert torch.equal(stored_centroids(zeros, centroid_type), zeros)
    one = torch.full((2, 1, 8), 0.75)
    assert torch.equal(stored_centroids(one, centroid_type), one)
