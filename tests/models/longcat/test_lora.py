"""Merging a LoRA under its published names."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from qvg_engine import EngineConfig, VideoEngine
from qvg_engine.errors import CheckpointError, ConfigError
from qvg_engine.models.longcat.checkpoint import load_longcat_network
from qvg_engine.models.longcat.config import CLASS_NAME
from qvg_engine.models.longcat.layout import to_internal_, to_published_
from tests.models.longcat.toy import CONFIG, make_network, make_request

HYPHEN = "___lorahyphen___"
RANK = 3
LAYERS = {
    "blocks.0.attn.qkv": 3,
    "blocks.0.attn.proj": 1,
    "blocks.0.cross_attn.kv_linear": 2,
    "blocks.1.ffn.w2": 1,
    "final_layer.adaLN_modulation.1": 1,
}


def published_weights() -> dict[str, Tensor]:
    weights = {key: value.clone() for key, value in make_network().state_dict().items()}
    for key, value in weights.items():
        to_published_(key, value, CONFIG.head_dim)
    return weights


def make_lora(
    weights: dict[str, Tensor], scale: float | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The file's tensors, and the weights that they make; 64 / rank without a scale in it."""
    generator = torch.Generator().manual_seed(1)
    lora: dict[str, Tensor] = {}
    merged = dict(weights)
    factor = 64 / RANK if scale is None else scale
    for layer, parts in LAYERS.items():
        weight = weights[f"{layer}.weight"]
        name = f"lora{HYPHEN}" + layer.replace(".", HYPHEN)
        down = torch.randn(parts * RANK, weight.shape[1], generator=generator) / 8
        ups = torch.randn(parts, len(weight) // parts, RANK, generator=generator) / 8
        lora[f"{name}.lora_down.weight"] = down
        if parts == 1:
            lora[f"{name}.lora_up.weight"] = ups[0].contiguous()
        else:
            for part in range(parts):
                lora[f"{name}.lora_up.blocks.{part}.weight"] = ups[part].clone()
        if scale is not None:
            lora[f"{name}.alpha_scale"] = torch.tensor(scale)
        update = torch.block_diag(*ups) @ down if parts > 1 else ups[0] @ down
        merged[f"{layer}.weight"] = weight + factor * update
    return lora, merged


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "dit").mkdir()
    (tmp_path / "lora").mkdir()
    config = {"_class_name": CLASS_NAME, **msgspec.to_builtins(CONFIG)}
    (tmp_path / "dit" / "config.json").write_text(json.dumps(config))
    save_file(published_weights(), tmp_path / "dit" / "diffusion_pytorch_model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("in_file", "alpha", "scale"),
    [(0.5, None, 0.5), (None, None, None), (0.5, 6.0, 2.0)],
    ids=["in the file", "as published", "given"],
)
def test_merged_weights(
    model: Path, in_file: float | None, alpha: float | None, scale: float | None
) -> None:
    lora, _ = make_lora(published_weights(), in_file)
    _, merged = make_lora(published_weights(), scale)
    file = model / "lora" / "cfg_step_lora.safetensors"
    save_file(lora, file)
    network = load_longcat_network(model, lora=file, lora_alpha=alpha)
    for key, value in network.state_dict().items():
        expected = merged[key].clone()
        to_internal_(key, expected, CONFIG.head_dim)
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
        if key.removesuffix(".weight") not in LAYERS:
            assert torch.equal(value, make_network().state_dict()[key])


def test_rounding_comes_after_the_sum(model: Path) -> None:
    lora, merged = make_lora(published_weights(), 0.5)
    file = model / "lora" / "cfg_step_lora.safetensors"
    save_file(lora, file)
    network = load_longcat_network(model, lora=file, dtype=torch.bfloat16)
    expected = merged["blocks.0.attn.proj.weight"].bfloat16()
    differing = network.state_dict()["blocks.0.attn.proj.weight"] != expected
    assert float(differing.float().mean()) < 0.01


def test_a_lora_makes_the_distilled_schedule_the_default(model: Path, run: Any) -> None:
    file = model / "lora" / "cfg_step_lora.safetensors"
    save_file(make_lora(published_weights(), 0.5)[0], file)
    config = EngineConfig(
        model=str(model), latent_shape=(4, 4, 6), text_len=7, kv_format="dense", device="cpu"
    )
    request = make_request("a", conditions={"num_steps": None, "enhance_hf": None}, trace=True)
    with_lora = VideoEngine(msgspec.structs.replace(config, lora=str(file)))
    passes = run(with_lora, request).last("a").trace.passes
    assert [(item.branch, item.step) for item in passes[1:]] == [(0, step) for step in range(16)]
    passes = run(VideoEngine(config), request).last("a").trace.passes
    assert len(passes) == 1 + 2 * 56


def unknown_layer(lora: dict[str, Tensor]) -> None:
    lora[f"lora{HYPHEN}blocks{HYPHEN}7{HYPHEN}attn{HYPHEN}proj.lora_down.weight"] = torch.zeros(
        3, 4
    )


def other_names(lora: dict[str, Tensor]) -> None:
    lora["blocks.0.attn.proj.lora_A.weight"] = torch.zeros(3, 48)


def no_up(lora: dict[str, Tensor]) -> None:
    del lora[f"lora{HYPHEN}blocks{HYPHEN}1{HYPHEN}ffn{HYPHEN}w2.lora_up.weight"]


def wrong_rank(lora: dict[str, Tensor]) -> None:
    name = f"lora{HYPHEN}blocks{HYPHEN}1{HYPHEN}ffn{HYPHEN}w2.lora_up.weight"
    lora[name] = torch.zeros(48, 4)


def wrong_rows(lora: dict[str, Tensor]) -> None:
    name = f"lora{HYPHEN}blocks{HYPHEN}1{HYPHEN}ffn{HYPHEN}w2.lora_up.weight"
    lora[name] = torch.zeros(47, 3)


def wrong_scale(lora: dict[str, Tensor]) -> None:
    lora[f"lora{HYPHEN}blocks{HYPHEN}1{HYPHEN}ffn{HYPHEN}w2.alpha_scale"] = torch.zeros(2)


def empty(lora: dict[str, Tensor]) -> None:
    lora.clear()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (unknown_layer, "left over: lora___lorahyphen___blocks___lorahyphen___7"),
        (other_names, r"left over: blocks\.0\.attn\.proj\.lora_A\.weight"),
        (no_up, r"blocks\.1\.ffn\.w2 lacks its lora_down or lora_up"),
        (wrong_rank, r"lora_down of \[3, 256\] and lora_up of \[\[48, 4\]\]"),
        (wrong_rows, r"lora_up of blocks\.1\.ffn\.w2 has 47 rows, its weights 48"),
        (wrong_scale, "alpha_scale is not one number"),
        (empty, "holds no named tensors"),
    ],
)
def test_wrong_files_are_one_line(model: Path, spoil: Any, words: str) -> None:
    lora = make_lora(published_weights(), 0.5)[0]
    spoil(lora)
    file = model / "lora" / "cfg_step_lora.safetensors"
    save_file(lora, file)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_longcat_network(model, lora=file)
    assert "\n" not in str(caught.value)


def test_paths_that_hold_no_lora(model: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_longcat_network(model, lora=model / "lora" / "none.safetensors")
    with pytest.raises(ConfigError, match="takes none"):
        VideoEngine(EngineConfig(lora="x.safetensors", device="cpu"))
