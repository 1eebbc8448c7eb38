"""A folder as Self-Forcing and its base model publish theirs, with tiny random weights."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qvg_engine import EngineConfig
from qvg_engine.models.wan.config import WanConfig
from qvg_engine.models.wan.layout import to_published
from qvg_engine.models.wan.network import WanNetwork

SIZE = WanConfig(
    dim=64, ffn_dim=48, num_heads=2, num_layers=1, in_dim=4, out_dim=4, text_dim=16, freq_dim=16
)


@pytest.fixture
def wan_folder(
    wan_vae: Any,
    umt5: Any,
    umt5_tokenizer: Path,
    save_wan_vae: Callable[..., Path],
    save_umt5: Callable[..., Path],
    tmp_path: Path,
) -> Path:
    """Self-Forcing's file, and the base model's parts as diffusers saves them."""
    torch.manual_seed(0)
    network = WanNetwork(SIZE)
    published = to_published(network.state_dict(), SIZE.head_dim)
    root = tmp_path / "model"
    (root / "checkpoints").mkdir(parents=True)
    state = {f"model.{key}": value for key, value in published.items()}
    torch.save({"generator_ema": state}, root / "checkpoints/self_forcing_dmd.pt")
    base = root / "wan_models/Wan2.1-T2V-1.3B"
    base.mkdir(parents=True)
    save_wan_vae(wan_vae, base / "vae")
    save_umt5(umt5, base / "text_encoder")
    shutil.copytree(umt5_tokenizer, base / "google/umt5-xxl")
    return root


def make_settings(model: Path, **more: Any) -> EngineConfig:
    given = {
        "num_heads": 2,
        "latent_shape": (4, 4, 6),
        "text_len": 8,
        "window_frames": 9,
        "kv_format": "q4",
        "kv_memory": 2**24,
        "device": "cpu",
        **more,
    }
    return EngineConfig(model=str(model), **given)


@pytest.fixture
def wan_settings() -> Callable[..., EngineConfig]:
    return make_settings
