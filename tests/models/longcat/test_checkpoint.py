"""Loading the published layout: every wrong file is one clear line."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from qvg_engine import EngineConfig, VideoEngine
from qvg_engine.errors import CheckpointError, ConfigError
from qvg_engine.models.longcat.checkpoint import is_longcat, load_longcat_network, read_shift
from qvg_engine.models.longcat.config import CLASS_NAME, LongCatConfig, config_from_dict
from qvg_engine.models.longcat.family import LongCatFamily
from qvg_engine.models.longcat.layout import to_internal_, to_published_
from qvg_engine.models.longcat.network import LongCatNetwork
from tests.models.longcat.toy import CONFIG, make_network, make_request

HYPHEN = "___lorahyphen___"


def published_weights() -> dict[str, Tensor]:
    weights = {key: value.clone() for key, value in make_network().state_dict().items()}
    for key, value in weights.items():
        to_published_(key, value, CONFIG.head_dim)
    return weights


def published_config(**changes: Any) -> dict[str, Any]:
    return {
        "_class_name": CLASS_NAME,
        "bsa_params": None,
        "cp_split_hw": [1, 1],
        "enable_flashattn2": True,
        **msgspec.to_builtins(CONFIG),
        **changes,
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A published folder with one file of weights."""
    write_model(tmp_path, {"diffusion_pytorch_model.safetensors": published_weights()})
    return tmp_path


def write_model(folder: Path, files: Mapping[str, dict[str, Tensor]]) -> None:
    (folder / "dit").mkdir()
    (folder / "scheduler").mkdir()
    (folder / "dit" / "config.json").write_text(json.dumps(published_config()))
    scheduler = {"shift": 9.0, "num_train_timesteps": 1000, "use_dynamic_shifting": False}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    for name, weights in files.items():
        save_file(weights, folder / "dit" / name)


