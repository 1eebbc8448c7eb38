"""Loading WorldPlay's weights: the 5B in diffusers' names, the 8B in its own."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from qvg_engine.kernels.rope.layout import half_split_index
from qvg_engine.models.wan.checkpoint import STATE_DICT_NAMES, check_keys, wan_names
from qvg_engine.models.wan.config import WanConfig, config_from_weights
from qvg_engine.models.wan.layout import to_internal
from qvg_engine.models.weights_file import read_weights_file, state_dict_in
from qvg_engine.models.worldplay import hunyuan_config
from qvg_engine.models.worldplay.hunyuan_config import HunyuanConfig
from qvg_engine.models.worldplay.hunyuan_network import HunyuanNetwork
from qvg_engine.models.worldplay.wan_network import CameraWanNetwork

WAN_MARK = "condition_embedder.action_embedder.linear_1.weight"
HUNYUAN_MARK = "action_in.mlp.0.weight"
"""Checkpoints of the 5B, and of the 8B, have a tensor whose name ends so; no other model has."""

_ROTATED = re.compile(r"^double_blocks\.\d+\.(img|txt)_attn_[qk](_norm)?\.")

_CAMERA_NAMES = (
    (r"^condition_embedder\.action_embedder\.linear_1\.", "action_embedding.0."),
    (r"^condition_embedder\.action_embedder\.linear_2\.", "action_embedding.2."),
    (r"\.attn1\.to_out_prope\.0\.", ".camera_output."),
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, or of all safetensors files in a folder (of `model.pt` if none)."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        files = [path / "model.pt"]
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= state_dict_in(read_weights_file(file), STATE_DICT_NAMES, file)
    return weights


def build_wan_network(
    weights: Mapping[str, Tensor], *, config: WanConfig | None = None
) -> CameraWanNetwork:
    """The 5B's network, in fp32, from a state dict with any wrapper prefixes.

    Raises `CheckpointError` that lists missing, left-over and wrongly shaped tensors.
    """
    named = wan_names(weights)
    for pattern, replacement in _CAMERA_NAMES:
        named = {re.sub(pattern, replacement, key): value for key, value in named.items()}
    config = config or config_from_weights(named)
    with torch.device("meta"):
        network = CameraWanNetwork(config)
    check_keys(network.state_dict(), named)
    single = {key: value.to(torch.float32) for key, value in named.items()}
    network.load_state_dict(to_internal(single, config.head_dim), assign=True)
    return network.eval().requires_grad_(False)


def build_hunyuan_network(
    weights: Mapping[str, Tensor], *, config: HunyuanConfig | None = None
) -> HunyuanNetwork:
    """The 8B's network, in fp32, from a state dict with the published names and channel order.

    Raises `CheckpointError` that lists missing, left-over and wrongly shaped tensors.
    """
    named = wan_names(weights)
    config = config or hunyuan_config.config_from_weights(named)
    with torch.device("meta"):
        network = HunyuanNetwork(config)
    check_keys(network.state_dict(), named)
    network.load_state_dict(
        {key: _internal(key, value.to(torch.float32), config) for key, value in named.items()},
        assign=True,
    )
    return network.eval().requires_grad_(False)


def _internal(key: str, value: Tensor, config: HunyuanConfig) -> Tensor:
    """Queries and keys of the blocks in the internal channel order, all else as it is."""
    if not _ROTATED.search(key):
        return value
    num_heads = 1 if "norm" in key else config.num_heads
    return value[half_split_index(config.head_dim, num_heads)]
