"""How long a codebook should serve: the same rows, stored under different lives of a codebook.

K or V of one layer of a capture is stored chunk by chunk, as an engine's commits do, by the
engine's kernels and, where it is asked for, by its policy. A life says how many chunks a codebook
serves and what it is fitted to; the engine's own budget says how many centroids that leaves it, so
that lives are compared at the same bits.
"""

import time
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.block_manager.codebook_budget import CodebookBudget
from qvg_engine.block_manager.codebook_policy import CodebookAction, CodebookPolicy, SpanPlan
from qvg_engine.block_manager.codebooks import Codebooks, CodebookSet, CodebookSizes, SpanFigures
from qvg_engine.block_manager.format import PageFormat
from qvg_engine.block_manager.page_count import pages_for
from qvg_engine.kernels.codec import (
    CodecSpec,
    decode,
    encode_span,
    fit_codebook,
)
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.quality.stored import PAGE_SIZE, pages_like


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """When a codebook is fitted, to what, and from where.

    * `serves`: chunks that a codebook serves, 1 or more; None: `policy` decides.
    * `policy`: the engine's rule, where `serves` is None; its `max_live` and its
      `kmeans_iterations` hold in any case, see `live`.
    * `warm`: whether a fit starts from the last codebook's centroids. A policy's always do.
    * `fit_chunks`: chunks that a codebook is fitted to: the one that it is first used for, and so
      many less one before it, as they were stored, as far as they are kept. None: all the chunks
      that it will have served, which an engine would have to wait for.
    """

    serves: int | None = None
    policy: CodebookPolicy = CodebookPolicy()
    warm: bool = True
    fit_chunks: int | None = 1

    def __post_init__(self) -> None:
        assert self.serves is None or self.serves >= 1, self.serves
        assert self.fit_chunks is None or self.fit_chunks >= 1, self.fit_chunks
        assert self.fit_chunks or self.serves, "a policy does not know what it will serve"

    def live(self, *, kept_chunks: int, num_chunks: int) -> int:
        """Codebooks that pages refer to at most, while `kept_chunks` of the chunks are kept."""
        if self.serves is None:
            return self.policy.max_live
        across = -(-(kept_chunks - 1) // self.serves) + 1
        return min(across, -(-num_chunks // self.serves))


@dataclass(frozen=True, slots=True)
class Replay:
    """One book, stored under a life.

    decoded: fp32 [tokens, heads, head_dim], as it is read back.
    fits: how often a codebook was fitted.
    fit_seconds, encode_seconds: processor time of all fits, and of all else that a commit does.
    """

    decoded: Tensor
    fits: int
    fit_seconds: float
    encode_seconds: float


def codebook_centroids(
    page_format: PageFormat, life: Life, *, overhead: float, kept: int, chunks: int, tokens: int
) -> int:
    """Centroids of a stage that a budget leaves each of a life's codebooks; 0 if not even one.

    Args:
        page_format: one with centroids.
        life: see `Life`.
        overhead: bits an element of all its codebooks together, see `CodebookBudget`.
        kept: chunks that are kept at the peak, out of `chunks`; `tokens` are theirs.
    """
    spec = page_format.codec
    assert spec is not None
    budget = CodebookBudget(
        overhead=overhead,
        max_live=1,
        min_rows=page_format.codebook_rows(1),
        max_rows=page_format.most_codebook_rows,
        row_bits=8 * spec.centroid_bytes,
    )
    live = life.live(kept_chunks=kept, num_chunks=chunks)
    rows = budget.total_rows(tokens) // live
    centroids = (rows - spec.channel_widths) // spec.stages
    return max(0, min(spec.centroids, centroids))


def codebook_bits(
    page_format: PageFormat, life: Life, centroids: int, *, kept: int, chunks: int, tokens: int
) -> float:
    """Bits an element of a life's codebooks of so many centroids; see `codebook_centroids`."""
    spec = page_format.codec
    assert spec is not None
    bits = 8 * spec.centroid_bytes * (spec.stages * centroids + spec.channel_widths)
    return life.live(kept_chunks=kept, num_chunks=chunks) * bits / tokens


def replay(
    rows: Tensor,
    chunk_tokens: tuple[int, ...],
    page_format: PageFormat,
    life: Life,
    *,
    kept_chunks: int,
    centroids: int,
    is_key: bool,
    seed: int,
) -> Replay:
    """Store the rows of one book chunk by chunk, and read them all back.

    Args:
        rows: [tokens, heads, head_dim]; K in the engine's order of channels, before RoPE.
        chunk_tokens: tokens of each chunk.
        page_format: one with centroids.
        life: of its codebooks, which have `centroids` centroids a stage.
        kept_chunks: a chunk is dropped when so many newer ones have been stored.
        is_key: whether the rows are of K.
        seed: of k-means.
    """
    assert page_format.codec is not None
    assert centroids >= 1, centroids
    spec = page_format.codec.for_head_dim(rows.shape[2])
    spec = msgspec.structs.replace(spec, centroids=centroids)
    live = life.live(kept_chunks=kept_chunks, num_chunks=len(chunk_tokens))
    book = _Book(rows, chunk_tokens, spec, life, live, is_key=is_key, seed=seed)
    for chunk in range(len(chunk_tokens)):
        if chunk >= kept_chunks:
            book.drop(chunk - kept_chunks)
        book.store(chunk, kept_chunks)
    return book.finish()


class _Book:
    """The pages of a replay and the codebooks that they refer to; a page id names a chunk there."""

    def __init__(
        self,
        rows: Tensor,
        chunk_tokens: tuple[int, ...],
        spec: CodecSpec,
        life: Life,
        live: int,
        *,
        is_key: bool,
        seed: int,
    ) -> None:
        self._rows = rows
        self._life = life
        self._live = live
        self._seed = seed
        self._starts = np.cumsum([0, *chunk_tokens])
        pages_of_chunks = [pages_for(tokens, PAGE_SIZE) for tokens in chunk_tokens]
        self._first_page = np.cumsum([0, *pages_of_chunks])
        num_pages = int(self._first_page[-1])
        self._pages = pages_like(rows, spec, num_pages=num_pages, is_key=is_key, num_slots=live)
        self._codebooks, self._set = _open_codebooks(spec, life, live, len(chunk_tokens), rows)
        self._read_back = torch.empty(rows.shape)
        self._fits = 0
        self._fit_seconds = self._encode_seconds = 0.0

    def drop(self, chunk: int) -> None:
        """No chunk reads this one any more."""
        self._codebooks.free_pages(np.array([chunk], np.int32))

    def store(self, chunk: int, kept_chunks: int) -> None:
        """Fit a codebook, if that is due, and store a chunk with it."""
        plan = self._plan(chunk)
        slot = int(plan.slots[0])
        started = time.process_time()
        if plan.actions[0] != CodebookAction.REUSE:
            warm_from = int(plan.warm_from[0])
            fit_codebook(
                self._pages,
                self._fitted_to(chunk, kept_chunks),
                slot=slot,
                num_centroids=self._pages.spec.centroids,
                seed=self._seed,
                warm_from=warm_from if warm_from >= 0 else None,
                iterations=self._life.policy.kmeans_iterations,
            )
            self._fits += 1
        fitted = time.process_time()
        pages = np.arange(self._first_page[chunk], self._first_page[chunk + 1])
        seen = encode_span(self._pages, pages, self._tokens(chunk, chunk + 1), slot=slot)
        self._encode_seconds += time.process_time() - fitted
        self._fit_seconds += fitted - started
        stored = np.array([chunk], np.int32)
        self._codebooks.publish(self._set, plan, stored, self._codebooks.refined(self._set, 1))
        counts = seen.counts.reshape(1, -1, seen.counts.shape[-1]).astype(np.int32)
        figures = SpanFigures(
            energy=np.array([seen.energy.sum()], np.float32),
            residual=np.array([seen.residual_energy.sum()], np.float32),
            counts=counts,
            num_centroids=np.array([self._pages.codebooks.counts[slot]], np.int32),
        )
        self._codebooks.record(plan, figures)
        # Now, because the codebook's slot will be another's once the chunk is dropped.
        decoded = self._decoded(chunk, chunk + 1)
        self._read_back[int(self._starts[chunk]) : int(self._starts[chunk + 1])] = decoded

    def finish(self) -> Replay:
        """What was stored, and what it took."""
        return Replay(self._read_back, self._fits, self._fit_seconds, self._encode_seconds)

    def _plan(self, chunk: int) -> SpanPlan:
        serves = self._life.serves
        if serves is None:
            return self._codebooks.plan(self._set)
        number, served = divmod(chunk, serves)
        action, warm_from = CodebookAction.REUSE, -1
        if not served:
            action = CodebookAction.FIT
            if self._life.warm and chunk:
                action, warm_from = CodebookAction.REFIT, int(self._slot(number - 1))
        return SpanPlan(
            np.array([action], np.int8),
            np.array([self._slot(number)], np.int32),
            np.array([warm_from], np.int32),
        )

    def _slot(self, number: int) -> np.int32:
        slot: np.int32 = self._set.slots[number % self._live]
        return slot

    def _fitted_to(self, chunk: int, kept_chunks: int) -> Tensor:
        if self._life.fit_chunks is None:
            assert self._life.serves is not None
            return self._tokens(chunk, min(chunk + self._life.serves, len(self._starts) - 1))
        own = self._tokens(chunk, chunk + 1)
        oldest = max(0, chunk + 1 - min(kept_chunks, self._life.fit_chunks))
        return torch.cat([self._decoded(oldest, chunk), own])

    def _tokens(self, first: int, stop: int) -> Tensor:
        return self._rows[int(self._starts[first]) : int(self._starts[stop])]

    def _decoded(self, first: int, stop: int) -> Tensor:
        """The chunks [first, stop) as they are read back, fp32 [tokens, heads, head_dim]."""
        runs = [self._runs(chunk) for chunk in range(first, stop)]
        tokens = int(self._starts[stop] - self._starts[first])
        out = torch.empty(self._pages.num_heads, tokens, self._pages.head_dim)
        start = 0
        for run in runs:
            decode(self._pages, run, out, start=start, rope=None)
            start += run.num_tokens
        return out.transpose(0, 1)

    def _runs(self, chunk: int) -> PageRuns:
        pages = np.arange(self._first_page[chunk], self._first_page[chunk + 1])
        first = PAGE_SIZE * np.arange(len(pages))
        tokens = int(self._starts[chunk + 1] - self._starts[chunk])
        return PageRuns(
            pages.astype(np.int64),
            first + self._starts[chunk],
            np.zeros_like(first),
            np.minimum(PAGE_SIZE, tokens - first),
        )


def _open_codebooks(
    spec: CodecSpec, life: Life, live: int, num_chunks: int, rows: Tensor
) -> tuple[Codebooks, CodebookSet]:
    """The engine's bookkeeping of one book; one page stands for a whole chunk."""
    slot_rows = spec.stages * spec.centroids + spec.channel_widths
    sizes = CodebookSizes(
        num_books=1,
        num_groups=rows.shape[1] * spec.stages,
        num_centroids=spec.centroids,
        num_slots=live,
        min_rows=spec.stages + spec.channel_widths,
        max_rows=slot_rows,
        num_rows=live * slot_rows,
    )
    policy = msgspec.structs.replace(life.policy, max_live=min(16, live))
    codebooks = Codebooks(sizes, policy, num_pages=num_chunks)
    if live <= 16:
        codebook_set = codebooks.open_sets(live, live * slot_rows)[0]
    else:
        slots: NDArray[np.int32] = codebooks.pool.reserve(live, slot_rows)
        codebook_set = CodebookSet(slots, 1)
    codebook_set.is_taken = True
    return codebooks, codebook_set
