"""Loading causal Wan weights: Self-Forcing's, CausVid's, LongLive's, Wan's and diffusers' names."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from qvg_engine.errors import CheckpointError
from qvg_engine.models.wan.config import WanConfig, config_from_weights
from qvg_engine.models.wan.layout import to_internal
from qvg_engine.models.wan.network import WanNetwork
from qvg_engine.models.weights_file import read_weights_file, state_dict_in

# Names under which a training run stores its network, the one that its authors sample from first.
STATE_DICT_NAMES = ("generator_ema", "generator", "model")
WRAPPER_PREFIXES = ("model.", "module.", "_fsdp_wrapped_module.")

_DIFFUSERS_TO_WAN = (
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"\.scale_shift_table$", ".modulation"),
    (r"^proj_out\.", "head.head."),
    (r"\.attn1\.to_out\.0\.", ".self_attn.o."),
    (r"\.attn2\.to_out\.0\.", ".cross_attn.o."),
    (r"\.attn1\.to_([qkv])\.", r".self_attn.\1."),
    (r"\.attn2\.to_([qkv])\.", r".cross_attn.\1."),
    (r"\.attn1\.norm_", ".self_attn.norm_"),
    (r"\.attn2\.norm_", ".cross_attn.norm_"),
    (r"\.norm2\.", ".norm3."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
)


def load_wan(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    num_heads: int | None = None,
) -> WanNetwork:
    """Build a network from a checkpoint file; every size is read from its weights.

    `num_heads` overrides the published 128 channels a head. Raises `CheckpointError` for a file
    that is corrupt, or of another model (missing and left-over keys are listed).
    """
    path = Path(path)
    weights = state_dict_in(read_weights_file(path), STATE_DICT_NAMES, path)
    return build_wan(wan_names(weights), num_heads=num_heads).to(device=device, dtype=dtype)


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


def wan_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip wrapper prefixes and turn diffusers' names into Wan's."""
    named = {_without_prefixes(key): value for key, value in weights.items()}
    if not any(key.startswith("condition_embedder.") for key in named):
        return named
    return {_wan_name(key): value for key, value in named.items()}


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
        f"{what}: {_listing(keys)}"
        for what, keys in (
            ("missing", missing),
            ("left over", left_over),
            ("wrong shape", shapes),
        )
        if keys
    ]
    if problems:
        raise CheckpointError("the weights are of another model; " + "; ".join(problems))


def _without_prefixes(key: str) -> str:
    stripped = True
    while stripped:
        stripped = False
        for prefix in WRAPPER_PREFIXES:
            if key.startswith(prefix):
                key, stripped = key[len(prefix) :], True
    return key.replace("_fsdp_wrapped_module.", "")


def _wan_name(key: str) -> str:
    for pattern, replacement in _DIFFUSERS_TO_WAN:
        key = re.sub(pattern, replacement, key)
    return key


def _listing(names: Iterable[str], most: int = 8) -> str:
    ordered = sorted(names)
    shown = ", ".join(ordered[:most])
    return shown if len(ordered) <= most else f"{shown} and {len(ordered) - most} more"
