"""Loading WorldPlay's weights: the 5B in diffusers' names, the 8B in its own."""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from qvg_engine.kernels.rope.layout import half_split_index
from qvg_engine.models.wan.checkpoint import check_keys
from qvg_engine.models.wan.config import config_from_weights
from qvg_engine.models.wan.layout import internal
from qvg_engine.models.wan.names import wan_names, without_prefixes
from qvg_engine.models.worldplay import hunyuan_config
from qvg_engine.models.worldplay.files import WorldPlayFiles
from qvg_engine.models.worldplay.hunyuan_config import HunyuanConfig
from qvg_engine.models.worldplay.hunyuan_network import HunyuanNetwork
from qvg_engine.models.worldplay.wan_network import CameraWanNetwork

_ROTATED = re.compile(r"^double_blocks\.\d+\.(img|txt)_attn_[qk](_norm)?\.")

_CAMERA_NAMES = (
    (r"^condition_embedder\.action_embedder\.linear_1\.", "action_embedding.0."),
    (r"^condition_embedder\.action_embedder\.linear_2\.", "action_embedding.2."),
    (r"\.attn1\.to_out_prope\.0\.", ".camera_output."),
)


def load_wan_network(
    files: WorldPlayFiles,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    num_heads: int | None = None,
) -> CameraWanNetwork:
    """The 5B's network; sizes are read from the weights, heads have 128 channels unless given.

    The host holds one tensor at a time beside what the network keeps; on the device "meta" nothing
    but headers is read. Raises `CheckpointError` for files that are corrupt, or of another model
    (missing, left-over and wrongly shaped tensors are listed).
    """
    file_names = {
        _camera_name(name): given for name, given in wan_names(files.weights.shapes).items()
    }
    shapes = {name: files.weights.shapes[given] for name, given in file_names.items()}
    config = config_from_weights(shapes, num_heads=num_heads)
    with torch.device("meta"):
        network = CameraWanNetwork(config).to(dtype)
    _fill(
        network,
        files,
        file_names,
        lambda name, value: internal(name, value, config.head_dim),
        device=device,
        dtype=dtype,
    )
    return network.eval().requires_grad_(False)


def load_hunyuan_network(
    files: WorldPlayFiles,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> HunyuanNetwork:
    """The 8B's network, as `load_wan_network` loads the 5B's; RoPE is as `config.json` says."""
    file_names = {without_prefixes(given): given for given in files.weights.shapes}
    shapes = {name: files.weights.shapes[given] for name, given in file_names.items()}
    config = hunyuan_config.config_from_weights(
        shapes, rope_dims=files.rope_dims, rope_theta=files.rope_theta
    )
    with torch.device("meta"):
        network = HunyuanNetwork(config).to(dtype)
    _fill(
        network,
        files,
        file_names,
        lambda name, value: internal_tensor(name, value, config),
        device=device,
        dtype=dtype,
    )
    return network.eval().requires_grad_(False)


def internal_tensor(name: str, value: Tensor, config: HunyuanConfig) -> Tensor:
    """A tensor of the 8B in the internal channel order; itself where there is nothing to permute.

    Queries and keys of both streams, and the weights of their norms, are.
    """
    if not _ROTATED.search(name):
        return value
    num_heads = 1 if "norm" in name else config.num_heads
    return value[half_split_index(config.head_dim, num_heads).to(value.device)]


def _fill(
    network: nn.Module,
    files: WorldPlayFiles,
    file_names: Mapping[str, str],
    internal_order: Callable[[str, Tensor], Tensor],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    """Load the files' tensors into a network on the meta device; `file_names` by its names."""
    check_keys(
        network.state_dict(),
        {name: files.weights.shapes[given] for name, given in file_names.items()},
    )
    if torch.device(device).type == "meta":
        return
    names = {given: name for name, given in file_names.items()}
    state = {}
    for given, value in files.weights.read():
        ordered = internal_order(names[given], value)
        state[names[given]] = ordered.to(device=device, dtype=dtype, copy=True)
        del value, ordered
    network.load_state_dict(state, assign=True)


def _camera_name(name: str) -> str:
    for pattern, replacement in _CAMERA_NAMES:
        name = re.sub(pattern, replacement, name)
    return name
