"""A whole folder of the 5B: prompt, picture and pose in, frames out."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from qvg_engine import EngineConfig, VideoEngine, VideoRequest
from qvg_engine.cli.video_family import with_size
from qvg_engine.errors import ConfigError, RequestError
from qvg_engine.loading import load_family
from qvg_engine.models.wan.layout import to_published
from qvg_engine.models.worldplay.conditions import WorldPlayConditions
from qvg_engine.models.worldplay.wan_network import CameraWanNetwork
from qvg_engine.plan import plan_capacity
from tests.models.worldplay.test_worldplay_files import published_wan_name
from tests.models.worldplay.toy import WAN_CONFIG, drawn

HEIGHT, WIDTH = 32, 48
IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def folder(
    wan_vae: Any,
    umt5: Any,
    umt5_tokenizer: Path,
    save_wan_vae: Callable[..., Path],
    save_umt5: Callable[..., Path],
    tmp_path: Path,
) -> Path:
    """The network's folder, and the base model's beside it."""
    network = drawn(CameraWanNetwork(msgspec.structs.replace(WAN_CONFIG, text_dim=16)))
    state = to_published(network.state_dict(), WAN_CONFIG.head_dim)
    root = tmp_path / "wan_distilled_model"
    root.mkdir()
    named = {f"model.{published_wan_name(key)}": value for key, value in state.items()}
    torch.save({"generator": named}, root / "model.pt")
    base = tmp_path / "Wan2.2-TI2V-5B-Diffusers"
    base.mkdir()
    save_wan_vae(wan_vae, base / "vae")
    save_umt5(umt5, base / "text_encoder")
    shutil.copytree(umt5_tokenizer, base / "tokenizer")
    return root


def settings(folder: Path, **more: Any) -> EngineConfig:
    return EngineConfig(
        model=str(folder),
        num_heads=2,
        latent_shape=(4, HEIGHT // 8, WIDTH // 8),
        text_len=8,
        kv_format="q4",
        kv_memory=2**24,
        device="cpu",
        **more,
    )


def make(config: EngineConfig, **conditions: Any) -> np.ndarray:
    engine = VideoEngine(config)
    given = {"pose": "w-4,right-3", "image": IMAGE, **conditions}
    request = VideoRequest(
        request_id="a",
        prompt="a red fox",
        num_frames=29,
        seed=1,
        conditions=WorldPlayConditions(**given),
    )
    assert engine.add_request(request) == ()
    frames = []
    while engine.has_unfinished_requests():
        for output in engine.step():
            assert output.error is None, output.error
            frames += [] if output.frames is None else [output.frames]
        engine.check_integrity()
    return np.concatenate(frames)


def test_a_picture_becomes_a_walk(folder: Path) -> None:
    family: Any = load_family(settings(folder))
    assert family.codec.frames_per_second == 24
    made = make(settings(folder))
    assert made.shape == (29, HEIGHT, WIDTH, 3)
    latents = family.codec.encode(IMAGE[None])
    first, _ = family.codec.decode_chunk(latents, None)
    assert np.array_equal(made[0], np.asarray(first)[0])
    assert np.array_equal(made, make(settings(folder), image=None, image_latents=latents))
    assert not np.array_equal(made, make(settings(folder), pose="s-7"))


def test_guidance_by_words(folder: Path) -> None:
    plain = make(settings(folder))
    guided = make(settings(folder), guidance_scale=3.0, negative_prompt="red red")
    assert guided.shape == plain.shape
    assert not np.array_equal(guided, plain)


def test_taking_turns_changes_nothing(folder: Path) -> None:
    assert np.array_equal(make(settings(folder)), make(settings(folder, offload=True)))


def test_what_fits_is_known_from_headers(folder: Path) -> None:
    config = settings(folder, dtype="float32")
    config = msgspec.structs.replace(config, latent_shape=None)
    family = load_family(config, headers_only=True)
    assert family.settings.latent_shape == (4, 44, 80)
    plan = plan_capacity(with_size(config, (WIDTH, HEIGHT)), family, num_frames=29)
    # Seven latent frames take two chunks; the second remembers the first, whatever comes later.
    assert plan.pages_per_stream == -(-4 * family.tokens_per_frame // config.page_size)
    assert plan.longest_frames is None or plan.longest_frames > 29


def test_a_picture_of_another_size(folder: Path) -> None:
    with pytest.raises(RequestError, match="the first image's latents are") as caught:
        make(settings(folder), image=np.zeros((64, WIDTH, 3), np.uint8))
    assert "\n" not in str(caught.value)


def test_a_vae_of_another_model(folder: Path) -> None:
    family: Any = load_family(settings(folder))
    codec = family.codec
    codec.latent_channels = 16
    with pytest.raises(ConfigError, match="the VAE has 16 channels, the network 4"):
        family.surround(codec, None)
