"""The 8B with its VAE beside it: states, picture and pose in, frames out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qvg_engine import EngineConfig, VideoEngine, VideoRequest
from qvg_engine.cli.app import main
from qvg_engine.errors import CheckpointError, ConfigError
from qvg_engine.loading import load_family
from qvg_engine.memory_plan import plan_memory
from qvg_engine.models.vae.hunyuan import HunyuanVaeCodec
from qvg_engine.models.worldplay.conditions import WorldPlayConditions
from qvg_engine.plan import plan_capacity
from tests.models.worldplay.test_worldplay_files import published, write
from tests.models.worldplay.toy import IMAGE_DIM, TEXT_DIM, random

HEIGHT, WIDTH = 32, 64
NUM_FRAMES = 29
IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def plans_of_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths up to 20,000 frames are looked at, since paths of a million take long to make."""
    for module in ("plan", "memory_plan"):
        monkeypatch.setattr(f"qvg_engine.{module}.MAX_PLANNED_FRAMES", 20_000)


@pytest.fixture
def folder(hunyuan_vae: Any, save_hunyuan_vae: Callable[..., Path], tmp_path: Path) -> Path:
    """The network within its repository, and HunyuanVideo-1.5 beside that."""
    base = tmp_path / "HunyuanVideo-1.5-Diffusers-480p_i2v"
    base.mkdir()
    save_hunyuan_vae(hunyuan_vae, base / "vae")
    return write("8b", tmp_path / "HY-WorldPlay" / "ar_distilled_action_model", published("8b"))


def settings(folder: Path, **more: Any) -> EngineConfig:
    given = {
        "latent_shape": (4, HEIGHT // 16, WIDTH // 16),
        "text_len": 5,
        "kv_format": "dense",
        "kv_memory": 2**24,
        "page_size": 8,
        "device": "cpu",
        **more,
    }
    return EngineConfig(model=str(folder), **given)


def request(request_id: str = "a", **fields: Any) -> VideoRequest:
    conditions = WorldPlayConditions(
        pose="w-4,right-3", image=IMAGE, image_embeds=random(3, 3, IMAGE_DIM)
    )
    given = {
        "prompt_embeds": random(4, 3, TEXT_DIM),
        "num_frames": NUM_FRAMES,
        "seed": 1,
        "conditions": conditions,
        **fields,
    }
    return VideoRequest(request_id=request_id, **given)


def test_frames_are_those_of_one_decode(folder: Path, hunyuan_vae: Any, run: Any) -> None:
    engine = VideoEngine(settings(folder))
    codec = engine.family.codec
    assert isinstance(codec, HunyuanVaeCodec)
    assert codec.frames_per_second == 24
    video = run(engine, request(), request("b", output="latents"))
    made = np.concatenate([np.asarray(item.frames) for item in video.outputs["a"]])
    assert made.shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)
    latents = video.latents("b")
    assert len(latents) == 8
    whole, _ = codec.decode_chunk(latents, None)
    assert np.abs(made.astype(int) - whole.numpy()[:NUM_FRAMES].astype(int)).max() <= 1


def test_taking_turns_changes_nothing(folder: Path, run: Any) -> None:
    plain, in_turns = (
        run(VideoEngine(settings(folder, offload=offload)), request()).outputs["a"]
        for offload in (False, True)
    )
    for one, other in zip(plain, in_turns, strict=True):
        assert np.array_equal(one.frames, other.frames)


@pytest.mark.parametrize("bound", [None, 3])
def test_a_plan_counts_the_states_as_they_end(folder: Path, bound: int | None) -> None:
    config = settings(folder, vae_attention_frames=bound, dtype="float32")
    family: Any = load_family(config, headers_only=True)
    assert next(family.codec.vae.parameters()).is_meta
    plan = plan_capacity(config, family, num_frames=NUM_FRAMES)
    assert plan.decoder_bytes_per_stream == family.codec.state_bytes_after(2, 4, bound or 8)
    shares = plan_memory(
        config, family, num_frames=NUM_FRAMES, num_streams=2, gpu_bytes=2**24, kv_formats=("bf16",)
    )
    engine = VideoEngine(config)
    for name in "ab":
        engine.add_request(request(name))
    most = 0
    while engine.has_unfinished_requests():
        engine.step()
        most = max(most, engine.stats().decoder_bytes)
    # What a video's last frames add is given back in the same step.
    assert most <= shares.decoder_bytes == 2 * plan.decoder_bytes_per_stream
    assert most == pytest.approx(shares.decoder_bytes, rel=0.02)
    assert shares.weights.vae == engine.family.codec.num_bytes  # type: ignore[union-attr]
    # With a window K and V of the network are bounded; the decoder's state alone may not be.
    (item,) = shares.formats
    assert (item.longest_frames is None) == (bound is not None)


def test_the_doctor_plans_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["doctor", "--model", str(folder), "--num-frames", "29", "--size", "64x32"]
    main([*arguments, "--gpu-memory", "1GiB"])
    printed = capsys.readouterr().out
    assert "decoder states" in printed
    assert "videos of 29 frames from ar_distilled_action_model" in printed


def test_what_is_given_comes_first(folder: Path, hunyuan_vae: Any, tmp_path: Path) -> None:
    (other := tmp_path / "other").mkdir()
    (other / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}')
    with pytest.raises(CheckpointError, match="config of AutoencoderKLWan, not of") as caught:
        load_family(settings(folder, vae=str(other)))
    assert "\n" not in str(caught.value)


def test_a_vae_of_another_class_is_passed_over(
    folder: Path, save_wan_vae: Callable[..., Path], wan_vae: Any
) -> None:
    save_wan_vae(wan_vae, folder / "vae")
    assert isinstance(load_family(settings(folder)).codec, HunyuanVaeCodec)


def test_a_vae_of_other_channels(folder: Path, save_hunyuan_vae: Any, tmp_path: Path) -> None:
    from diffusers import AutoencoderKLHunyuanVideo15

    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=8, block_out_channels=(8, 16, 16, 32, 32), layers_per_block=1
    )
    save_hunyuan_vae(vae, tmp_path / "eight")
    with pytest.raises(ConfigError, match="the VAE has 8 channels, the network 4"):
        load_family(settings(folder, vae=str(tmp_path / "eight")))


def test_without_a_vae_there_are_latents(folder: Path, run: Any) -> None:
    alone = write("8b", folder.parent.parent / "deep" / "er" / "toy", published("8b"))
    assert load_family(settings(alone)).codec is None
    noise = torch.randn(8, 4, 2, 4, generator=torch.Generator().manual_seed(0))
    conditions = WorldPlayConditions(image_embeds=random(3, 3, IMAGE_DIM))
    latents = request(num_frames=None, noise=noise, output="latents", conditions=conditions)
    assert run(VideoEngine(settings(alone)), latents).latents("a").shape == noise.shape
