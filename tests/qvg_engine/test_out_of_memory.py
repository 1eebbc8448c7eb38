"""Pages or a workspace that do not fit: what was asked for, what is there, what would fit."""

import math
import re
from typing import Any

import pytest
import torch

from qvg_engine.errors import ConfigError
from qvg_engine.kernels.free_memory import free_bytes

CUDA = torch.device("cuda")
EMPTY = torch.empty


class SmallDevice:
    """Makes `torch.empty` fail like a GPU with so many bytes."""

    def __init__(self, num_bytes: int) -> None:
        self.free = num_bytes

    def empty(self, *shape: Any, **options: Any) -> torch.Tensor:
        made = EMPTY(*shape, **options)
        if made.nbytes > self.free:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        self.free -= made.nbytes
        return made


@pytest.fixture
def shrink(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make_small(num_bytes: int) -> None:
        device = SmallDevice(num_bytes)
        monkeypatch.setattr(torch, "empty", device.empty)
        for module in ("block_manager.page_store", "kernels.paged_attention.workspace"):
            monkeypatch.setattr(f"qvg_engine.{module}.free_bytes", lambda _: device.free)

    return make_small


def numbers(message: str) -> list[int]:
    return [int(found.replace(",", "")) for found in re.findall(r"\d[\d,]*", message)]


@pytest.mark.parametrize("kv_format", ["bf16", "dense"])
def test_pages_that_do_not_fit_say_what_would(toy: Any, shrink: Any, kv_format: str) -> None:
    settings: dict[str, Any] = {"workspace_tokens": 64, "kv_format": kv_format}
    workspace = 2 * 2 * 24 * 64 * 4 + 64 * 4
    shrink(workspace + 100_000)
    with pytest.raises(ConfigError, match=r"pages of [\d,]+ bytes cannot be allocated") as caught:
        toy.engine(kv_memory=1_000_000, **settings)
    asked, free, fits = numbers(str(caught.value))
    assert 0.99e6 < asked <= 1_000_000
    assert free == 100_000
    shrink(workspace + 100_000)
    engine = toy.engine(kv_memory=fits, **settings)
    assert engine.capacity.pages > 0
    assert fits > 0.8 * free


def test_not_even_a_page(toy: Any, shrink: Any) -> None:
    shrink(2 * 2 * 24 * 64 * 4 + 64 * 4 + 500)
    with pytest.raises(ConfigError, match="500 bytes free: there is no room for one page of"):
        toy.engine(kv_memory=1_000_000)


def test_a_workspace_that_does_not_fit_says_what_would(toy: Any, shrink: Any) -> None:
    shrink(100_000)
    with pytest.raises(ConfigError, match="a workspace for 4,096 tokens of") as caught:
        toy.engine(workspace_tokens=4096, kv_memory=10_000)
    tokens, asked, free, fits = numbers(str(caught.value))
    assert asked == math.prod((2, 2, 24, 4096, 4)) + 4 * 4096
    assert (tokens, free) == (4096, 100_000)
    shrink(100_000)
    toy.engine(workspace_tokens=fits, kv_memory=10_000)


def test_not_even_a_token(toy: Any, shrink: Any) -> None:
    shrink(100)
    with pytest.raises(ConfigError, match="100 bytes free: there is no room for one token"):
        toy.engine(workspace_tokens=4096)


def test_what_torch_keeps_on_a_gpu_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 100)
    assert free_bytes(CUDA) == 1200
    assert free_bytes(torch.device("cpu")) > 1200
    assert free_bytes(torch.device("meta")) == 0
