"""The optimiser of the embedded model's network: Muon for matrices, AdamW for the rest.

The network computes in bf16; the fp32 weights live here, together with their running average,
which is what is exported. Muon moves a matrix by its orthogonalised momentum (Jordan et al.,
2024), scaled so that one learning rate serves both parts (Liu et al., 2025).
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_MOMENTUM = 0.95
_WEIGHT_DECAY = 0.02
_MUON_SCALE = 0.2
_AVERAGE_DECAY = 0.998


class MixedOptimizer:
    """Updates a module's bf16 parameters through fp32 masters."""

    def __init__(self, module: nn.Module, *, adam_rate_ratio: float = 0.2) -> None:
        """`adam_rate_ratio` is AdamW's learning rate over Muon's."""
        self._parameters = dict(module.named_parameters())
        self.masters = {name: p.detach().float().clone() for name, p in self._parameters.items()}
        self.average = {name: master.clone() for name, master in self.masters.items()}
        self._matrices = [name for name in self.masters if _is_matrix(name, self.masters[name])]
        self._others = [name for name in self.masters if name not in set(self._matrices)]
        self._momentum = {name: torch.zeros_like(self.masters[name]) for name in self._matrices}
        self._adam = torch.optim.AdamW(
            [self.masters[name] for name in self._others],
            betas=(0.9, 0.98),
            weight_decay=0.0,
            fused=True,
        )
        self._adam_rate_ratio = adam_rate_ratio
        self._step = 0

    def step(self, rate: float) -> float:
        """Apply the gradients of the bf16 parameters, clear them, and return their norm."""
        gradients = {
            name: (p.grad.float() if p.grad is not None else torch.zeros_like(p).float())
            for name, p in self._parameters.items()
        }
        others = [gradients[name] for name in self._others]
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(others))))
        shrink = min(1.0, 1.0 / (norm + 1e-6))
        for name in self._others:
            self.masters[name].grad = gradients[name] * shrink
        for group in self._adam.param_groups:
            group["lr"] = rate * self._adam_rate_ratio
        self._adam.step()
        self._step_matrices(gradients, rate)
        self._publish()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed training needs."""
        return {
            "masters": self.masters,
            "average": self.average,
            "momentum": self._momentum,
            "adam": self._adam.state_dict(),
            "step": self._step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for own, loaded in (
            (self.masters, state["masters"]),
            (self.average, state["average"]),
            (self._momentum, state["momentum"]),
        ):
            for name, value in own.items():
                value.copy_(loaded[name])
        self._adam.load_state_dict(state["adam"])
        self._step = state["step"]
        self._copy_to_parameters()

    @torch.no_grad()
    def _step_matrices(self, gradients: Mapping[str, Tensor], rate: float) -> None:
        by_shape: defaultdict[torch.Size, list[str]] = defaultdict(list)
        for name in self._matrices:
            momentum = self._momentum[name].lerp_(gradients[name], 1 - _MOMENTUM)
            gradients[name].lerp_(momentum, _MOMENTUM)
            by_shape[momentum.shape].append(name)
        for shape, names in by_shape.items():
            directions = orthogonalize(torch.stack([gradients[name] for name in names]))
            size = rate * _MUON_SCALE * max(shape) ** 0.5
            for name, direction in zip(names, directions, strict=True):
                self.masters[name].mul_(1 - rate * _WEIGHT_DECAY).sub_(direction, alpha=size)

    @torch.no_grad()
    def _publish(self) -> None:
        self._step += 1
        # The average forgets its start quickly while there is little to average.
        decay = min(_AVERAGE_DECAY, (1 + self._step) / (10 + self._step))
        torch._foreach_lerp_(
            list(self.average.values()), list(self.masters.values()), weight=1 - decay
        )
        self._copy_to_parameters()

    @torch.no_grad()
    def _copy_to_parameters(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(self.masters[name])
            parameter.grad = None


def orthogonalize(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices to [N, rows, columns], roughly, by Newton-Schulz."""
    x: Tensor = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).float()


def _is_matrix(name: str, value: Tensor) -> bool:
    return ".blocks." in f".{name}" and value.ndim == 2 and name.endswith("weight")
