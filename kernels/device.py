"""What a kernel's choice of tiles and operands depends on."""

import functools
from dataclasses import dataclass
from typing import Final, Literal

import torch

Architecture = Literal[80, 89, 90, 100, 120]
ARCHITECTURES: Final[tuple[Architecture, ...]] = (80, 89, 90, 100, 120)
"""The compute capabilities that kernels are compiled and tuned for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU, or a description of one.

    capability: ten times the major compute capability, plus the minor, such as 89.
    num_multiprocessors: how many there are.
    """

    capability: int
    num_multiprocessors: int

    @property
    def architecture(self) -> Architecture:
        """The one whose tiles fit: it has no more shared memory than this device.

        86 has as little as 89, though not its number types; those go by `capability`.
        """
        if self.capability in (86, 88):
            return 89
        return max((a for a in ARCHITECTURES if a <= self.capability), default=80)

    @property
    def has_e4m3(self) -> bool:
        """Whether products of E4M3 exist."""
        return self.capability >= 89


INTERPRETER: Final = Device(capability=90, num_multiprocessors=1)
"""What stands for the CPU where Triton's interpreter runs the kernels."""


@functools.cache
def device_of(device: torch.device) -> Device:
    """The GPU that tensors are on."""
    if device.type != "cuda":
        return INTERPRETER
    properties = torch.cuda.get_device_properties(device)
    return Device(
        capability=10 * properties.major + properties.minor,
        num_multiprocessors=properties.multi_processor_count,
    )
