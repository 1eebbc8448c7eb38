"""Which attention runs here, and why not another, in words."""

from collections.abc import Sequence

import msgspec
import numpy as np
import torch

from qvg_engine.attention_choice import AttentionChoice, choose_attention
from qvg_engine.backend_check import why_not_fused
from qvg_engine.block_manager.cache_layout import CacheLayout
from qvg_engine.block_manager.format import FORMATS, LayerFormats
from qvg_engine.block_manager.page_store import PageStore
from qvg_engine.cache import cache_layout, workspace_tokens
from qvg_engine.config import EngineConfig
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.device import Device, device_of
from qvg_engine.kernels.paged_attention import LayerPages, Workspace
from qvg_engine.kernels.paged_attention.cost_model import QUERY_BLOCK
from qvg_engine.kernels.paged_attention.dense_backend import (
    DENSE_BACKENDS,
    Job,
    dense_backend,
    installed_packages,
    refusal,
)
from qvg_engine.models.family import ModelFamily

Rows = list[tuple[str, str]]

ON_CPU = "decodes pages to a workspace and attends there; other strategies need a GPU"


def describe_attention(config: EngineConfig, family: ModelFamily) -> Rows:
    """Rows of a name and a line for people: dense attention, the fused kernel, and the choice.

    On a GPU it measures what an engine with these settings would measure. Raises `ConfigError` for
    an `attention_backend` that cannot be had.
    """
    device = config.torch_device
    layout = cache_layout(family, config)
    num_pages = layout.num_pages_for(config.kv_memory)
    geometry = family.geometry
    queries = family.settings.frames_per_chunk * family.tokens_per_frame
    workspace = Workspace(
        num_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        max_tokens=workspace_tokens(family, config),
        device=device,
        dtype=config.torch_dtype,
    )
    layers = pages_without_memory(layout, num_pages=num_pages, dtype=config.torch_dtype)
    choice = choose_attention(config, layers, workspace, queries=queries)
    rows = describe_choice(choice, queries=queries)
    if device.type == "cpu":
        forced = config.attention_backend != "auto"
        return rows if forced else [("on the CPU", ON_CPU)]
    job = Job(head_dim=geometry.head_dim, dtype=config.torch_dtype)
    return [
        *rows,
        *describe_dense(device_of(device), job, packages=installed_packages()),
        *describe_fused(layout, device=device, dtype=config.torch_dtype),
    ]


def describe_choice(choice: AttentionChoice, *, queries: int) -> Rows:
    """What an engine takes; where it was measured, for few queries up to those of a chunk."""
    rows = [("strategy", f"{choice.strategy}: {choice.reason}")]
    if choice.costs is not None:
        sizes = sorted({min(count, queries) for count in (QUERY_BLOCK, 4 * QUERY_BLOCK, queries)})
        rows += [(f"  {count:,} queries", choice.costs.describe(count)) for count in sizes]
    return rows


def describe_dense(device: Device, job: Job, *, packages: frozenset[str]) -> Rows:
    """Who attends to what is decoded, and why not each of the others."""
    taken = dense_backend(device, job, packages=packages).backend
    others = [name for name in DENSE_BACKENDS if name != taken]
    reasons = {name: refusal(name, device, job, packages=packages) for name in others}
    return [
        ("dense attention", taken),
        *((f"  not {name}", reasons[name] or f"{taken} comes first") for name in others),
    ]


def describe_fused(layout: CacheLayout, *, device: torch.device, dtype: torch.dtype) -> Rows:
    """For which of the named formats the fused kernel is offered, and why not for others."""
    rows = []
    for name, page_format in FORMATS.items():
        pair = LayerFormats(keys=page_format, values=page_format)
        try:
            of_format = msgspec.structs.replace(layout, formats=(pair,))
            layers = pages_without_memory(of_format, num_pages=1, dtype=dtype)
            reason = why_not_fused(layers[:1], device=device)
        except ConfigError as error:
            reason = str(error)
        rows.append((f"  {name}", "offered" if reason is None else f"not offered: {reason}"))
    return [("fused attention", "over pages of each format:"), *rows]


def pages_without_memory(
    layout: CacheLayout, *, num_pages: int, dtype: torch.dtype
) -> Sequence[LayerPages]:
    """The pages of every layer on the "meta" device: their formats and shapes."""
    table = np.zeros((1, 1), np.int32) if layout.num_books else None
    store = PageStore(layout, num_pages=num_pages, device="meta", dtype=dtype, row_table=table)
    return [store.layer(layer) for layer in range(len(layout.layers))]
