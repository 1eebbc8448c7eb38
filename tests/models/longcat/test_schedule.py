"""Noise levels and guidance."""

import pytest
import torch

from qvg_engine.models.longcat.schedule import cfg_zero_scale, guide, make_schedule


def test_standard_levels() -> None:
    schedule = make_schedule("standard", num_steps=5, shift=12.0, enhance_hf=False)
    expected = [1000.0, 973.0081176757812, 923.2188720703125, 800.6386108398438, 11.869436264038086]
    assert schedule.timesteps == pytest.approx(expected, abs=1e-4)
    assert schedule.sigmas == pytest.approx([t / 1000 for t in expected] + [0], abs=1e-7)


def test_even_steps_end_the_schedule() -> None:
    plain = make_schedule("standard", num_steps=50, shift=12.0, enhance_hf=False)
    schedule = make_schedule("standard", num_steps=50, shift=12.0, enhance_hf=True)
    assert (plain.num_steps, schedule.num_steps) == (50, 56)
    assert schedule.timesteps[:46] == plain.timesteps[:46]
    assert schedule.timesteps[45] > 500
    assert schedule.timesteps[46:] == pytest.approx([500 - 50 * i for i in range(10)])
    assert schedule.sigmas[-1] == 0


def test_distilled_levels() -> None:
    schedule = make_schedule("distilled", num_steps=16, shift=12.0, enhance_hf=False)
    # Entries 0, 3, 6, 9, 12, 15, ... of 1, 0.98, 0.96, ...
    table = [1 - 0.02 * (i * 50 // 16) for i in range(16)]
    assert schedule.num_steps == 16
    assert table[1] == pytest.approx(0.94)
    warped = [1000 * 12 * u / (1 + 11 * u) for u in table]
    assert schedule.timesteps == pytest.approx(warped, abs=1e-3)
    assert schedule.timesteps[4] == pytest.approx(974.36, abs=5e-3)


def test_euler_reaches_what_a_straight_flow_points_to() -> None:
    schedule = make_schedule("standard", num_steps=7, shift=3.0, enhance_hf=False)
    noise, clean = torch.randn(2, 3, 4)
    x = noise
    for step in range(schedule.num_steps):
        torch.testing.assert_close(schedule.predict_x0(x, clean - noise, step), clean)
        x = schedule.advance(x, clean - noise, step)
    torch.testing.assert_close(x, clean)


def test_scale_is_the_projection() -> None:
    negative = torch.randn(5, 6)
    across = torch.randn(5, 6)
    across -= negative * (across * negative).sum() / negative.square().sum()
    prompted = 0.7 * negative + across
    scale = cfg_zero_scale(prompted, negative)
    assert float(scale) == pytest.approx(0.7, abs=1e-5)
    guided = guide(prompted, negative, guidance=4.0, scale=scale)
    torch.testing.assert_close(guided, 0.7 * negative + 4 * across, atol=1e-5, rtol=1e-5)
    assert float(cfg_zero_scale(prompted, torch.zeros(5, 6))) == 0
