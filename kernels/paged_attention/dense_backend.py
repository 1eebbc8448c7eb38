"""Who computes dense attention on a GPU: what there is to choose from, and the choice."""

import functools
import importlib.util
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch

from qvg_engine.errors import ConfigError
from qvg_engine.kernels.device import Architecture, Device

DenseBackend = Literal[
    "flash-attn-3",
    "cudnn",
    "flash-attn",
    "torch-flash",
    "xformers",
    "triton",
    "torch-efficient",
    "reference",
]
DENSE_BACKENDS: Final[tuple[DenseBackend, ...]] = get_args(DenseBackend)

_PACKAGES: Final = {
    "flash-attn-3": "flash_attn_interface",
    "flash-attn": "flash_attn",
    "xformers": "xformers",
    "triton": "triton",
}
"""The module that a backend comes with; the others come with torch."""

# By what their authors measured; not yet by a measurement of ours. The first that can is taken.
_HOPPER: Final = DENSE_BACKENDS
_BLACKWELL: Final[tuple[DenseBackend, ...]] = ("cudnn", *(b for b in _HOPPER if b != "cudnn"))
_OTHERS: Final[tuple[DenseBackend, ...]] = (
    "flash-attn",
    "torch-flash",
    "cudnn",
    *(b for b in _HOPPER if b not in ("flash-attn", "torch-flash", "cudnn")),
)
_PREFERENCE: Final[dict[Architecture, tuple[DenseBackend, ...]]] = {
    80: _OTHERS,
    89: _OTHERS,
    90: _HOPPER,
    100: _BLACKWELL,
    120: _OTHERS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be computed.

    biased: whether scores get a bias, fp32 [tokens].
    """

    head_dim: int
    dtype: torch.dtype
    biased: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend, and in one line why not an earlier one: "cudnn (flash-attn-3: not installed)"."""

    backend: DenseBackend
    passed_over: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.backend + (f" ({'; '.join(self.passed_over)})" if self.passed_over else "")


@functools.cache
def installed_packages() -> frozenset[str]:
    """Those of the optional packages' modules that are installed."""
    return frozenset(name for name in _PACKAGES.values() if importlib.util.find_spec(name))


def dense_backend(
    device: Device,
    job: Job,
    *,
    packages: frozenset[str],
    forced: DenseBackend | None = None,
) -> Choice:
    """Choose who computes dense attention.

    Args:
        packages: see `installed_packages`.
        forced: the backend to take instead of the first in the order of preference. One that takes
            no bias leaves a job with a bias to the others, and the choice says so.

    Raises ConfigError if the forced backend cannot compute the job for another reason.
    """
    refused = []
    if forced is not None:
        reason = refusal(forced, device, job, packages=packages)
        if reason is None:
            return Choice(forced)
        if reason != _NO_BIAS:
            able = [
                name
                for name in DENSE_BACKENDS
                if refusal(name, device, job, packages=packages) is None
            ]
            raise ConfigError(
                f"the dense attention {forced!r} cannot be used: {reason}; use one of "
                + ", ".join(able)
            )
        refused.append(f"{forced}: {reason}")
    for name in _PREFERENCE[device.architecture]:
        if name == forced:
            continue
        reason = refusal(name, device, job, packages=packages)
        if reason is None:
            return Choice(name, tuple(refused))
        refused.append(f"{name}: {reason}")
    raise AssertionError("the reference refuses nothing")


_NO_BIAS: Final = "takes no bias"


def refusal(
    backend: DenseBackend, device: Device, job: Job, *, packages: frozenset[str]
) -> str | None:
    """Why this backend cannot compute the job; None if it can."""
    package = _PACKAGES.get(backend)
    if backend == "reference":
        return None
    if package is not None and package not in packages:
        return "not installed"
    if backend == "torch-efficient":
        exact = not job.biased or job.dtype == torch.float32
        return None if exact else "rounds the bias"
    if backend == "flash-attn-3" and device.architecture != 90:
        return "for Hopper only"
    if device.capability < 80:
        return "needs compute capability 8.0"
    if job.dtype not in (torch.float16, torch.bfloat16):
        return "takes fp16 and bf16 only"
    if backend == "triton":
        power_of_two = job.head_dim & (job.head_dim - 1) == 0
        fits = power_of_two and 16 <= job.head_dim <= 128
        return None if fits else "takes a head_dim of 16, 32, 64 or 128"
    if job.biased:
        return _NO_BIAS
    largest = 128 if backend == "cudnn" else 256
    fits = job.head_dim % 8 == 0 and job.head_dim <= largest
    return None if fits else f"takes a head_dim that is a multiple of 8 up to {largest}"
