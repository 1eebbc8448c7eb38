"""Noise follows from its key alone."""

import torch

from qvg_engine.models.noise import GivenNoise, KeyedNoise

SHAPE = (3, 4, 8, 8)


def test_draws_differ_by_seed_chunk_and_step_only() -> None:
    draws = [
        draw
        for seed in (0, 1, 2**64, 2**100)
        for chunk in (0, 1, 500)
        for draw in (
            KeyedNoise(seed).start(chunk, SHAPE),
            KeyedNoise(seed).renoise(chunk, 0, SHAPE),
            KeyedNoise(seed).renoise(chunk, 1, SHAPE),
        )
    ]
    flat = torch.stack(draws).flatten(1)
    correlation = torch.corrcoef(flat) - torch.eye(len(flat))
    assert float(correlation.abs().max()) < 0.2
    source = KeyedNoise(7)
    late_first = (source.renoise(5, 1, SHAPE), source.start(0, SHAPE))
    other = KeyedNoise(7)
    early_first = (other.start(0, SHAPE), other.renoise(5, 1, SHAPE))
    assert torch.equal(late_first[0], early_first[1])
    assert torch.equal(late_first[1], early_first[0])


def test_noise_is_standard_normal_and_the_same_everywhere() -> None:
    noise = KeyedNoise(3).start(2, (64, 4, 16, 16))
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    assert noise.dtype == torch.float32
    # A change of the generator would change everybody's videos.
    first = KeyedNoise(0).start(0, (1, 1, 1, 3)).flatten()
    torch.testing.assert_close(first, torch.tensor(FIRST_VALUES), rtol=0, atol=1e-6)


FIRST_VALUES = [0.059911035, 0.015559634, -1.1644385]


def test_given_noise_is_used_as_it_is() -> None:
    noise, renoise = torch.randn(6, 4, 2, 2), torch.randn(2, 3, 3, 4, 2, 2)
    given = GivenNoise(noise, renoise, frames_per_chunk=3, keyed=KeyedNoise(0))
    shape = (3, 4, 2, 2)
    assert torch.equal(given.start(1, shape), noise[3:])
    assert torch.equal(given.renoise(1, 2, shape), renoise[1, 2])
    keyed = GivenNoise(noise, None, frames_per_chunk=3, keyed=KeyedNoise(0))
    assert torch.equal(keyed.renoise(1, 2, shape), KeyedNoise(0).renoise(1, 2, shape))
