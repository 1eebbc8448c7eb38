"""A tiny random Wan VAE as diffusers makes it."""

import warnings
from typing import Any

import pytest
import torch

MEAN, STD = [0.3, -0.2, 0.1, 0.5], [1.5, 0.7, 2.0, 1.1]


@pytest.fixture(scope="session")
def wan_vae() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import AutoencoderKLWan
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=2,
        latents_mean=MEAN,
        latents_std=STD,
    )
    for name, parameter in vae.named_parameters():
        # Drawn anew where a fresh model is zero or one, so that nothing is trivially right.
        if parameter.ndim == 1 or "gamma" in name:
            torch.nn.init.normal_(parameter, mean=float("gamma" in name), std=0.3)
    return vae.eval().requires_grad_(False)
