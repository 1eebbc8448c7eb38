"""Finding and loading WorldPlay's files: what is there, and one clear line for what is not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from qvg_engine import EngineConfig, VideoEngine
from qvg_engine.errors import CheckpointError, ConfigError
from qvg_engine.kernels.rope.layout import interleaved_index
from qvg_engine.loading import load_family, override
from qvg_engine.models.noise import KeyedNoise
from qvg_engine.models.program import StreamInputs, TextRows
from qvg_engine.models.wan.layout import to_published
from qvg_engine.models.worldplay.files import find_worldplay
from qvg_engine.models.worldplay.hunyuan_family import WorldPlayHunyuanFamily
from qvg_engine.models.worldplay.wan_family import TIMESTEPS, WorldPlayWanFamily
from qvg_engine.worldplay_model import load_worldplay
from tests.models.worldplay.toy import HUNYUAN_CONFIG, WAN_CONFIG, make_family, make_request

# The names of the 5B's tensors: what is published, and what this network calls it.
WAN_NAMES = (
    ("action_embedding.0.", "condition_embedder.action_embedder.linear_1."),
    ("action_embedding.2.", "condition_embedder.action_embedder.linear_2."),
    ("time_embedding.0.", "condition_embedder.time_embedder.linear_1."),
    ("time_embedding.2.", "condition_embedder.time_embedder.linear_2."),
    ("text_embedding.0.", "condition_embedder.text_embedder.linear_1."),
    ("text_embedding.2.", "condition_embedder.text_embedder.linear_2."),
    ("time_projection.1.", "condition_embedder.time_proj."),
    ("camera_output.", "attn1.to_out_prope.0."),
    ("self_attn.norm_", "attn1.norm_"),
    ("cross_attn.norm_", "attn2.norm_"),
    ("self_attn.o.", "attn1.to_out.0."),
    ("cross_attn.o.", "attn2.to_out.0."),
    ("self_attn.", "attn1.to_"),
    ("cross_attn.", "attn2.to_"),
    ("norm3.", "norm2."),
    ("ffn.0.", "ffn.net.0.proj."),
    ("ffn.2.", "ffn.net.2."),
    ("head.head.", "proj_out."),
    ("head.modulation", "scale_shift_table"),
    ("modulation", "scale_shift_table"),
)
HUNYUAN_JSON = {
    "heads_num": 2,
    "patch_size": [1, 1, 1],
    "rope_dim_list": [8, 12, 12],
    "rope_theta": 256,
    "mm_single_blocks_depth": 0,
}
NAMES = {"5b": "model.pt", "8b": "diffusion_pytorch_model.safetensors"}


def published_wan_name(name: str) -> str:
    for ours, theirs in WAN_NAMES:
        if ours in name and theirs not in name:
            return name.replace(ours, theirs)
    return name


def published(kind: str) -> dict[str, Tensor]:
    """A toy network's state dict as it would be published."""
    state = make_family(kind).network.state_dict()
    if kind == "5b":
        ordered = to_published(state, WAN_CONFIG.head_dim)
        return {published_wan_name(key): value.contiguous() for key, value in ordered.items()}
    weights = {}
    head_dim = HUNYUAN_CONFIG.head_dim
    for key, value in state.items():
        rotated = any(f"_attn_{x}{rest}." in key for x in "qk" for rest in ("", "_norm"))
        if key.startswith("double_blocks.") and rotated:
            value = value[interleaved_index(head_dim, len(value) // head_dim)]
        weights[key] = value.contiguous()
    return weights


def write(kind: str, folder: Path, weights: dict[str, Tensor]) -> Path:
    """A folder as it is published."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAMES[kind]
    if kind == "5b":
        torch.save({"generator": {f"model.{k}": v for k, v in weights.items()}}, path)
        (folder / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    else:
        save_file(weights, path)
        (folder / "config.json").write_text(json.dumps(HUNYUAN_JSON))
    return folder


def load(path: Path, **settings: Any) -> Any:
    return load_family(
        EngineConfig(model=str(path), latent_shape=(4, 2, 4), device="cpu", **settings)
    )


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("as_file", [False, True])
def test_a_round_trip(kind: str, as_file: bool, tmp_path: Path) -> None:
    folder = write(kind, tmp_path / "toy", published(kind))
    family = load(folder / NAMES[kind] if as_file else folder)
    assert family.name == "toy"
    expected = make_family(kind).network
    assert family.network.config == expected.config
    state = family.network.state_dict()
    for key, value in expected.state_dict().items():
        assert torch.equal(state[key], value), key


def test_shards_and_prefixes(tmp_path: Path) -> None:
    weights = {f"module.{key}": value for key, value in published("8b").items()}
    names = sorted(weights)
    index: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"diffusion_pytorch_model-0000{number + 1}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, tmp_path / file)
        index |= dict.fromkeys(part, file)
    table = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    table.write_text(json.dumps({"weight_map": index}))
    (tmp_path / "config.json").write_text(json.dumps(HUNYUAN_JSON))
    state = load(tmp_path).network.state_dict()
    for key, value in make_family("8b").network.state_dict().items():
        assert torch.equal(state[key], value), key


@pytest.mark.parametrize("kind", NAMES)
def test_published_folders_within_a_repository(kind: str, tmp_path: Path) -> None:
    name = {"5b": "wan_distilled_model", "8b": "ar_distilled_action_model"}[kind]
    write(kind, tmp_path / name, published(kind))
    family = load(tmp_path)
    assert family.name == name
    assert isinstance(family, WorldPlayWanFamily if kind == "5b" else WorldPlayHunyuanFamily)
    assert family.settings.guidance_scale == 1
    assert len(family.sampler.timesteps) == 4


def test_folders_say_how_weights_are_sampled(tmp_path: Path) -> None:
    write("8b", tmp_path / "ar_model", published("8b"))
    family = load(tmp_path / "ar_model")
    assert (family.settings.guidance_scale, len(family.sampler.timesteps)) == (6.0, 50)
    assert family.sampler.sigmas[:2] == pytest.approx((1, 5 * 0.98 / (1 + 4 * 0.98)))
    write("5b", tmp_path / "wan_transformer", published("5b"))
    family = load(tmp_path / "wan_transformer", timesteps=(1000.0, 500.0), window_frames=None)
    assert family.sampler.timesteps == (1000.0, 500.0)
    assert family.settings.memory_frames is None
    assert load(tmp_path / "wan_transformer").settings.timesteps == TIMESTEPS


def test_several_models_in_one_folder(tmp_path: Path) -> None:
    for name in ("ar_model", "ar_rl_model"):
        write("8b", tmp_path / name, published("8b"))
    with pytest.raises(CheckpointError, match="give one of its folders ar_rl_model, ar_model"):
        load(tmp_path)


@pytest.mark.parametrize("kind", NAMES)
def test_a_loaded_network_makes_a_video(kind: str, tmp_path: Path, run: Any) -> None:
    folder = write(kind, tmp_path / "toy", published(kind))
    config = EngineConfig(
        model=str(folder), latent_shape=(4, 2, 4), text_len=5, kv_memory=2**22, device="cpu"
    )
    latents = run(VideoEngine(config), make_request(kind)).latents("a")
    assert latents.shape == (12, 4, 2, 4)


def missing(weights: dict[str, Tensor], last: str) -> str:
    del weights[last]
    return "missing: "


def left_over(weights: dict[str, Tensor], last: str) -> str:
    weights[f"{last}.extra"] = torch.zeros(1)
    return "left over: "


def wrong_shape(weights: dict[str, Tensor], last: str) -> str:
    weights[last] = torch.zeros(5)
    return r"wrong shape: .* is \[5\], not "


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("spoil", [missing, left_over, wrong_shape])
def test_wrong_weights_are_listed(kind: str, spoil: Any, tmp_path: Path) -> None:
    weights = published(kind)
    last = {"5b": "blocks.1.attn1.to_out_prope.0.bias", "8b": "double_blocks.1.txt_mlp.fc2.bias"}
    words = spoil(weights, last[kind])
    with pytest.raises(CheckpointError, match=f"another model; {words}") as caught:
        load(write(kind, tmp_path, weights))
    assert "\n" not in str(caught.value)


def test_weights_without_sizes(tmp_path: Path) -> None:
    save_file({"action_in.mlp.0.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"not a WorldPlay-8B network: 'img_in\.proj"):
        load(tmp_path / "w.safetensors")


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("kept", [0, 1000])
def test_truncated_files(kind: str, kept: int, tmp_path: Path) -> None:
    path = write(kind, tmp_path, published(kind)) / NAMES[kind]
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="corrupt or truncated") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"patch_size": [1, 2, 2]}, "patch_size is"),
        ({"mm_single_blocks_depth": 3}, "mm_single_blocks_depth is 3"),
        ({"rope_dim_list": [8, 12]}, "rope_dim"),
        ({"rope_theta": "many"}, "rope_theta"),
    ],
)
def test_configs_of_another_network(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    write("8b", tmp_path, published("8b"))
    (tmp_path / "config.json").write_text(json.dumps(HUNYUAN_JSON | given))
    with pytest.raises((CheckpointError, ConfigError), match=words):
        load(tmp_path)


def test_a_config_that_is_none(tmp_path: Path) -> None:
    write("5b", tmp_path, published("5b"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is no config of this network"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("8b", {"num_heads": 4}, "num_heads is 4: .* does not have it"),
        ("5b", {"lora": "lora.pt"}, "lora is 'lora.pt': .* does not have it"),
        ("5b", {"positions": "window"}, "positions is 'window'"),
        ("8b", {"text_encoder": "t"}, "text_encoder is 't': .* does not have it"),
        ("8b", {"vae": "vae"}, "vae is 'vae', which does not exist"),
        ("8b", {"vae_attention_frames": 2}, "vae_attention_frames is 2: .* leave it out"),
        ("8b", {"window_frames": 7}, "window_frames is 7"),
    ],
)
def test_settings_that_the_model_does_not_have(
    kind: str, given: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        load(write(kind, tmp_path, published(kind)), **given)


@pytest.mark.parametrize("kind", NAMES)
def test_headers_alone_say_what_a_video_needs(kind: str, tmp_path: Path) -> None:
    files = find_worldplay(write(kind, tmp_path, published(kind)))
    assert files is not None
    expected = make_family(kind)
    config = EngineConfig(model="", latent_shape=(4, 2, 4), text_len=5, device="cpu")
    family: Any = load_worldplay(files, config, override, device=torch.device("meta"))
    assert all(parameter.is_meta for parameter in family.network.parameters())
    family = type(expected)(family.network, expected.settings)
    inputs = StreamInputs(
        text=TextRows(torch.zeros(1, family.text_dim), 5),
        num_frames=24,
        latent_shape=(4, 2, 4),
        noise=KeyedNoise(0),
    )
    needs = [item.open(inputs, page_size=8).needs for item in (family, expected)]
    assert needs[0] == needs[1]
    assert needs[0].pages == -(-16 * family.tokens_per_frame // 8)
