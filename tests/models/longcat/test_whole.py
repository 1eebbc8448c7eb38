"""A whole published folder: prompts in, frames out, with everything found beside the network."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.torch import save_file

from qvg_engine import EngineConfig, VideoEngine, VideoRequest
from qvg_engine.cli.app import main
from qvg_engine.loading import load_family
from qvg_engine.models.longcat.conditions import LongCatConditions
from qvg_engine.models.longcat.config import CLASS_NAME
from qvg_engine.models.longcat.layout import to_published_
from qvg_engine.models.vae.wan import WanVaeCodec
from qvg_engine.video.reader import read_video
from tests.models.longcat.toy import CONFIG, make_network

SIZE = msgspec.structs.replace(CONFIG, caption_channels=16, hidden_size=64)


@pytest.fixture
def folder(
    wan_vae: Any,
    umt5: Any,
    umt5_tokenizer: Path,
    save_wan_vae: Callable[..., Path],
    save_umt5: Callable[..., Path],
    tmp_path: Path,
) -> Path:
    root = tmp_path / "LongCat-Video"
    (root / "dit").mkdir(parents=True)
    weights = make_network(SIZE).state_dict()
    for key, value in weights.items():
        to_published_(key, value, SIZE.head_dim)
    save_file(weights, root / "dit" / "diffusion_pytorch_model.safetensors")
    config = {"_class_name": CLASS_NAME, **msgspec.to_builtins(SIZE)}
    (root / "dit" / "config.json").write_text(json.dumps(config))
    save_wan_vae(wan_vae, root / "vae")
    save_umt5(umt5, root / "text_encoder")
    shutil.copytree(umt5_tokenizer, root / "tokenizer")
    return root


def settings(model: Path, **more: Any) -> EngineConfig:
    given = {
        "latent_shape": (4, 4, 6),
        "frames_per_chunk": 2,
        "text_len": 8,
        "kv_format": "q4",
        "kv_memory": 2**24,
        "device": "cpu",
        **more,
    }
    return EngineConfig(model=str(model), **given)


def make(config: EngineConfig, **fields: Any) -> np.ndarray:
    engine = VideoEngine(config)
    conditions = LongCatConditions(num_steps=2, condition_frames=2, enhance_hf=False)
    request = VideoRequest(
        request_id="a", prompt="a red fox", num_frames=25, conditions=conditions, **fields
    )
    assert engine.add_request(request) == ()
    frames = []
    while engine.has_unfinished_requests():
        for output in engine.step():
            assert output.error is None
            assert output.frames is not None
            frames.append(output.frames)
        engine.check_integrity()
    return np.concatenate(frames)


@pytest.mark.parametrize("inner", [False, True])
def test_prompts_become_frames(folder: Path, inner: bool) -> None:
    family = load_family(settings(folder / "dit" if inner else folder))
    assert isinstance(family.codec, WanVaeCodec)
    assert family.codec.frames_per_second == 15
    # 7 latent frames: 4 of text alone, 2 and 1 that continue from the pixels of 2.
    made = make(settings(folder))
    assert made.shape == (25, 32, 48, 3)
    assert not np.array_equal(made, make(settings(folder), seed=1))


def test_offload_changes_nothing(folder: Path) -> None:
    assert np.array_equal(make(settings(folder)), make(settings(folder, offload=True)))


def test_a_clip_is_continued(folder: Path) -> None:
    """From the latents of a clip's last pixel frames; its frames are not given out again."""
    config = settings(folder)
    family = load_family(config)
    assert family.codec is not None
    clip = np.random.default_rng(0).integers(0, 255, (9, 32, 48, 3), dtype=np.uint8)
    context = family.codec.encode(clip[-5:])
    made = make(config, context_latents=context)
    assert made.shape == (25, 32, 48, 3)
    assert not np.array_equal(made, make(config))


def test_headers_alone_make_a_family(folder: Path) -> None:
    family = load_family(settings(folder), headers_only=True)
    assert family.codec is not None
    assert family.codec.state_bytes(4, 6) > 0
    assert family.network.final_layer.linear.weight.is_meta  # type: ignore[attr-defined]


def test_the_command_line_makes_a_video(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(
        [
            *("generate", "a red fox", "--model", str(folder), "--size", "64x32"),
            *("--num-frames", "9", "--scale", "1", "--kv-memory", "64MiB", "--device", "cpu"),
        ]
    )
    assert code == 0
    (video,) = (tmp_path / "videos").glob("*.mp4")
    assert read_video(video).shape == (9, 32, 64, 3)
