"""A whole published folder: prompts in, frames out, with everything found beside the network."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qvg_engine import EngineConfig, VideoEngine, VideoRequest
from qvg_engine.cli.app import main
from qvg_engine.errors import ConfigError
from qvg_engine.loading import load_family
from qvg_engine.models.vae.taehv import Taehv
from qvg_engine.models.vae.wan import WanVaeCodec
from qvg_engine.video.reader import read_video

Settings = Callable[..., EngineConfig]


def make(config: EngineConfig) -> dict[str, np.ndarray]:
    engine = VideoEngine(config)
    for name, prompt in (("a", "a red fox"), ("b", "caf\u00e9")):
        request = VideoRequest(request_id=name, prompt=prompt, num_frames=30, seed=1)
        assert engine.add_request(request) == ()
    frames: dict[str, list[np.ndarray]] = {"a": [], "b": []}
    switched = False
    while engine.has_unfinished_requests():
        for output in engine.step():
            assert output.error is None
            assert output.frames is not None
            frames[output.request_id].append(output.frames)
        if frames["a"] and not switched:
            engine.update_request("a", prompt="red red fox")
            switched = True
        engine.check_integrity()
    return {name: np.concatenate(parts) for name, parts in frames.items()}


@pytest.mark.parametrize("by_file", [False, True])
def test_prompts_become_frames(wan_folder: Path, wan_settings: Settings, by_file: bool) -> None:
    model = wan_folder / "checkpoints/self_forcing_dmd.pt" if by_file else wan_folder
    assert isinstance(load_family(wan_settings(model)).codec, WanVaeCodec)
    made = make(wan_settings(model))
    assert made["a"].shape == made["b"].shape == (30, 32, 48, 3)
    assert not np.array_equal(made["a"], made["b"])


def test_offload_changes_nothing(wan_folder: Path, wan_settings: Settings) -> None:
    plain, taken_in_turns = (
        make(wan_settings(wan_folder)),
        make(wan_settings(wan_folder, offload=True)),
    )
    for name in ("a", "b"):
        assert np.array_equal(plain[name], taken_in_turns[name])


def test_a_state_on_the_host_changes_nothing(wan_folder: Path, wan_settings: Settings) -> None:
    plain = make(wan_settings(wan_folder))
    spilled = make(wan_settings(wan_folder, decoder_slots=1, spilled_decoders=1))
    for name in ("a", "b"):
        assert np.array_equal(plain[name], spilled[name])


def test_parts_of_another_model(
    wan_folder: Path, wan_settings: Settings, save_umt5: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(vocab_size=8, d_model=32, d_kv=6, d_ff=24, num_layers=1, num_heads=3)
    other = save_umt5(UMT5EncoderModel(config), tmp_path / "other")
    with pytest.raises(ConfigError, match="rows of 32 channels, the network takes 16"):
        load_family(wan_settings(wan_folder, text_encoder=str(other)))
    torch.save(Taehv(16, 1).state_dict(), tmp_path / "taew2_1.pth")
    with pytest.raises(ConfigError, match="has 16 latent channels, the network 4"):
        load_family(wan_settings(wan_folder, vae=str(tmp_path / "taew2_1.pth")))


def test_parts_can_be_given(wan_folder: Path, wan_settings: Settings, tmp_path: Path) -> None:
    base = wan_folder / "wan_models/Wan2.1-T2V-1.3B"
    elsewhere = {}
    for name, part in (
        ("vae", base / "vae"),
        ("text_encoder", base / "text_encoder"),
        ("tokenizer", base / "google/umt5-xxl"),
    ):
        elsewhere[name] = str(shutil.move(part, tmp_path / f"my-{name}"))
    bare = load_family(wan_settings(wan_folder))
    assert (bare.codec, bare.prompt_encoder) == (None, None)
    assert load_family(wan_settings(wan_folder, **elsewhere)).prompt_encoder is not None
    with pytest.raises(ConfigError, match="has no tokenizer beside it"):
        load_family(wan_settings(wan_folder, text_encoder=elsewhere["text_encoder"]))
    with pytest.raises(ConfigError, match="vae is '/nowhere', which does not exist"):
        load_family(wan_settings(wan_folder, vae="/nowhere"))


def test_headers_alone_make_a_family(wan_folder: Path, wan_settings: Settings) -> None:
    family = load_family(wan_settings(wan_folder), headers_only=True)
    assert family.codec is not None
    assert family.codec.state_bytes(4, 6) > 0
    assert family.network.head.modulation.is_meta  # type: ignore[attr-defined]


def test_the_command_line_makes_a_video(
    wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (wan_folder / "checkpoints/self_forcing_dmd.pt").rename(
        wan_folder / "diffusion_pytorch_model.safetensors.pt"
    )
    content = torch.load(wan_folder / "diffusion_pytorch_model.safetensors.pt", weights_only=True)
    from safetensors.torch import save_file

    save_file(content["generator_ema"], wan_folder / "diffusion_pytorch_model.safetensors")
    (wan_folder / "config.json").write_text('{"num_heads": 2}')
    base = wan_folder / "wan_models/Wan2.1-T2V-1.3B"
    monkeypatch.chdir(tmp_path)
    code = main(
        [
            *("generate", "a red fox", "--model", str(wan_folder), "--size", "64x32"),
            *("--vae", str(base / "vae"), "--num-frames", "13", "--scale", "1"),
            *("--kv-memory", "64MiB", "--device", "cpu", "--offload"),
        ]
    )
    assert code == 0
    (video,) = (tmp_path / "videos").glob("*.mp4")
    assert read_video(video).shape == (13, 32, 64, 3)


def test_a_video_goes_on_from_frames(wan_folder: Path, wan_settings: Settings) -> None:
    """What is decoded chunk by chunk is one decode of the context and what was made."""
    engine = VideoEngine(wan_settings(wan_folder))
    codec = engine.family.codec
    assert codec is not None
    given = np.random.default_rng(0).integers(0, 256, (13, 32, 48, 3), dtype=np.uint8)
    context = codec.encode(given)
    made: dict[str, list[Any]] = {}
    for output, field in (("video", "frames"), ("latents", "latents")):
        request = VideoRequest(
            request_id=output,
            prompt="a fox",
            num_frames=20,
            seed=3,
            context_latents=context,
            output=output,  # type: ignore[arg-type]
        )
        engine.add_request(request)
        made[field] = []
        while engine.has_unfinished_requests():
            made[field] += [getattr(item, field) for item in engine.step()]
    frames = np.concatenate(made["frames"])
    whole, _ = codec.decode_chunk(torch.cat([context, *made["latents"]]), None)
    assert len(frames) == 20
    assert np.abs(frames.astype(int) - whole[13:33].numpy()).max() <= 1
