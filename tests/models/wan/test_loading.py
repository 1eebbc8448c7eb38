"""Published layouts of the causal Wan models: folders, shards, LoRA, memory, and the full size."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qvg_engine import EngineConfig
from qvg_engine.errors import CheckpointError, ConfigError
from qvg_engine.loading import load_family
from qvg_engine.models.wan.checkpoint import load_wan
from qvg_engine.models.wan.config import WanConfig
from qvg_engine.models.wan.family import WanFamily
from qvg_engine.models.wan.layout import to_published
from qvg_engine.models.wan.network import WanNetwork

Tensors = dict[str, torch.Tensor]
FULL = WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)


@pytest.fixture
def published(toy: Any) -> Tensors:
    weights = to_published(toy.network.state_dict(), toy.network.config.head_dim)
    return {key: value.contiguous() for key, value in weights.items()}


def load(model: Path, **settings: Any) -> WanFamily:
    given = {"num_heads": 2, "latent_shape": (4, 4, 6), "device": "cpu", **settings}
    family = load_family(EngineConfig(model=str(model), **given))
    assert isinstance(family, WanFamily)
    return family


def save(content: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def published_table(dim: int, ffn_dim: int, num_layers: int) -> dict[str, list[int]]:
    """Every tensor of a published 1.3B file, as facts of the release list them."""
    linear = {"weight": [dim, dim], "bias": [dim]}
    table = {"patch_embedding.weight": [dim, 16, 1, 2, 2], "patch_embedding.bias": [dim]}
    for name, inputs, outputs in (
        ("text_embedding.0", 4096, dim),
        ("text_embedding.2", dim, dim),
        ("time_embedding.0", 256, dim),
        ("time_embedding.2", dim, dim),
        ("time_projection.1", dim, 6 * dim),
        ("head.head", dim, 64),
    ):
        table |= {f"{name}.weight": [outputs, inputs], f"{name}.bias": [outputs]}
    table["head.modulation"] = [1, 2, dim]
    for layer in range(num_layers):
        block = f"blocks.{layer}"
        table[f"{block}.modulation"] = [1, 6, dim]
        for attention in ("self_attn", "cross_attn"):
            for name in "qkvo":
                for kind, shape in linear.items():
                    table[f"{block}.{attention}.{name}.{kind}"] = shape
            table[f"{block}.{attention}.norm_q.weight"] = [dim]
            table[f"{block}.{attention}.norm_k.weight"] = [dim]
        table |= {f"{block}.norm3.weight": [dim], f"{block}.norm3.bias": [dim]}
        table |= {f"{block}.ffn.0.weight": [ffn_dim, dim], f"{block}.ffn.0.bias": [ffn_dim]}
        table |= {f"{block}.ffn.2.weight": [dim, ffn_dim], f"{block}.ffn.2.bias": [dim]}
    return table


def test_full_size_has_the_published_tensors_and_parameters() -> None:
    with torch.device("meta"):
        state = WanNetwork(FULL).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == published_table(
        1536, 8960, 30
    )
    assert len(state) == 825
    assert sum(value.numel() for value in state.values()) == 1_418_996_800


@pytest.mark.parametrize(
    ("place", "name", "settings"),
    [
        ("checkpoints/self_forcing_dmd.pt", "self-forcing", (None, 0, True, 5.0)),
        ("self_forcing_sid.pt", "self-forcing", (None, 0, True, 5.0)),
        ("autoregressive_checkpoint/model.pt", "causvid", (None, 0, False, 8.0)),
        ("models/longlive_base.pt", "longlive", (12, 3, True, 5.0)),
    ],
)
@pytest.mark.parametrize("by_file", [False, True])
def test_published_names_bring_their_settings(
    published: Tensors, tmp_path: Path, place: str, name: str, settings: Any, by_file: bool
) -> None:
    save(
        {"generator": {f"model.{key}": value for key, value in published.items()}}, tmp_path / place
    )
    lora = tmp_path / place
    if name == "longlive":
        save({"generator_lora": lora_of(published)}, lora.with_name("lora.pt"))
    family = load(tmp_path / place if by_file else tmp_path, latent_shape=None)
    rollout = family.settings
    assert family.name == name
    assert settings == (
        rollout.window_frames,
        rollout.sink_frames,
        rollout.warp_timesteps,
        rollout.shift,
    )
    assert rollout.latent_shape == (4, 60, 104)
    assert rollout.timesteps == ((1000, 757, 522) if name == "causvid" else (1000, 750, 500, 250))
    given = load(tmp_path, window_frames=9, positions="window", shift=3.0).settings
    assert (given.window_frames, given.positions, given.shift) == (9, "window", 3.0)


def test_longlive_takes_the_network_that_its_lora_was_trained_on(
    published: Tensors, tmp_path: Path
) -> None:
    average = {key: value + 1 for key, value in published.items()}
    save({"generator": published, "generator_ema": average}, tmp_path / "longlive_base.pt")
    save({"generator_lora": lora_of(published)}, tmp_path / "lora.pt")
    bias = load(tmp_path).network.state_dict()["head.head.bias"]
    assert torch.equal(bias, published["head.head.bias"])


def test_tensors_that_are_there_twice(published: Tensors, tmp_path: Path) -> None:
    twice = {**published, "model.head.head.bias": published["head.head.bias"]}
    save(twice, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"holds tensors twice: .*head\.head\.bias"):
        load(tmp_path / "w.pt")


def test_two_models_in_a_folder_are_an_error(published: Tensors, tmp_path: Path) -> None:
    for name in ("self_forcing_dmd.pt", "longlive_base.pt"):
        save(published, tmp_path / name)
    with pytest.raises(ConfigError, match="several models"):
        load(tmp_path)


@pytest.mark.parametrize("sharded", [False, True])
def test_diffusers_folders(published: Tensors, tmp_path: Path, sharded: bool) -> None:
    folder = tmp_path / "transformer"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    if sharded:
        names = sorted(published)
        parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, keys in parts.items():
            save_file({key: published[key] for key in keys}, folder / file)
        index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
        name = "diffusion_pytorch_model.safetensors.index.json"
        (folder / name).write_text(json.dumps(index))
    else:
        save_file(published, folder / "diffusion_pytorch_model.safetensors")
    network = load(tmp_path, num_heads=None).network
    assert network.config.num_heads == 2
    bias = network.state_dict()["head.head.bias"]
    assert torch.equal(bias, published["head.head.bias"])


def test_an_index_cannot_point_elsewhere(published: Tensors, tmp_path: Path) -> None:
    save_file(published, tmp_path / "a.safetensors")
    (tmp_path / "m").mkdir()
    index = {"weight_map": dict.fromkeys(published, "../a.safetensors")}
    name = "diffusion_pytorch_model.safetensors.index.json"
    (tmp_path / "m" / name).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="lists no files beside it"):
        load(tmp_path / "m")


def test_files_of_the_old_kind(published: Tensors, tmp_path: Path) -> None:
    """Not an archive, and so not to be mapped."""
    path = tmp_path / "w.pt"
    torch.save({"generator": published}, path, _use_new_zipfile_serialization=False)
    bias = load(path).network.state_dict()["head.head.bias"]
    assert torch.equal(bias, published["head.head.bias"])


def lora_of(weights: Tensors, rank: int = 3, infix: str = "") -> Tensors:
    """A PEFT state dict with an update of every linear layer of the blocks."""
    generator = torch.Generator().manual_seed(1)
    lora = {}
    for key, value in weights.items():
        if key.startswith("blocks.") and key.endswith(".weight") and value.ndim == 2:
            layer = f"base_model.model.model.{key.removesuffix('.weight')}"
            down = torch.randn(rank, value.shape[1], generator=generator)
            up = torch.randn(value.shape[0], rank, generator=generator)
            lora[f"{layer}.lora_A{infix}.weight"] = down
            lora[f"{layer}.lora_B{infix}.weight"] = up
    return lora


@pytest.mark.parametrize("infix", ["", ".default"])
@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (6.0, 2.0)])
def test_lora_is_merged(
    published: Tensors, tmp_path: Path, infix: str, alpha: float | None, scale: float
) -> None:
    save({"generator": published}, tmp_path / "models/longlive_base.pt")
    lora = lora_of(published, infix=infix)
    save({"generator_lora": lora}, tmp_path / "models/lora.pt")
    network = load(tmp_path, lora_alpha=alpha).network
    merged = to_published(network.state_dict(), network.config.head_dim)
    for key, value in published.items():
        layer = f"base_model.model.model.{key.removesuffix('.weight')}.lora"
        expected = value
        if f"{layer}_A{infix}.weight" in lora:
            expected = value + scale * (
                lora[f"{layer}_B{infix}.weight"] @ lora[f"{layer}_A{infix}.weight"]
            )
            assert not torch.allclose(expected, value, atol=0.1)
        torch.testing.assert_close(merged[key], expected, atol=1e-5, rtol=1e-5)


def test_longlive_without_its_lora_says_so(published: Tensors, tmp_path: Path) -> None:
    save({"generator": published}, tmp_path / "models/longlive_base.pt")
    with pytest.raises(CheckpointError, match=r"alone is not longlive, and .*lora\.pt is missing"):
        load(tmp_path)


def test_a_lora_alone_is_no_network(published: Tensors, tmp_path: Path) -> None:
    save({"generator": lora_of(published)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="is a LoRA, not a network"):
        load(tmp_path / "w.pt")


def half_missing(lora: Tensors) -> None:
    del lora[next(name for name in lora if "lora_B" in name)]


def unknown_layer(lora: Tensors) -> None:
    for half, shape in (("A", (3, 5)), ("B", (5, 3))):
        lora[f"base_model.model.extra.lora_{half}.weight"] = torch.zeros(shape)


def wrong_shape(lora: Tensors) -> None:
    lora[next(name for name in lora if "lora_B" in name)] = torch.zeros(5, 3)


def another_kind(lora: Tensors) -> None:
    lora["blocks.0.extra"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (half_missing, "both are needed"),
        (unknown_layer, r"left over: extra\.weight"),
        (wrong_shape, r"lora_B \[5, 3\] times lora_A"),
        (another_kind, "not a LoRA as PEFT stores it"),
    ],
)
def test_wrong_loras_are_told(published: Tensors, tmp_path: Path, spoil: Any, words: str) -> None:
    save(published, tmp_path / "w.pt")
    lora = lora_of(published)
    spoil(lora)
    save(lora, tmp_path / "lora.pt")
    with pytest.raises(CheckpointError, match=words) as caught:
        load(tmp_path / "w.pt", lora=str(tmp_path / "lora.pt"))
    assert "\n" not in str(caught.value)


def test_headers_alone_are_read_for_the_meta_device(published: Tensors, tmp_path: Path) -> None:
    save_file(published, tmp_path / "w.safetensors")
    network = load_wan(tmp_path / "w.safetensors", device="meta", num_heads=2)
    assert all(value.is_meta for value in network.state_dict().values())


MEASURE = """
import ctypes
import sys
from pathlib import Path

