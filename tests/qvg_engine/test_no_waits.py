"""Within a step no code of ours reads what a device computes.

Without a GPU nothing waits, so what is looked at is who asks: whole engines run through Triton's
kernels, interpreted, while every way to read a tensor's content notes its caller.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from qvg_engine.kernels import gpu
from qvg_engine.launched_step import LaunchedStep
from qvg_engine.output import PendingOutput
from tests.conftest import Toy, make_network

if not gpu.has_triton() or not gpu.is_interpreted():
    pytest.skip("Triton's interpreter is not there", allow_module_level=True)

from triton.runtime.interpreter import GridExecutor

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")

READS = ("item", "tolist", "cpu", "numpy", "nonzero", "unique", "masked_select")
CONVERSIONS = ("__bool__", "__int__", "__float__", "__index__")
# Texts are on the host: admission sees to it.
HOST_ONLY = {"qvg_engine.text_pool:_key"}


class Watch:
    """Who read a tensor, as "module:function", outside of kernels and verdicts."""

    def __init__(self) -> None:
        self.readers: set[str] = set()
        self.is_on = True

    @contextmanager
    def off(self) -> Iterator[None]:
        before, self.is_on = self.is_on, False
        try:
            yield
        finally:
            self.is_on = before

    def note(self) -> None:
        frame = sys._getframe(2)
        # From within torch or NumPy back to who called them.
        while not frame.f_globals["__name__"].startswith(("qvg_engine.", __name__)):
            assert frame.f_back is not None
            frame = frame.f_back
        if self.is_on:
            self.readers.add(f"{frame.f_globals['__name__']}:{frame.f_code.co_name}")


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()

    def watched(name: str) -> Any:
        real = getattr(torch.Tensor, name)

        def read(self: torch.Tensor, *given: Any, **named: Any) -> Any:
            watch.note()
            return real(self, *given, **named)

        return read

    for name in (*READS, *CONVERSIONS):
        monkeypatch.setattr(torch.Tensor, name, watched(name))
    for owner, name in (
        (GridExecutor, "__call__"),
        (LaunchedStep, "verdict"),
        (PendingOutput, "finish"),
    ):
        monkeypatch.setattr(owner, name, quiet(getattr(owner, name), watch))
    return watch


def quiet(real: Any, watch: Watch) -> Any:
    def call(*given: Any, **named: Any) -> Any:
        with watch.off():
            return real(*given, **named)

    return call


@pytest.mark.parametrize(
    ("kv_format", "strategy"),
    [
        ("bf16", "workspace"),
        ("qvg", "workspace"),
        ("qvg", "fused"),
        ("qvg-pro", "fused"),
        ("q2", "fused"),
    ],
)
def test_nobody_reads_within_a_step(watch: Watch, kv_format: str, strategy: str) -> None:
    from qvg_engine.models.wan.config import WanConfig

    config = WanConfig(
        dim=64,
        ffn_dim=64,
        num_heads=1,
        num_layers=1,
        in_dim=4,
        out_dim=4,
        text_dim=8,
        freq_dim=16,
    )
    with gpu.cpu_as_gpu(), torch.no_grad(), watch.off():
        toy = Toy(make_network(config=config))
        engine = toy.engine(
            settings={"window_frames": 6, "sink_frames": 1, "timesteps": (1000.0, 500.0)},
            page_size=32,
            kv_memory=8 << 20,
            kv_format=kv_format,
            attention_backend=strategy,
        )
        engine._lags = True
        for name, chunks in (("a", 3), ("b", 2)):
            engine.add_request(toy.request(name, chunks=chunks))
        chunks = 0
        while engine.has_unfinished_requests():
            watch.is_on = True
            outputs = engine.step()
            watch.is_on = False
            for output in outputs:
                assert output.error is None
                chunks += output.latents is not None
        assert chunks == 5
    assert watch.readers <= HOST_ONLY


def test_a_reader_is_seen(watch: Watch) -> None:
    x = torch.ones(2)
    for read in (lambda: x.sum().item(), lambda: bool(x[0]), lambda: x.tolist(), lambda: x.cpu()):
        watch.readers.clear()
        read()
        assert watch.readers == {f"{__name__}:{read.__name__}"}