def shard_names(count: int) -> list[str]:
    return [f"diffusion_pytorch_model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The same in three shards with an index."""
    weights = published_weights()
    names = shard_names(3)
    shards: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    homes = {key: names[index % 3] for index, key in enumerate(weights)}
    for key, home in homes.items():
        shards[home][key] = weights[key]
    write_model(tmp_path, shards)
    index = {"metadata": {}, "weight_map": homes}
    (tmp_path / "dit" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps(index)
    )
    return tmp_path


def test_parameters_at_full_size() -> None:
    with torch.device("meta"):
        network = LongCatNetwork(LongCatConfig())
    weights = network.state_dict()
    assert len(weights) == 1022
    assert sum(value.numel() for value in weights.values()) == 13_581_071_424


def test_published_keys() -> None:
    with torch.device("meta"):
        weights = LongCatNetwork(LongCatConfig(depth=1)).state_dict()
    dim = 4096
    block = {
        "adaLN_modulation.1.weight": (6 * dim, 512),
        "adaLN_modulation.1.bias": (6 * dim,),
        "pre_crs_attn_norm.weight": (dim,),
        "pre_crs_attn_norm.bias": (dim,),
        "attn.qkv.weight": (3 * dim, dim),
        "attn.qkv.bias": (3 * dim,),
        "attn.q_norm.weight": (128,),
        "attn.k_norm.weight": (128,),
        "attn.proj.weight": (dim, dim),
        "attn.proj.bias": (dim,),
        "cross_attn.q_linear.weight": (dim, dim),
        "cross_attn.q_linear.bias": (dim,),
        "cross_attn.kv_linear.weight": (2 * dim, dim),
        "cross_attn.kv_linear.bias": (2 * dim,),
        "cross_attn.proj.weight": (dim, dim),
        "cross_attn.proj.bias": (dim,),
        "cross_attn.q_norm.weight": (128,),
        "cross_attn.k_norm.weight": (128,),
        "ffn.w1.weight": (11008, dim),
        "ffn.w2.weight": (dim, 11008),
        "ffn.w3.weight": (11008, dim),
    }
    expected = {
        "x_embedder.proj.weight": (dim, 16, 1, 2, 2),
        "x_embedder.proj.bias": (dim,),
        "t_embedder.mlp.0.weight": (512, 256),
        "t_embedder.mlp.0.bias": (512,),
        "t_embedder.mlp.2.weight": (512, 512),
        "t_embedder.mlp.2.bias": (512,),
        "y_embedder.y_proj.0.weight": (dim, 4096),
        "y_embedder.y_proj.0.bias": (dim,),
        "y_embedder.y_proj.2.weight": (dim, dim),
        "y_embedder.y_proj.2.bias": (dim,),
        "final_layer.linear.weight": (64, dim),
        "final_layer.linear.bias": (64,),
        "final_layer.adaLN_modulation.1.weight": (2 * dim, 512),
        "final_layer.adaLN_modulation.1.bias": (2 * dim,),
        **{f"blocks.0.{key}": shape for key, shape in block.items()},
    }
    assert {key: tuple(value.shape) for key, value in weights.items()} == expected


@pytest.mark.parametrize("layout", ["model", "sharded"])
@pytest.mark.parametrize("inner", [False, True], ids=["whole folder", "dit folder"])
def test_weights_make_a_round_trip(
    request: pytest.FixtureRequest, layout: str, inner: bool
) -> None:
    root: Path = request.getfixturevalue(layout)
    path = root / "dit" if inner else root
    assert is_longcat(path)
    assert read_shift(path) == 9.0
    network = load_longcat_network(path)
    assert network.config == CONFIG
    expected = make_network().state_dict()
    assert expected.keys() == network.state_dict().keys()
    for key, value in network.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_headers_are_enough_on_the_meta_device(model: Path) -> None:
    network = load_longcat_network(model, device="meta", dtype=torch.bfloat16)
    assert network.config == CONFIG
    assert {value.device.type for value in network.state_dict().values()} == {"meta"}
    assert network.dtype == torch.bfloat16


def test_layouts_are_inverse() -> None:
    weights = published_weights()
    changed = []
    for key, value in weights.items():
        there = value.clone()
        to_internal_(key, there, CONFIG.head_dim)
        if not torch.equal(there, value):
            changed.append(key)
        to_published_(key, there, CONFIG.head_dim)
        assert torch.equal(there, value), key
    permuted = ("qkv.weight", "qkv.bias", "q_norm.weight", "k_norm.weight")
    assert sorted(changed) == sorted(
        f"blocks.{layer}.attn.{name}" for layer in range(CONFIG.depth) for name in permuted
    )
    fused = weights["blocks.0.attn.qkv.weight"].clone()
    to_internal_("blocks.0.attn.qkv.weight", fused, CONFIG.head_dim)
    rows = CONFIG.hidden_size
    assert torch.equal(fused[2 * rows :], weights["blocks.0.attn.qkv.weight"][2 * rows :])


def test_an_engine_loads_the_folder(model: Path) -> None:
    config = EngineConfig(
        model=str(model),
        latent_shape=(4, 4, 6),
        frames_per_chunk=2,
        text_len=9,
        kv_format="dense",
        kv_memory=2**20,
        device="cpu",
    )
    family = VideoEngine(config).family
    assert isinstance(family, LongCatFamily)
    settings = family.settings
    assert (settings.shift, settings.text_len, settings.latent_shape) == (9.0, 9, (4, 4, 6))
    engine = VideoEngine(msgspec.structs.replace(config, shift=3.0, dtype="bfloat16"))
    assert engine.family.settings.shift == 3.0
    engine.add_request(make_request("a"))
    error: str | None = ""
    while engine.has_unfinished_requests():
        for output in engine.step():
            error = output.error
    assert error is None


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"window_frames": 8}, "window_frames is 8: LongCat-Video does not have it"),
        ({"rollout_frames": 9}, "rollout_frames is 9"),
        ({"timesteps": (1000.0,)}, "timesteps is"),
        ({"num_heads": 4}, "num_heads is 4"),
        ({"sink_frames": 1}, "sink_frames is 1"),
        ({"positions": "window"}, "positions is 'window'"),
        ({"latent_shape": (5, 4, 4)}, "latent_shape is .5, 4, 4.: the network takes 4 channels"),
        ({"frames_per_chunk": 0}, "frames_per_chunk is 0"),
        ({"text_len": 0}, "text_len is 0"),
        ({"shift": -1.0}, "shift is -1.0"),
        ({"commit_timestep": 1000.0}, "commit_timestep is 1000.0"),
    ],
)
def test_settings_that_do_not_suit_it(model: Path, setting: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        VideoEngine(EngineConfig(model=str(model), device="cpu", **setting))


Spoiler = Callable[[dict[str, Tensor]], None]


def missing(weights: dict[str, Tensor]) -> None:
    del weights["blocks.1.ffn.w2.weight"]


def left_over(weights: dict[str, Tensor]) -> None:
    weights["blocks.0.extra.weight"] = torch.zeros(1)


def wrong_shape(weights: dict[str, Tensor]) -> None:
    weights["blocks.1.attn.q_norm.weight"] = torch.zeros(5)


def another_model(weights: dict[str, Tensor]) -> None:
    weights.clear()
    weights["transformer.h.0.attn.weight"] = torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (missing, r"missing: blocks\.1\.ffn\.w2\.weight"),
        (left_over, r"left over: blocks\.0\.extra\.weight"),
        (wrong_shape, r"blocks\.1\.attn\.q_norm\.weight is \[5\], not \[24\]"),
        (another_model, r"missing: .* and \d+ more; left over: transformer"),
    ],
)
def test_wrong_weights_are_listed(tmp_path: Path, spoil: Spoiler, words: str) -> None:
    weights = published_weights()
    spoil(weights)
    write_model(tmp_path, {"diffusion_pytorch_model.safetensors": weights})
    with pytest.raises(CheckpointError, match=words) as caught:
        load_longcat_network(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 10, 1000, 100_000])
