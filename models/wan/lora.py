"""LoRA updates of a causal Wan network, as PEFT stores them (Hu et al., arXiv 2106.09685).

A linear layer's weight W becomes W + alpha / rank * B A. LongLive's published checkpoint is a base
network and such a file, which belong together.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec
from torch import Tensor

from qvg_engine.errors import CheckpointError
from qvg_engine.models.wan.names import listing, wan_names, without_prefixes
from qvg_engine.models.weights import Weights

LORA_NAMES = ("generator_lora", "lora", "state_dict")
_PEFT_PREFIXES = ("base_model.model.", "model.", "module.", "_fsdp_wrapped_module.")
_DOWN, _UP = ".lora_A", ".lora_B"


class LowRank(msgspec.Struct, frozen=True, eq=False):
    """What is added to one weight: `scale` times up [out, rank] times down [rank, in]."""

    down: Tensor
    up: Tensor
    scale: float

    def added_to(self, weight: Tensor) -> Tensor:
        """The merged weight [out, in], in fp32."""
        return weight.float().addmm(self.up.float(), self.down.float(), alpha=self.scale)


def is_lora(name: str) -> bool:
    """Whether a tensor of this name belongs to a LoRA."""
    return _DOWN in name or _UP in name


def read_lora(
    path: Path, shapes: Mapping[str, Tensor], *, alpha: float | None = None
) -> dict[str, LowRank]:
    """The updates in a file, by the names of the weights (in `shapes`) that they belong to.

    `alpha` is the training's; None means that it equals the rank, as published ones do. Raises
    `CheckpointError` for a file of another kind, halves that are missing, layers that the network
    does not have, and wrong shapes.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    for name, value in Weights([path], LORA_NAMES).read():
        layer, half = _split(name, path)
        halves.setdefault(f"{layer}.weight", {})[half] = value.clone()
    file_names = wan_names(halves)
    unknown = file_names.keys() - shapes.keys()
    if unknown:
        raise CheckpointError(f"{path} is a LoRA of another model; left over: {listing(unknown)}")
    return {
        name: _low_rank(path, name, halves[file_name], shapes[name], alpha)
        for name, file_name in file_names.items()
    }


def _split(name: str, path: Path) -> tuple[str, str]:
    """The layer that a tensor belongs to, and which half of its update it is."""
    for half in (_DOWN, _UP):
        layer, found, rest = name.partition(half)
        if found and rest in (".weight", ".default.weight"):
            return without_prefixes(layer, _PEFT_PREFIXES), half
    raise CheckpointError(
        f"{path} is not a LoRA as PEFT stores it: {name} is not of lora_A, lora_B"
    )


def _low_rank(
    path: Path, name: str, halves: Mapping[str, Tensor], shape: Tensor, alpha: float | None
) -> LowRank:
    if len(halves) != 2:
        raise CheckpointError(f"{path}: {name} has {', '.join(halves)} only: both are needed")
    down, up = halves[_DOWN], halves[_UP]
    rank = len(down)
    fits = down.ndim == up.ndim == shape.ndim == 2 and up.shape[1] == rank > 0
    if not fits or (up.shape[0], down.shape[1]) != tuple(shape.shape):
        raise CheckpointError(
            f"{path}: lora_B {list(up.shape)} times lora_A {list(down.shape)} is not of {name}, "
            f"which is {list(shape.shape)}"
        )
    return LowRank(down, up, 1.0 if alpha is None else alpha / rank)
