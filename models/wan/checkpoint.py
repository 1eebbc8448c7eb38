"""Loading causal Wan weights: Self-Forcing's, CausVid's, LongLive's, Wan's and diffusers' names."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from qvg_engine.errors import CheckpointError
from qvg_engine.models.wan.config import WanConfig, config_from_weights
from qvg_engine.models.wan.layout import internal, to_internal
from qvg_engine.models.wan.lora import is_lora, read_lora
from qvg_engine.models.wan.names import listing, wan_names
from qvg_engine.models.wan.network import WanNetwork
from qvg_engine.models.weights import Weights

# Names under which a training run stores its network, the one that its authors sample from first.
STATE_DICT_NAMES = ("generator_ema", "generator", "model")


def load_wan(
    path: str | Path | Sequence[Path],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    num_heads: int | None = None,
    lora: Path | None = None,
    lora_alpha: float | None = None,
    names: tuple[str, ...] = STATE_DICT_NAMES,
) -> WanNetwork:
    """Build a network from a checkpoint file, or from its shards; sizes are read from the weights.

    `num_heads` overrides the published 128 channels a head. `lora` is merged into the weights, see
    `read_lora`. `names` are tried in order for a `.pt` file's state dict. The host holds one tensor
    at a time beside what the network keeps. On the device "meta" nothing but the headers is read.

    Raises `CheckpointError` for a file that is corrupt, or of another model (missing and left-over
    keys are listed).
    """
    paths = [Path(path)] if isinstance(path, str | Path) else list(path)
    weights = Weights(paths, names)
    if any(is_lora(name) for name in weights.shapes):
        raise CheckpointError(
            f"{paths[0]} is a LoRA, not a network: give its base network, and this file as lora"
        )
    file_names = wan_names(weights.shapes)
    if len(file_names) < len(weights.shapes):
        twice = weights.shapes.keys() - set(file_names.values())
        raise CheckpointError(f"{paths[0]} holds tensors twice: {listing(twice)}")
    shapes = {name: weights.shapes[file_name] for name, file_name in file_names.items()}
    config = config_from_weights(shapes, num_heads=num_heads)
    with torch.device("meta"):
        network = WanNetwork(config).to(dtype)
    check_keys(network.state_dict(), shapes)
    if torch.device(device).type == "meta":
        return network.eval().requires_grad_(False)
    updates = {} if lora is None else read_lora(lora, shapes, alpha=lora_alpha)
    given_as = {file_name: name for name, file_name in file_names.items()}
    state = {}
    for file_name, value in weights.read():
        name = given_as[file_name]
        if name in updates:
            value = updates.pop(name).added_to(value)
        ordered = internal(name, value, config.head_dim)
        state[name] = ordered.to(device=device, dtype=dtype, copy=True)
        del value, ordered
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def build_wan(
    weights: Mapping[str, Tensor],
    *,
    config: WanConfig | None = None,
    num_heads: int | None = None,
) -> WanNetwork:
    """Build a network in fp32 from a state dict in Wan's names and channel order."""
    config = config or config_from_weights(weights, num_heads=num_heads)
    with torch.device("meta"):
        network = WanNetwork(config)
    check_keys(network.state_dict(), weights)
    single = {key: value.to(torch.float32) for key, value in weights.items()}
    network.load_state_dict(to_internal(single, config.head_dim), assign=True)
    return network.eval().requires_grad_(False)


def check_keys(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` that lists missing, left-over and wrongly shaped tensors."""
    missing = expected.keys() - given.keys()
    left_over = given.keys() - expected.keys()
    shapes = [
        f"{key} is {list(given[key].shape)}, not {list(expected[key].shape)}"
        for key in sorted(expected.keys() & given.keys())
        if expected[key].shape != given[key].shape
    ]
    problems = [
        f"{what}: {listing(keys)}"
        for what, keys in (
            ("missing", missing),
            ("left over", left_over),
            ("wrong shape", shapes),
        )
        if keys
    ]
    if problems:
        raise CheckpointError("the weights are of another model; " + "; ".join(problems))
