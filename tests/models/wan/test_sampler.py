"""The sampler's noise levels and updates."""

import pytest
import torch

from qvg_engine.models.wan.sampler import FewStepSampler


def test_warped_timesteps_are_those_of_self_forcing() -> None:
    sampler = FewStepSampler([1000, 750, 500, 250], shift=5.0, warp_timesteps=True)
    assert sampler.timesteps == pytest.approx([1000, 937.5, 833.33333, 625], abs=1e-4)
    assert sampler.sigmas == pytest.approx([1, 0.9375, 0.8333333, 0.625], abs=1e-7)
    assert sampler.commit_sigma == pytest.approx(0.005 / 1.004)


def test_unwarped_timesteps_take_the_nearest_level() -> None:
    sampler = FewStepSampler([1000, 757, 522], shift=8.0, warp_timesteps=False)
    assert sampler.timesteps == (1000, 757, 522)
    assert sampler.sigmas == pytest.approx([1.0, 0.757, 0.522], abs=5e-3)
    steps = torch.linspace(1, 0, 1001)[:-1]
    table = 8 * steps / (1 + 7 * steps)
    assert all(float((table - sigma).abs().min()) == 0 for sigma in sampler.sigmas)


def test_x0_and_renoise_undo_each_other() -> None:
    sampler = FewStepSampler([1000, 500], shift=1.0, warp_timesteps=True)
    x0, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    noisy = sampler.renoise(x0, noise, 1)
    torch.testing.assert_close(sampler.predict_x0(noisy, noise - x0, 1), x0)


@pytest.mark.parametrize(
    ("timesteps", "shift", "commit", "words"),
    [
        ([], 5.0, 0.0, "timesteps is empty"),
        ([500, 750], 5.0, 0.0, "falling"),
        ([1001], 5.0, 0.0, "falling"),
        ([1000, 0], 5.0, 0.0, "falling"),
        ([1000], 0.0, 0.0, "shift"),
        ([1000], float("nan"), 0.0, "shift"),
        ([1000], 5.0, -1.0, "commit_timestep"),
        ([1000], 5.0, 1000.0, "commit_timestep"),
    ],
)
def test_bad_settings(timesteps: list[float], shift: float, commit: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FewStepSampler(timesteps, shift=shift, warp_timesteps=True, commit_timestep=commit)
