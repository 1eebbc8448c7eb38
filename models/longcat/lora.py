"""Low-rank updates of LongCat-Video's linear layers, in the published key names.

A module's keys start with `lora___lorahyphen___` and its name, whose dots are
`___lorahyphen___`. Behind that are `.lora_down.weight` [rank, in] and `.lora_up.weight` [out,
rank]; of a fused layer `.lora_up.blocks.{i}.weight`, each with its own part of the rows of one tall
`lora_down`; and `.alpha_scale`, what the product is multiplied with.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from qvg_engine.errors import CheckpointError
from qvg_engine.models.wan.names import listing
from qvg_engine.models.weights import Weights

_HYPHEN = "___lorahyphen___"
_PREFIX = f"lora{_HYPHEN}"
_PART = re.compile(
    r"\.(lora_down\.weight|lora_up\.weight|lora_up\.blocks\.\d+\.weight|alpha_scale)$"
)
PUBLISHED_ALPHA = 64.0


class LoraWeights:
    """The updates in a file; each is read when its layer is merged."""

    def __init__(
        self, path: Path, expected: Mapping[str, Tensor], *, alpha: float | None = None
    ) -> None:
        """`expected` are the network's tensors, by name.

        `alpha` over the rank is what products are multiplied with; None takes the file's
        `alpha_scale`, or the published 64 over the rank where it has none. Raises
        `CheckpointError` listing wrong keys.
        """
        self._path = path
        self._weights = Weights([path])
        self._alpha = alpha
        self._modules: dict[str, dict[str, str]] = {}
        unknown = []
        for key in self._weights.shapes:
            part = _PART.search(key)
            name = key[: part.start()].removeprefix(_PREFIX).replace(_HYPHEN, ".") if part else ""
            if part is None or not key.startswith(_PREFIX) or f"{name}.weight" not in expected:
                unknown.append(key)
                continue
            self._modules.setdefault(name, {})[part[1]] = key
        if unknown:
            raise CheckpointError(
                f"{path} is not a LoRA of this network; left over: {listing(unknown)}"
            )
        for name, keys in self._modules.items():
            self._check(name, keys, tuple(expected[f"{name}.weight"].shape))

    def merged(self, key: str, value: Tensor) -> Tensor:
        """The weight with its update in fp32, or the value itself if it has none."""
        keys = self._modules.get(key.removesuffix(".weight")) if key.endswith(".weight") else None
        if keys is None:
            return value
        value = value.float()
        parts = {name: part.to(value.device) for name, part in self._weights.read(keys.values())}
        down = parts[keys["lora_down.weight"]].to(value)
        ups = [parts[name].to(value) for name in _ups(keys)]
        rank = len(down) // len(ups)
        if self._alpha is not None or "alpha_scale" not in keys:
            scale = (self._alpha or PUBLISHED_ALPHA) / rank
        else:
            scale = float(parts[keys["alpha_scale"]])
        first = 0
        for up, rows in zip(ups, down.chunk(len(ups)), strict=True):
            value[first : first + len(up)].addmm_(up, rows, alpha=scale)
            first += len(up)
        return value

    def _check(self, name: str, keys: Mapping[str, str], shape: tuple[int, ...]) -> None:
        ups = _ups(keys)
        if "lora_down.weight" not in keys or not ups:
            raise CheckpointError(f"{self._path}: {name} lacks its lora_down or lora_up")
        if "alpha_scale" in keys and self._shape(keys["alpha_scale"]) not in ((), (1,)):
            raise CheckpointError(f"{self._path}: {keys['alpha_scale']} is not one number")
        down = self._shape(keys["lora_down.weight"])
        outs = [self._shape(up) for up in ups]
        rank = down[0] // len(ups) if down else 0
        fits = len(shape) == 2 and down == (rank * len(ups), shape[1]) and rank > 0
        if not fits or any(len(up) != 2 or up[1] != rank for up in outs):
            raise CheckpointError(
                f"{self._path}: {name} has a lora_down of {list(down)} and lora_up of "
                f"{[list(up) for up in outs]} for weights of {list(shape)}"
            )
        if sum(up[0] for up in outs) != shape[0]:
            raise CheckpointError(
                f"{self._path}: lora_up of {name} has {sum(up[0] for up in outs)} rows, its "
                f"weights {shape[0]}"
            )

    def _shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._weights.shapes[key].shape)


def _ups(keys: Mapping[str, str]) -> list[str]:
    """The keys of the `lora_up`, in the order of the rows that they update."""
    if "lora_up.weight" in keys:
        return [keys["lora_up.weight"]]
    numbered = [part for part in keys if part.startswith("lora_up.blocks.")]
    return [keys[part] for part in sorted(numbered, key=lambda part: int(part.split(".")[2]))]
