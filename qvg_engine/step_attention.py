"""Attention of one step: every pass over its own pages, its own tokens and its own text.

It is the one place where a network's layers meet the pages. A commit pass's K and V go into its
reserved pages layer by layer, so that no more than one layer of them is alive at a time.
"""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.block_manager.commit import PendingCommit
from qvg_engine.block_manager.page_store import PageStore
from qvg_engine.block_manager.span_report import SpanReport
from qvg_engine.errors import NonFiniteError
from qvg_engine.kernels.paged_attention import (
    AttentionPass,
    DenseSegment,
    EightBitWorkspace,
    PagedSegment,
    PageRuns,
    ReadTransform,
    Strategy,
    Workspace,
    batched_attention,
    rotates_only,
    transforms_in,
)
from qvg_engine.text_pool import TextEntry


class PassReads(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What one pass of a step attends to, and where it commits.

    `rows` are its rows in the batch; `positions` its token numbers; `pages` its cached tokens.
    """

    rows: slice
    positions: NDArray[np.int64]
    pages: PageRuns
    transform: ReadTransform
    text: TextEntry
    commit: PendingCommit | None


class StepAttention:
    """The `Attention` that the engine gives to a network for one step.

    `strategy_for` says how a pass of so many queries attends to so many cached tokens;
    `batch_invariant`: no bit of a pass depends on the others. After the forward, `reports` holds
    what was seen of each commit's span, where pages refer to codebooks, and `failures` why a commit
    could not be stored, both by commit id.
    """

    def __init__(
        self,
        passes: Sequence[PassReads],
        *,
        store: PageStore,
        workspace: Workspace | EightBitWorkspace,
        strategy_for: Callable[[int, int], Strategy],
        batch_invariant: bool = False,
    ) -> None:
        self._passes = passes
        self._store = store
        self._workspace = workspace
        self._strategy_for = strategy_for
        self._batch_invariant = batch_invariant
        self.reports: dict[int, SpanReport] = {}
        self.failures: dict[int, str] = {}

    def self_attention(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        output = self._attend(queries, self._self_passes(layer, keys, values))
        self._commit(layer, keys, values)
        return output

    def self_attentions(
        self,
        layer: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        with_text: bool = False,
    ) -> tuple[Tensor, ...]:
        counts = {len(transforms_in(item.transform)) for item in self._passes}
        assert len(counts) == 1, f"passes of one network have {counts} transforms"
        outputs = tuple(
            self._attend(
                queries, self._self_passes(layer, keys, values, read=read, with_text=with_text)
            )
            for read in range(counts.pop())
        )
        self._commit(layer, keys, values)
        return outputs

    def cross_attention(self, layer: int, queries: Tensor) -> Tensor:
        texts = [
            AttentionPass(
                start=item.rows.start, stop=item.rows.stop, segments=(item.text.layers[layer],)
            )
            for item in self._passes
        ]
        return self._attend(queries, texts)

    def _self_passes(
        self, layer: int, keys: Tensor, values: Tensor, *, read: int = 0, with_text: bool = False
    ) -> list[AttentionPass]:
        """What each pass attends to under its transform number `read`."""
        pages = self._store.layer(layer)
        return [
            AttentionPass(
                start=item.rows.start,
                stop=item.rows.stop,
                segments=(
                    *((item.text.layers[layer],) if with_text else ()),
                    PagedSegment(pages, item.pages),
                    DenseSegment(
                        keys=keys[item.rows], values=values[item.rows], positions=item.positions
                    ),
                ),
                transform=transforms_in(item.transform)[read],
                positions=item.positions,
            )
            for item in self._passes
        ]

    def _commit(self, layer: int, keys: Tensor, values: Tensor) -> None:
        # After all passes have read: a commit writes over what refined its branch's newest pages.
        for item in self._passes:
            if item.commit is not None:
                self._write(layer, item.commit, keys[item.rows], values[item.rows], item.pages)

    def _attend(self, queries: Tensor, passes: Sequence[AttentionPass]) -> Tensor:
        return batched_attention(
            queries,
            passes,
            workspace=self._workspace,
            strategy=[self._strategy(part) for part in passes],
            together=not self._batch_invariant,
        )

    def _strategy(self, part: AttentionPass) -> Strategy:
        paged = (s for s in part.segments if isinstance(s, PagedSegment))
        strategy = self._strategy_for(part.num_queries, sum(s.num_tokens for s in paged))
        # In the tiles of "fused" rows can be rotated, and nothing else.
        straight = rotates_only(part.transform)
        return "workspace" if strategy == "fused" and not straight else strategy

    def _write(
        self, layer: int, commit: PendingCommit, keys: Tensor, values: Tensor, seen: PageRuns
    ) -> None:
        stored = commit.num_tokens
        if commit.span is not None:
            self.reports.setdefault(commit.commit_id, self._store.new_report())
        try:
            self._store.write(
                layer,
                commit.page_ids,
                keys=keys[-stored:],
                values=values[-stored:],
                span=commit.span,
                report=self.reports.get(commit.commit_id),
                seen=seen,
                refined=commit.refined,
            )
        except NonFiniteError as error:
            # One stream's mistake: the others in the batch go on.
            self.failures.setdefault(commit.commit_id, str(error))