def test_truncated_files(model: Path, kept: int) -> None:
    path = model / "dit" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="corrupt or truncated") as caught:
        load_longcat_network(model)
    assert "\n" not in str(caught.value)


def test_shards_that_are_missing_or_hold_too_much(sharded: Path) -> None:
    first, second, _ = (sharded / "dit" / name for name in shard_names(3))
    kept = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match="both hold blocks"):
        load_longcat_network(sharded)
    second.unlink()
    with pytest.raises(CheckpointError, match=f"lacks {second.name}, which .*index.json names"):
        load_longcat_network(sharded)
    second.write_bytes(kept)
    load_longcat_network(sharded)


def test_folders_without_weights(model: Path) -> None:
    (model / "dit" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no \.safetensors file"):
        load_longcat_network(model)
    (model / "dit" / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has no weight_map"):
        load_longcat_network(model)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "config.json is not JSON"),
        ("[]", "holds no settings"),
        (json.dumps({"_class_name": "Other"}), "is of 'Other'"),
        (json.dumps({"_class_name": CLASS_NAME}), "lacks in_channels, .*patch_size"),
        (json.dumps(published_config(depth="two")), "config cannot be used"),
        (json.dumps(published_config(num_heads=5)), "num_heads 5"),
        (json.dumps(published_config(depth=0)), "depth is 0"),
    ],
)
def test_configs_that_cannot_be_used(model: Path, content: str, words: str) -> None:
    (model / "dit" / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        VideoEngine(EngineConfig(model=str(model), device="cpu"))
    assert "\n" not in str(caught.value)


def test_what_a_config_may_leave_out() -> None:
    content = published_config(enable_bsa=True)
    del content["text_tokens_zero_pad"]
    with pytest.warns(UserWarning, match="block-sparse attention"):
        config = config_from_dict(content)
    assert config == msgspec.structs.replace(CONFIG, text_tokens_zero_pad=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shift": 0}, "shift is 0"),
        ({"shift": None}, "shift is None"),
        ({"use_dynamic_shifting": True}, "not shifted dynamically"),
        ({"num_train_timesteps": 500}, "must be of 1000 steps"),
    ],
)
def test_schedulers_that_cannot_be_used(model: Path, change: dict[str, Any], words: str) -> None:
    file = model / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError, match=words):
        read_shift(model)


def test_other_folders_are_not_taken(tmp_path: Path) -> None:
    assert not is_longcat(tmp_path)
    (tmp_path / "config.json").write_text('{"network": {}}')
    assert not is_longcat(tmp_path)
    assert not is_longcat(tmp_path / "missing.pt")


LOAD_AND_MEASURE = """
import sys
from pathlib import Path
import torch
from qvg_engine.models.longcat.checkpoint import load_longcat_network

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

torch.set_num_threads(1)
before = kilobytes("VmRSS")
network = load_longcat_network(Path(sys.argv[1]), dtype=getattr(torch, sys.argv[2]))
# What is mapped is not in memory before it is read.
assert all(bool(value.isfinite().all()) for value in network.state_dict().values())
print((kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.parametrize(("stored", "wanted"), [("bfloat16", "bfloat16"), ("float32", "bfloat16")])
def test_a_load_takes_little_more_than_the_file(tmp_path: Path, stored: str, wanted: str) -> None:
    config = LongCatConfig(
        hidden_size=1024, depth=8, num_heads=8, caption_channels=64, adaln_tembed_dim=64
    )
    with torch.device("meta"):
        shapes = LongCatNetwork(config).state_dict()
    dtype = getattr(torch, stored)
    weights = {key: torch.ones(value.shape, dtype=dtype) for key, value in shapes.items()}
    num_bytes = sum(value.nbytes for value in weights.values())
    assert num_bytes > 250e6
    write_model(tmp_path, {"diffusion_pytorch_model.safetensors": weights})
    (tmp_path / "dit" / "config.json").write_text(json.dumps(msgspec.to_builtins(config)))
    del weights
    command = [sys.executable, "-c", LOAD_AND_MEASURE, str(tmp_path), wanted]
    measured = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert 0.45 < float(measured) / num_bytes <= 1.3
