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
from qvg_engine.models.vae.wan import WanVaeCodec
from qvg_engine.models.wan.config import WanConfig
from qvg_engine.models.wan.layout import to_published
from qvg_engine.models.wan.network import WanNetwork
from qvg_engine.video.reader import read_video

SIZE = WanConfig(
    dim=64, ffn_dim=48, num_heads=2, num_layers=1, in_dim=4, out_dim=4, text_dim=16, freq_dim=16
)


@pytest.fixture
def folder(
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


def settings(model: Path, **more: Any) -> EngineConfig:
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
def test_prompts_become_frames(folder: Path, by_file: bool) -> None:
    family = load_family(
        settings(folder / "checkpoints/self_forcing_dmd.pt" if by_file else folder)
    )
    assert isinstance(family.codec, WanVaeCodec)
    made = make(settings(folder))
    assert made["a"].shape == made["b"].shape == (30, 32, 48, 3)
    assert not np.array_equal(made["a"], made["b"])


def test_offload_changes_nothing(folder: Path) -> None:
    plain, taken_in_turns = make(settings(folder)), make(settings(folder, offload=True))
    for name in ("a", "b"):
        assert np.array_equal(plain[name], taken_in_turns[name])


def test_parts_can_be_given(folder: Path, tmp_path: Path) -> None:
    base = folder / "wan_models/Wan2.1-T2V-1.3B"
    elsewhere = {}
    for name, part in (
        ("vae", base / "vae"),
        ("text_encoder", base / "text_encoder"),
        ("tokenizer", base / "google/umt5-xxl"),
    ):
        elsewhere[name] = str(shutil.move(part, tmp_path / f"my-{name}"))
    bare = load_family(settings(folder))
    assert (bare.codec, bare.prompt_encoder) == (None, None)
    assert load_family(settings(folder, **elsewhere)).prompt_encoder is not None
    with pytest.raises(ConfigError, match="has no tokenizer beside it"):
        load_family(settings(folder, text_encoder=elsewhere["text_encoder"]))
    with pytest.raises(ConfigError, match="vae is '/nowhere', which does not exist"):
        load_family(settings(folder, vae="/nowhere"))


def test_headers_alone_make_a_family(folder: Path) -> None:
    family = load_family(settings(folder), headers_only=True)
    assert family.codec is not None
    assert family.codec.state_bytes(4, 6) > 0
    assert family.network.head.modulation.is_meta  # type: ignore[attr-defined]


def test_the_command_line_makes_a_video(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "checkpoints/self_forcing_dmd.pt").rename(
        folder / "diffusion_pytorch_model.safetensors.pt"
    )
    content = torch.load(folder / "diffusion_pytorch_model.safetensors.pt", weights_only=True)
    from safetensors.torch import save_file

    save_file(content["generator_ema"], folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text('{"num_heads": 2}')
    base = folder / "wan_models/Wan2.1-T2V-1.3B"
    monkeypatch.chdir(tmp_path)
    code = main(
        [
            *("generate", "a red fox", "--model", str(folder), "--size", "64x32"),
            *("--vae", str(base / "vae"), "--num-frames", "13", "--scale", "1"),
            *("--kv-memory", "64MiB", "--device", "cpu", "--offload"),
        ]
    )
    assert code == 0
    (video,) = (tmp_path / "videos").glob("*.mp4")
    assert read_video(video).shape == (13, 32, 64, 3)
