from typing import Literal

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qvg_engine.block_manager.cache_layout import CacheLayout
from qvg_engine.block_manager.codebook_policy import CodebookPolicy
from qvg_engine.block_manager.codebooks import Codebooks, CodebookSizes
from qvg_engine.block_manager.format import CacheGeometry, LayerFormats, PageFormat, get_format
from qvg_engine.block_manager.manager import BlockManager
from qvg_engine.block_manager.page_store import PageStore
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.paged_attention import decode
from qvg_engine.quality.capture import Capture
from qvg_engine.quality.codebook_life import (
    Life,
    Replay,
    codebook_bits,
    codebook_centroids,
    replay,
)
from qvg_engine.quality.comparison import with_centroids
from qvg_engine.quality.format_errors import squared_error
from qvg_engine.quality.stored import store_rows

Q2 = get_format("q2")
RESTLESS = CodebookPolicy(refit_residual=1.0, refit_drift=0.0)


def drawn_rows(chunks: int, *, tokens: int = 96, seed: int = 0) -> torch.Tensor:
    """Rows [tokens, 2, 64] around four places that wander from chunk to chunk."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randn(4, 2, 64, generator=generator)
    rows = []
    for _ in range(chunks):
        places = places + 0.3 * torch.randn(4, 2, 64, generator=generator)
        which = torch.randint(4, (tokens,), generator=generator)
        rows.append(places[which] + 0.2 * torch.randn(tokens, 2, 64, generator=generator))
    return torch.cat(rows)


def stored(
    rows: torch.Tensor,
    life: Life,
    *,
    kept: int,
    tokens: int = 96,
    centroids: int = 4,
    page_format: PageFormat = Q2,
) -> Replay:
    return replay(
        rows,
        (tokens,) * (len(rows) // tokens),
        page_format,
        life,
        kept_chunks=kept,
        centroids=centroids,
        is_key=True,
        seed=0,
    )


@pytest.mark.parametrize("serves", [1, 2, 3, 4, 7, 16, 32, 98])
@pytest.mark.parametrize(("kept", "chunks"), [(16, 98), (3, 20), (1, 5), (98, 98), (98, 20)])
def test_live_codebooks_are_those_of_some_window(serves: int, kept: int, chunks: int) -> None:
    kept = min(kept, chunks)
    windows = [range(max(0, end - kept), end) for end in range(1, chunks + 1)]
    most = max(len({chunk // serves for chunk in window}) for window in windows)
    live = Life(serves=serves).live(kept_chunks=kept, num_chunks=chunks)
    # A window may start anywhere in a longer video.
    assert most <= live <= most + 1
    if chunks >= kept + serves:
        assert live == most


def test_a_policy_has_as_many_as_it_says() -> None:
    life = Life(policy=CodebookPolicy(max_live=3))
    assert life.live(kept_chunks=16, num_chunks=98) == 3


@pytest.mark.parametrize("name", ["q2", "q1", "qvg", "qvg-pro"])
@pytest.mark.parametrize("serves", [None, 1, 8])
def test_the_budget_is_kept_and_used(name: str, serves: int | None) -> None:
    page_format = get_format(name)
    spec = page_format.codec
    assert spec is not None
    bits = 8 * spec.centroid_bytes
    life = Life(serves=serves)
    held = {"kept": 16, "chunks": 98, "tokens": 3072}
    found = codebook_centroids(page_format, life, overhead=0.33, **held)
    live = life.live(kept_chunks=16, num_chunks=98)
    if not found:
        assert live * (spec.stages + 1) * bits / 3072 > 0.33
        return
    assert codebook_bits(page_format, life, found, **held) <= 0.33
    # A row is the unit that slots are made of.
    assert codebook_bits(page_format, life, found + 1, **held) > 0.33 - live * bits / 3072


def test_the_engine_gives_as_many_centroids() -> None:
    layout = msgspec.structs.replace(LAYOUT, codebook_overhead=0.33)
    assert layout.budget is not None
    rows = layout.budget.rows_per_slot(3072)
    found = codebook_centroids(Q2, Life(), overhead=0.33, kept=16, chunks=98, tokens=3072)
    assert found == rows - 1


def test_a_codebook_a_chunk_is_chunks_stored_apart() -> None:
    rows = drawn_rows(3)
    found = stored(rows, Life(serves=1, warm=False), kept=2)
    spec = with_centroids(Q2, 4)
    apart = [store_rows(part, spec, is_key=True, seed=0).decoded() for part in rows.split(96)]
    assert torch.equal(found.decoded, torch.cat(apart))
    assert found.fits == 3
    assert found.fit_seconds > 0 < found.encode_seconds


def test_fitting_to_what_will_be_served_is_storing_it_at_once() -> None:
    rows = drawn_rows(4)
    found = stored(rows, Life(serves=4, warm=False, fit_chunks=None), kept=4)
    whole = store_rows(rows, with_centroids(Q2, 4), is_key=True, seed=0)
    assert torch.equal(found.decoded, whole.decoded())
    assert found.fits == 1


def test_a_slot_that_is_used_again_changes_nothing_that_was_read() -> None:
    rows = drawn_rows(6)
    life = Life(serves=1, warm=False)
    short, long = stored(rows, life, kept=2), stored(rows, life, kept=6)
    assert torch.equal(short.decoded, long.decoded)


def test_a_warm_fit_starts_from_the_last_codebook() -> None:
    rows = drawn_rows(6)
    policy = CodebookPolicy(kmeans_iterations=1)
    warm, cold = (
        stored(rows, Life(serves=1, warm=warm, policy=policy), kept=3) for warm in (True, False)
    )
    assert torch.equal(warm.decoded[:96], cold.decoded[:96])
    assert not torch.equal(warm.decoded[96:], cold.decoded[96:])


def test_a_codebook_that_has_seen_the_window_serves_what_comes_back() -> None:
    """Chunks take turns between two scenes; the last chunk is of the first scene again."""
    first, second = drawn_rows(2, seed=1), drawn_rows(2, seed=2)
    rows = torch.cat([first[:96], second[:96], first[96:]])
    policy = CodebookPolicy(first_spans=1, refit_residual=1e6, refit_drift=1, refit_unused=0)
    to_chunk, to_window = (
        stored(rows, Life(policy=policy, fit_chunks=chunks), kept=3, centroids=8).decoded
        for chunks in (1, 2)
    )
    assert torch.equal(to_chunk[:96], to_window[:96])
    last = slice(192, 288)
    assert squared_error(to_window[last], rows[last]) < 0.7 * squared_error(
        to_chunk[last], rows[last]
    )


def test_chunks_that_were_dropped_are_not_fitted_to() -> None:
    rows = drawn_rows(5)

    def found(fit_chunks: int, kept: int) -> torch.Tensor:
        return stored(rows, Life(serves=1, warm=False, fit_chunks=fit_chunks), kept=kept).decoded

    assert torch.equal(found(4, kept=2), found(2, kept=2))
    assert not torch.equal(found(4, kept=4), found(2, kept=4))
    assert torch.equal(found(1, kept=4), found(1, kept=2))


def test_coarse_centroids_cost_little() -> None:
    rows = drawn_rows(3)
    assert Q2.codec is not None
    types: tuple[Literal["float16", "e4m3"], ...] = ("float16", "e4m3")
    formats = [
        PageFormat(name="q2", codec=msgspec.structs.replace(Q2.codec, centroid_type=name))
        for name in types
    ]
    fine, coarse = (
        squared_error(stored(rows, Life(serves=3), kept=3, page_format=page_format).decoded, rows)
        for page_format in formats
    )
    assert fine != coarse
    assert coarse < 1.1 * fine


LAYOUT = CacheLayout(
    geometry=CacheGeometry(num_layers=1, num_kv_heads=2, head_dim=128),
    page_size=64,
    formats=(LayerFormats(keys=Q2, values=Q2),),
    compute_itemsize=4,
    codebook_overhead=0.5,
    max_live_codebooks=2,
)


def engine_rows(capture: Capture, policy: CodebookPolicy, centroids: int) -> list[torch.Tensor]:
    """K and V of layer 1 through the block manager and the page store, two chunks kept."""
    rows = capture.layers[1]
    layout = LAYOUT
    num_pages = 3 * len(capture.chunk_tokens)
    sizes = CodebookSizes(
        num_books=2,
        num_groups=2,
        num_centroids=256,
        num_slots=2,
        max_rows=centroids + 1,
        num_rows=2 * (centroids + 1),
    )
    codebooks = Codebooks(sizes, policy, num_pages=num_pages)
    store = PageStore(
        layout,
        num_pages=num_pages,
        device="cpu",
        dtype=torch.float32,
        row_table=codebooks.pool.row_table,
    )
    manager = BlockManager(num_pages, 64, codebooks=codebooks)
    manager.open_owner("a", num_pages, codebook_slots=2, codebook_rows=2 * (centroids + 1))
    branch = manager.open_branch("a")
    found: list[list[torch.Tensor]] = [[], []]
    for chunk, tokens in enumerate(capture.chunk_tokens):
        own = capture.chunk(chunk)
        manager.evict(branch, sink_tokens=0, window_start=max(0, own.start - tokens))
        commit = manager.begin_commit([branch], num_tokens=tokens)
        assert commit.span is not None
        report = store.new_report()
        store.write(
            0,
            commit.page_ids,
            keys=rows.keys[own],
            values=rows.values[own],
            span=commit.span,
            report=report,
        )
        codebooks.record(commit.span, report.read(report.tensors))
        manager.publish(commit)
        for part, pages in enumerate((store.layer(0).keys, store.layer(0).values)):
            out = torch.empty(2, tokens, 128)
            decode(pages, _runs(commit.page_ids, tokens), out, start=0, rope=None)
            found[part].append(out.transpose(0, 1))
    return [torch.cat(part) for part in found]


def _runs(page_ids: NDArray[np.int32], tokens: int) -> PageRuns:
    first = 64 * np.arange(len(page_ids))
    return PageRuns(
        page_ids.astype(np.int64), first, np.zeros_like(first), np.minimum(64, tokens - first)
    )


@pytest.mark.parametrize("policy", [CodebookPolicy(), RESTLESS], ids=["default", "restless"])
def test_the_policy_is_the_engines(capture: Capture, policy: CodebookPolicy) -> None:
    expected = engine_rows(capture, policy, centroids=12)
    rows = capture.layers[1]
    for book, part in enumerate((rows.keys, rows.values)):
        found = replay(
            part,
            capture.chunk_tokens,
            Q2,
            Life(policy=policy),
            kept_chunks=2,
            centroids=12,
            is_key=not book,
            seed=book,
        )
        assert torch.equal(found.decoded, expected[book])
        assert found.fits > 1 or policy == CodebookPolicy()
