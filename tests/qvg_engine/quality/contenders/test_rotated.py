import pytest
import torch

from qvg_engine.errors import ConfigError
from qvg_engine.kernels.rope.layout import to_half_split, to_interleaved
from qvg_engine.quality.contenders import contender
from qvg_engine.quality.contenders.rotated import hadamard
from qvg_engine.quality.format_errors import squared_error
from tests.qvg_engine.quality.contenders.conftest import clustered_rows, normal_rows


def test_the_matrix_of_four_channels() -> None:
    matrix = hadamard(torch.eye(4))
    signs = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
    assert torch.equal(matrix, signs / 2)


def test_it_keeps_norms_and_is_its_own_inverse() -> None:
    rows = normal_rows()
    turned = hadamard(rows)
    assert torch.allclose(turned.norm(dim=-1), rows.norm(dim=-1), rtol=1e-5)
    assert torch.allclose(hadamard(turned), rows, atol=1e-5)
    assert not torch.allclose(turned, rows, atol=0.1)


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"head_dim is 96: .* needs a power of 2"):
        contender("quarot2").round_trip(normal_rows(head_dim=96), is_key=True, seed=0, centroids=1)


@pytest.mark.parametrize(
    ("plain", "rotated"), [("rtn2-asym", "quarot2"), ("four-no-widths", "four-no-widths-hadamard")]
)
def test_one_loud_channel_is_shared_out(plain: str, rotated: str) -> None:
    rows = normal_rows()
    rows[..., 17] *= 20
    without, turned = (
        contender(name).round_trip(rows, is_key=False, seed=0, centroids=1)
        for name in (plain, rotated)
    )
    # The others of its group are lost beside it.
    quiet = [channel for channel in range(64) if channel != 17]
    assert squared_error(without.rows[..., quiet], rows[..., quiet]) > 1
    assert squared_error(turned.rows, rows) < 0.4 * squared_error(without.rows, rows)
    assert (turned.bits, turned.shared_bits) == (without.bits, without.shared_bits)


@pytest.mark.parametrize("name", ["quarot2", "four-hadamard"])
def test_the_order_of_channels_does_not_matter(name: str) -> None:
    """K in the engine's order is stored as it would be in the published one."""
    rows = clustered_rows(200, clusters=3)
    keys = contender(name).round_trip(rows, is_key=True, seed=0, centroids=3).rows
    published = contender(name).round_trip(to_interleaved(rows), is_key=False, seed=0, centroids=3)
    difference = squared_error(to_half_split(published.rows), keys)
    assert difference < 0.02 * squared_error(keys, rows)
