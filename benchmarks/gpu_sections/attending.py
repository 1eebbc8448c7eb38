"""Attention over pages, every way to compute it, against the best dense attention there is."""

import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu_sections.case import Case, NotThere, Row
from benchmarks.gpu_sections.pages import (
    check_offered,
    make_layer,
    make_runs,
    make_workspace,
    row_bytes,
)
from benchmarks.gpu_sections.peaks import Peaks
from benchmarks.gpu_sections.setup import FORMATS, Setup
from benchmarks.gpu_sections.timing import measure
from qvg_engine.kernels.paged_attention import (
    LayerPages,
    PagedSegment,
    RopeTransform,
    Strategy,
    Workspace,
    paged_attention,
)
from qvg_engine.kernels.paged_attention import dense as engine_dense
from qvg_engine.kernels.paged_attention.cost_measurement import measure_costs
from qvg_engine.kernels.paged_attention.cost_model import CostModel
from qvg_engine.kernels.rope import RopeGrid, RopeTables

Dense = Callable[[Tensor, Tensor, Tensor], object]


class Attending:
    """The cases of this section. Tensors of one number of tokens and heads are kept at a time."""

    def __init__(self, setup: Setup, peaks: Peaks) -> None:
        self._setup = setup
        self._peaks = peaks
        self._kept: dict[Any, Any] = {}
        self._costs: dict[tuple[str, int], CostModel] = {}
        self._best: dict[tuple[int, int, int], tuple[float, str]] = {}

    def cases(self) -> Iterator[Case]:
        """Small sizes first; for each, dense attention first."""
        setup = self._setup
        sizes = sorted(
            ((cached, heads) for cached in setup.cached for heads in setup.heads),
            key=lambda size: size[0] * size[1],
        )
        for cached, heads in sizes:
            self._forget()
            for queries in setup.queries:
                size = (queries, cached, heads)
                row = {"queries": queries, "cached": cached, "heads": heads}
                for name in _DENSE:
                    yield Case(
                        row | {"format": "dense", "strategy": name},
                        partial(self._dense, name, *size),
                    )
                for strategy in get_args(Strategy):
                    if strategy == "reference":
                        continue
                    for name in FORMATS:
                        yield Case(
                            row | {"format": name, "strategy": strategy},
                            partial(self._paged, name, strategy, *size),
                        )
        self._forget()

    def _forget(self) -> None:
        self._kept.clear()
        gc.collect()
        if self._setup.device.type == "cuda":
            torch.cuda.empty_cache()

    def _keep(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self._setup.device, dtype=self._setup.dtype)

    def _dense(self, name: str, queries: int, cached: int, heads: int, left: float) -> Row:
        setup = self._setup
        attend = _DENSE[name](setup.device)
        keys, values = self._keep(
            "dense", lambda: [self._random(1, heads, cached, setup.head_dim) for _ in range(2)]
        )
        rows = self._random(1, heads, queries, setup.head_dim)
        timing = measure(
            lambda: attend(rows, keys, values),
            setup.device,
            seconds=left,
            fewest_runs=setup.fewest_runs,
        )
        size = (queries, cached, heads)
        self._best[size] = min((timing.ms, name), self._best.get(size, (timing.ms, name)))
        return timing.row() | self._compared(timing.ms, "dense", size)

    def _paged(
        self, name: str, strategy: Strategy, queries: int, cached: int, heads: int, left: float
    ) -> Row:
        setup = self._setup
        head_dim = setup.head_dim
        layer: LayerPages = self._keep(
            name,
            lambda: make_layer(
                name, cached, num_heads=heads, head_dim=head_dim, device=setup.device
            ),
        )
        check_offered(strategy, layer)
        workspace = self._keep(
            # The others share the dense one.
            "eight-bit workspace" if strategy == "eight-bit" else "workspace",
            lambda: make_workspace(
                strategy,
                num_heads=heads,
                head_dim=head_dim,
                max_tokens=min(cached, setup.workspace_tokens),
                device=setup.device,
                dtype=setup.dtype,
            ),
        )
        grid = RopeGrid(RopeTables(head_dim=head_dim, device=setup.device), *setup.frame)
        segment = PagedSegment(layer, make_runs(cached))
        rows, positions = self._random(queries, heads, head_dim), np.arange(queries) + cached

        def run() -> Tensor:
            return paged_attention(
                rows,
                [segment],
                workspace=workspace,
                transform=RopeTransform(grid),
                query_positions=positions,
                strategy=strategy,
            )

        timing = measure(run, setup.device, seconds=left, fewest_runs=setup.fewest_runs)
        size = (queries, cached, heads)
        row = timing.row() | self._compared(timing.ms, name, size)
        if isinstance(workspace, Workspace):
            row |= self._chosen(name, strategy, size, layer, workspace)
        return row

    def _chosen(
        self,
        name: str,
        strategy: Strategy,
        size: tuple[int, int, int],
        layer: LayerPages,
        workspace: Workspace,
    ) -> Row:
        """What an engine would take for this size, and the time that it would expect of this."""
        queries, cached, heads = size
        try:
            check_offered("fused", layer)
        except NotThere:
            return {"auto takes": "workspace"}
        if (name, heads) not in self._costs:
            points = self._setup.cost_points
            self._costs[name, heads] = measure_costs(layer, workspace, points=points)
        model = self._costs[name, heads]
        row: Row = {"auto takes": model.choose(queries, cached)}
        for candidate, cost in model.costs.items():
            if candidate == strategy:
                row["expected ms"] = cost.ms(queries, cached)
        return row

    def _compared(self, ms: float, name: str, size: tuple[int, int, int]) -> Row:
        """The times to the best dense attention so far, and to what the device allows."""
        queries, cached, heads = size
        row: Row = {}
        if size in self._best:
            best, of = self._best[size]
            row |= {"to best dense": ms / best, "best dense": of}
        if self._peaks.flops_per_ms and self._peaks.bytes_per_ms:
            head_dim = self._setup.head_dim
            flops = 4 * queries * cached * heads * head_dim
            of_row = row_bytes("bf16" if name == "dense" else name, head_dim)
            num_bytes = 2 * cached * heads * of_row
            least = max(flops / self._peaks.flops_per_ms, num_bytes / self._peaks.bytes_per_ms)
            row["to roofline"] = ms / least
        return row


