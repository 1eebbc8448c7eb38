import pytest
import torch

from qvg_engine.kernels.rope.layout import (
    half_split_index,
    interleaved_index,
    to_half_split,
    to_interleaved,
)


def test_pair_i_goes_to_the_two_halves() -> None:
    assert half_split_index(8).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert interleaved_index(8).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize("num_heads", [1, 3])
def test_the_two_indices_are_inverse_and_stay_inside_heads(num_heads: int) -> None:
    channels = torch.arange(num_heads * 64)
    split = half_split_index(64, num_heads)
    assert torch.equal(channels[split][interleaved_index(64, num_heads)], channels)
    assert torch.equal(split // 64, channels // 64)


def test_tensors_go_there_and_back() -> None:
    x = torch.randn(5, 2, 128)
    assert torch.equal(to_interleaved(to_half_split(x)), x)
    assert torch.equal(to_half_split(x)[..., 64], x[..., 1])
