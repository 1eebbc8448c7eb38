"""Which strategy a pass attends with: the one that was asked for, or what a measurement favours."""

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import msgspec
import torch

from qvg_engine.backend_check import check_backend, why_not_fused
from qvg_engine.config import EngineConfig
from qvg_engine.errors import one_line
from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.codec.spec import CodecSpec
from qvg_engine.kernels.paged_attention import EightBitWorkspace, LayerPages, Strategy, Workspace
from qvg_engine.kernels.paged_attention.cost_measurement import (
    Timer,
    measure_costs,
    measured_points,
)
from qvg_engine.kernels.paged_attention.cost_model import CostModel


class AttentionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """`strategy` for every pass, or "auto": what `costs` favour. `reason` says why in one line."""

    strategy: Strategy | Literal["auto"]
    reason: str
    costs: CostModel | None = None

    def strategy_for(self, queries: int, tokens: int) -> Strategy:
        """The strategy of a pass of so many queries over so many cached tokens."""
        if self.strategy != "auto":
            return self.strategy
        assert self.costs is not None
        return self.costs.choose(queries, tokens)


def choose_attention(
    config: EngineConfig,
    layers: Sequence[LayerPages],
    workspace: Workspace | EightBitWorkspace,
    *,
    queries: int,
    timer: Timer | None = None,
) -> AttentionChoice:
    """Settle how an engine attends.

    Args:
        layers: the pages of every layer; only their formats and shapes are looked at.
        workspace: the engine's; what is in it is lost.
        queries: those of a chunk's pass.
        timer: see `measure_costs`.

    "auto" chooses between the strategies that compute exactly what pages hold. Where there are two
    of them, both are measured on the engine's device: a fraction of a second, and what it takes to
    compile them. Layers of different formats are represented by the pair that most of them have.

    Raises `ConfigError` if the strategy that was asked for cannot be had.
    """
    device, backend = config.torch_device, config.attention_backend
    if backend != "auto":
        check_backend(backend, layers, device=device)
        return AttentionChoice(strategy=backend, reason=f"attention_backend is {backend!r}")
    assert isinstance(workspace, Workspace), workspace
    reason = why_not_fused(layers, device=device)
    if reason is not None:
        return _workspace(f"the fused kernel is not offered: {reason}")
    if config.torch_dtype == torch.float32:
        # By 150 to 220 loads in "qvg" and "q2", as compiled for sm_89, 90 and 120.
        return _workspace("in float32 the fused kernel would spill registers")
    if config.batch_invariant:
        return _workspace("batch_invariant is set, and a measurement may differ from run to run")
    try:
        costs = measure_costs(
            _most_common(layers), workspace, points=measured_points(queries), timer=timer
        )
    except torch.OutOfMemoryError:
        return _workspace("there was no memory left to measure the strategies")
    except torch.AcceleratorError:
        # The device is lost.
        raise
    except Exception as error:  # A kernel that cannot be compiled may raise anything.
        failure = one_line(error)
        warnings.warn(f"the strategies could not be measured: {failure}", stacklevel=2)
        return _workspace(f"measuring the strategies failed: {failure}")
    return AttentionChoice(
        strategy="auto", reason=f"as measured, for {queries:,} queries", costs=costs
    )


def _workspace(reason: str) -> AttentionChoice:
    return AttentionChoice(strategy="workspace", reason=reason)


def _most_common(layers: Sequence[LayerPages]) -> LayerPages:
    """The first layer whose formats no others outnumber."""
    formats = [_formats(layer) for layer in layers]
    ((most, _),) = Counter(formats).most_common(1)
    return layers[formats.index(most)]


def _formats(layer: LayerPages) -> tuple[CodecSpec, CodecSpec]:
    assert isinstance(layer.keys, CodedPages)
    assert isinstance(layer.values, CodedPages)
    return layer.keys.spec, layer.values.spec
