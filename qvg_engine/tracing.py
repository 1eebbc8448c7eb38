"""What a traced request gets at its end: its passes, and its caches in the published order."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.block_manager.page_entries import PageEntries
from qvg_engine.block_manager.page_store import PageStore
from qvg_engine.kernels.paged_attention import PageRuns, Pages, TransformSet, decode
from qvg_engine.models.family import JointTextFamily, ModelFamily
from qvg_engine.output import LayerCache, Trace
from qvg_engine.stream import Stream
from qvg_engine.text_pool import TextEntry


def make_trace(
    stream: Stream,
    tables: Sequence[PageEntries],
    *,
    family: ModelFamily,
    store: PageStore,
) -> Trace:
    """Copy everything out of the engine, before the stream gives back what it holds.

    `tables` are the block tables of the stream's branches, in order.
    """
    runs = [PageRuns.from_columns(entries) for entries in tables]
    numbers = tuple(run.slots()[2] for run in runs)
    packs_positions = family.settings.positions == "window"
    positions = [np.arange(len(row)) if packs_positions else row for row in numbers]
    caches = tuple(
        tuple(
            _layer_cache(stream, layer, run, places, text, family=family, store=store)
            for layer in range(family.geometry.num_layers)
        )
        for run, places, text in zip(runs, positions, stream.text_entries, strict=True)
    )
    return Trace(tuple(stream.records), caches, numbers)


def _layer_cache(
    stream: Stream,
    layer: int,
    run: PageRuns,
    positions: NDArray[np.int64],
    text: TextEntry,
    *,
    family: ModelFamily,
    store: PageStore,
) -> LayerCache:
    pages = store.layer(layer)
    keys = _decoded(pages.keys, run)
    values = _decoded(pages.values, run)
    transform = stream.program.transform
    rotated = transform.keys(keys, positions)
    text_keys, text_values = text.expanded(layer)
    if isinstance(family, JointTextFamily):
        text_keys = family.published_text_keys(text_keys)
    parts = transform.parts if isinstance(transform, TransformSet) else ()
    return LayerCache(
        keys=family.published_keys(keys).cpu(),
        rotated_keys=family.published_keys(rotated).cpu(),
        values=values.cpu(),
        text_keys=text_keys.cpu(),
        text_values=text_values.cpu(),
        transformed=tuple(
            (
                family.published_keys(part.keys(keys, positions)).cpu(),
                part.values(values, positions).cpu(),
            )
            for part in parts
        ),
    )


def _decoded(pages: Pages, run: PageRuns) -> Tensor:
    """The run's rows in fp32, [tokens, heads, head_dim]."""
    shape = (pages.num_heads, run.num_tokens, pages.head_dim)
    out = torch.empty(shape, device=pages.device, dtype=torch.float32)
    decode(pages, run, out, start=0, rope=None)
    return out.transpose(0, 1)