def _sdpa(backend: SDPBackend) -> Callable[[torch.device], Dense]:
    def make(device: torch.device) -> Dense:
        if device.type == "cpu" and backend != SDPBackend.FLASH_ATTENTION:
            raise NotThere("not on a CPU")

        def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(queries, keys, values)

        return _of_others(attend)

    return make


def _of_package(module: str, function: str) -> Callable[[torch.device], Dense]:
    """Attention of a package, which takes [batch, tokens, heads, head_dim]."""

    def make(device: torch.device) -> Dense:
        if device.type == "cpu":
            raise NotThere("not on a CPU")
        try:
            found = getattr(__import__(module, fromlist=[function]), function)
        except ImportError as error:
            raise NotThere(f"{module} is not installed") from error
        return _of_others(
            lambda q, k, v: found(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        )

    return make


def _of_others(attend: Dense) -> Dense:
    """What a kernel that is not ours refuses is no failure of this report."""

    def guarded(queries: Tensor, keys: Tensor, values: Tensor) -> object:
        try:
            return attend(queries, keys, values)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, NotImplementedError) as error:
            raise NotThere(" ".join(str(error).split())[:200]) from error

    return guarded


def _of_engine(device: torch.device) -> Dense:
    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> object:
        scale = queries.shape[-1] ** -0.5
        return engine_dense.attend(queries[0], keys[0], values[0], None, scale, needs_lse=True)

    return attend


_DENSE: dict[str, Callable[[torch.device], Dense]] = {
    "SDPA flash": _sdpa(SDPBackend.FLASH_ATTENTION),
    "SDPA cuDNN": _sdpa(SDPBackend.CUDNN_ATTENTION),
    "SDPA efficient": _sdpa(SDPBackend.EFFICIENT_ATTENTION),
    "FlashAttention 2": _of_package("flash_attn", "flash_attn_func"),
    "FlashAttention 3": _of_package("flash_attn_interface", "flash_attn_func"),
    "xformers": _of_package("xformers.ops", "memory_efficient_attention"),
    "the engine's, with log-sum-exp": _of_engine,
}
