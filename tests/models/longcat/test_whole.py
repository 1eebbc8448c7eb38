"""A whole published folder: prompts in, frames out, with everything found beside the network."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qvg_engine import EngineConfig, VideoEngine, VideoRequest
from qvg_engine.cli.app import main
from qvg_engine.cli.start_frames import read_start
from qvg_engine.errors import ConfigError
from qvg_engine.loading import load_family
from qvg_engine.memory_plan import plan_memory
from qvg_engine.models.longcat.conditions import LongCatConditions
from qvg_engine.models.longcat.config import CLASS_NAME
from qvg_engine.models.longcat.layout import to_published_
from qvg_engine.models.vae.wan import WanVaeCodec
from qvg_engine.video.reader import read_video
from qvg_engine.video.writer import VideoWriter
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


def test_parts_of_another_model_are_refused(folder: Path) -> None:
    config = folder / "dit" / "config.json"
    weights = folder / "dit" / "diffusion_pytorch_model.safetensors"
    other = msgspec.structs.replace(SIZE, caption_channels=12)
    config.write_text(json.dumps({"_class_name": CLASS_NAME, **msgspec.to_builtins(other)}))
    save_file(make_network(other).state_dict(), weights)
    with pytest.raises(ConfigError, match="makes rows of 16 channels, the network takes 12"):
        load_family(settings(folder))


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


def test_the_command_line_takes_conditions(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [
        *("generate", "a red fox", "--model", str(folder), "--size", "64x32", "--num-frames"),
        *("9", "--scale", "1", "--kv-memory", "64MiB", "--device", "cpu", "--conditions"),
    ]
    for number, steps in enumerate((1, 3)):
        conditions = f'{{"num_steps": {steps}, "guidance": 2.0}}'
        assert main([*arguments, conditions, "--output-dir", str(number)]) == 0
    first, second = (read_video(next(Path(str(n)).glob("*.mp4"))) for n in range(2))
    assert not np.array_equal(first, second)
    assert main([*arguments, '{"steps": 3}']) == 2
    assert "does not have steps; it has guidance" in capsys.readouterr().err


def test_the_command_line_continues_a_video(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirteen pixel frames, four latent ones, are the condition."""
    monkeypatch.chdir(tmp_path)
    arguments = [
        *("generate", "a red fox", "--model", str(folder), "--size", "64x32"),
        *("--num-frames", "8", "--scale", "1", "--kv-memory", "64MiB", "--device", "cpu"),
    ]
    assert main(arguments) == 0
    (first,) = (tmp_path / "videos").glob("*.mp4")
    given = tmp_path / "given.mp4"
    writer = VideoWriter(given, frames_per_second=15, scale=1, overwrite=True)
    writer.write(np.random.default_rng(0).integers(0, 255, (20, 32, 64, 3), dtype=np.uint8))
    writer.close()
    start = read_start(given, load_family(settings(folder, latent_shape=(4, 4, 8))))
    assert start.latents.shape == (4, 4, 4, 8)
    assert main([*arguments, "--start-from", str(given), "--output-dir", "more"]) == 0
    (second,) = (tmp_path / "more").glob("*.mp4")
    assert len(read_video(second)) >= 8
    assert not np.array_equal(read_video(first)[-8:], read_video(second)[-8:])


def test_a_plan_is_what_an_engine_allocates(folder: Path) -> None:
    config = settings(folder, frames_per_chunk=2, kv_format="bf16", max_streams=2, page_size=16)
    plan = plan_memory(
        config,
        load_family(config, headers_only=True),
        num_frames=30,
        num_streams=2,
        gpu_bytes=2**34,
        kv_formats=("bf16",),
    )
    engine = VideoEngine(msgspec.structs.replace(config, kv_memory=plan.formats[0].kv_bytes))
    rows = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    for index in range(2):
        conditions = LongCatConditions(
            num_steps=2, enhance_hf=False, negative_prompt_embeds=rows - index - 1
        )
        request = VideoRequest(
            request_id=str(index),
            prompt_embeds=rows + index,
            num_frames=30,
            conditions=conditions,
        )
        engine.add_request(request)
    most_text = most_decoder = most_pages = 0
    while engine.has_unfinished_requests():
        engine.step()
        stats = engine.stats()
        most_text = max(most_text, stats.text_bytes)
        most_decoder = max(most_decoder, stats.decoder_bytes)
        most_pages = max(most_pages, stats.pages_used)
    assert engine._cache.store.num_bytes == pytest.approx(plan.formats[0].kv_bytes, rel=0.02)
    assert most_pages == engine.stats().pages_total == 2 * -(-4 * 6 // 16)
    assert stats.workspace_bytes == plan.workspace_bytes
    assert most_text == plan.text_bytes
    assert most_decoder == plan.decoder_bytes
    family: Any = engine.family
    assert plan.weights.network == sum(part.nbytes for part in family.network.parameters())
    # Four frames and two new ones in both branches of both videos, or the decode after them.
    in_step = family.activation_bytes(2 * 2 * 6 * 6)
    assert plan.activation_bytes == max(in_step, family.codec.decode_bytes(4, 6))