import torch

from qvg_engine.models.wan.checkpoint import load_wan


def resident(name):
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines[name].split()[0]) * 1024


# What torch imports when it is first asked for meta tensors is not of the load.
load_wan(Path(sys.argv[1]), device="meta")
for path in map(Path, sys.argv[1:]):
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    load_wan(path, dtype=torch.bfloat16)
    print(resident("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def large() -> Tensors:
    """A network of 0.3 GB in bf16."""
    config = WanConfig(dim=768, ffn_dim=3072, num_heads=6, num_layers=14, text_dim=1024)
    with torch.device("meta"):
        shapes = WanNetwork(config).state_dict()
    return {key: torch.zeros(value.shape, dtype=torch.bfloat16) for key, value in shapes.items()}


def test_a_load_holds_little_more_than_the_network(large: Tensors, tmp_path: Path) -> None:
    paths = [tmp_path / "w.safetensors", tmp_path / "w.pt"]
    save_file(large, paths[0])
    torch.save({"generator_ema": large, "generator": {"unused": torch.zeros(1)}}, paths[1])
    size = sum(value.nbytes for value in large.values())
    assert size > 2.5e8
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)], capture_output=True, text=True
    )
    assert measured.returncode == 0, measured.stderr
    for peak in map(int, measured.stdout.split()):
        assert 0.9 * size < peak <= 1.3 * size
