"""Trellis-coded levels: what codes mean, and that the best ones are found."""

import itertools
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch

from qvg_engine.kernels.codec import PRESETS, CodecSpec, CodedPages, encode_span
from qvg_engine.kernels.codec.e4m3 import from_e4m3
from qvg_engine.kernels.codec.trellis import channel_order, choose_codes, level_indices

MakePages = Callable[..., CodedPages]


def even_levels(bits: int) -> tuple[float, ...]:
    return tuple((k - 2**bits + 0.5) / 2 for k in range(2 ** (bits + 1)))


def test_channels_are_taken_byte_by_byte() -> None:
    assert channel_order(8, 2).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert channel_order(16, 1).tolist() == [*range(0, 16, 2), *range(1, 16, 2)]
    assert channel_order(4, 4).tolist() == [0, 2, 1, 3]


def test_what_codes_mean_is_worked_out_by_hand() -> None:
    # One byte of four codes, then another; in the order of the trellis:
    code = [1, 0, 3, 2, 1, 1, 0, 3]
    # u = 1 0 1 0 1 1 0 1
    y1 = [1, 0 ^ 1, 1 ^ 0, 0 ^ 1 ^ 1, 1 ^ 0 ^ 0, 1 ^ 1 ^ 1, 0 ^ 1 ^ 0, 1 ^ 0 ^ 1]
    y0 = [0, 0, 1, 0, 1, 0, 1, 1]
    expected = [4 * (c // 2) + 2 * a + b for c, a, b in zip(code, y1, y0, strict=True)]
    codes, indices = torch.empty(8, dtype=torch.uint8), torch.empty(8, dtype=torch.int64)
    codes[channel_order(8, 2)] = torch.tensor(code, dtype=torch.uint8)
    indices[channel_order(8, 2)] = torch.tensor(expected)
    assert torch.equal(level_indices(codes, 2), indices)


@pytest.mark.parametrize(("bits", "head_dim"), [(1, 8), (2, 4), (4, 2)])
def test_no_other_codes_have_a_smaller_error(bits: int, head_dim: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    levels = torch.tensor(even_levels(bits))
    rows = torch.randn(50, head_dim, generator=generator)
    steps = 0.3 + torch.rand(50, head_dim, generator=generator)
    every = torch.tensor(list(itertools.product(range(2**bits), repeat=head_dim)))
    reachable = levels[level_indices(every.to(torch.uint8), bits)]
    errors = (rows[:, None] - reachable * steps[:, None]).double().square().sum(-1)
    chosen = levels[level_indices(choose_codes(rows, steps, levels, bits), bits)] * steps
    error = (rows - chosen).double().square().sum(-1)
    np.testing.assert_allclose(error, errors.amin(dim=1), rtol=1e-5)


def error_of(spec: CodecSpec, rows: torch.Tensor, make_pages: MakePages) -> float:
    """Of rows [tokens, heads, head_dim] without centroids, in parts of their energy."""
    alone = msgspec.structs.replace(spec, stages=0, channel_widths=False)
    num_tokens, num_heads, head_dim = rows.shape
    sizes = {"num_heads": num_heads, "page_size": num_tokens, "head_dim": head_dim}
    pages = make_pages(alone, num_pages=1, **sizes)
    figures = encode_span(pages, np.array([0]), rows, slot=0)
    return float(figures.error_energy.sum() / figures.energy.sum())


PLAIN = {
    "q1": (-1.0, 1.0),
    "q2": (-0.625, -0.1875, 0.1875, 0.625),
    "q4": tuple(
        x / 64 for x in (-86, -65, -51, -40, -30, -21, -12, -4, 4, 12, 21, 30, 40, 51, 65, 86)
    ),
}
"""Those of Lloyd and Max for normally distributed numbers, within 2 %."""


@pytest.mark.parametrize(("name", "gain"), [("q4", 1.4), ("q2", 0.9), ("q1", 0.6)])
def test_a_trellis_beats_plain_codes_of_as_many_bits(
    make_pages: MakePages, name: str, gain: float
) -> None:
    rows = torch.randn(3000, 1, 128)
    with_trellis = error_of(PRESETS[name], rows, make_pages)
    without = msgspec.structs.replace(PRESETS[name], trellis=False, levels=PLAIN[name])
    assert 10 * np.log10(error_of(without, rows, make_pages) / with_trellis) > gain


@pytest.mark.parametrize("name", ["q1", "q2", "q4"])
@pytest.mark.parametrize(
    ("draw", "loss"),
    [
        (torch.distributions.Normal(0, 1), 0.3),
        (torch.distributions.Laplace(0, 1), 0.2),
        (torch.distributions.StudentT(3), 0.2),
    ],
    ids=["normal", "Laplace", "t"],
)
def test_four_scales_are_close_to_the_best_of_all(
    make_pages: MakePages, name: str, draw: torch.distributions.Distribution, loss: float
) -> None:
    spec = PRESETS[name]
    rows = draw.sample((200, 1, 64))
    levels = torch.tensor(spec.levels)
    least = torch.full((200,), torch.inf, dtype=torch.float64)
    for scale in from_e4m3(torch.arange(8, 100, dtype=torch.uint8)):
        steps = scale.expand(200, 64)
        codes = choose_codes(rows[:, 0], steps, levels, spec.bits)
        left = rows[:, 0] - levels[level_indices(codes, spec.bits)] * steps
        least = torch.minimum(least, left.double().square().sum(dim=-1))
    best = float(least.sum() / rows.double().square().sum())
    assert 10 * np.log10(error_of(spec, rows, make_pages) / best) < loss
