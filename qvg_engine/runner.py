"""Turns a step plan into one forward of the network.

The runner joins what the scheduler knows (passes, pages) with what the programs know (latents,
timesteps, positions) into one ragged batch, and returns the flow of every pass.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from torch import Tensor

from qvg_engine.block_manager.span_report import SpanReport
from qvg_engine.cache import Cache
from qvg_engine.config import EngineConfig
from qvg_engine.kernels.paged_attention import PageRuns
from qvg_engine.models.family import ModelFamily
from qvg_engine.models.program import PassInputs
from qvg_engine.scheduler.plan import ScheduledPass, StepPlan
from qvg_engine.step_attention import PassReads, StepAttention
from qvg_engine.stream import Stream


class StepResult(msgspec.Struct, frozen=True):
    """What a forward left behind; on a GPU it may still be computed.

    `flows` [F, C, h, w], one for every pass in the plan's order; by commit id, `reports` of spans
    that refer to codebooks, and `failures` of commits that could not be stored.
    """

    flows: list[Tensor]
    reports: dict[int, SpanReport]
    failures: dict[int, str]


class Runner:
    """Runs the passes of a step over the pages of one engine."""

    def __init__(
        self,
        family: ModelFamily,
        *,
        config: EngineConfig,
        cache: Cache,
    ) -> None:
        self._family = family
        self._config = config
        self._cache = cache

    def run(self, plan: StepPlan, streams: Mapping[str, Stream]) -> StepResult:
        """One forward over the passes of the plan."""
        inputs = [
            item
            for request_id in plan.request_ids
            for item in streams[request_id].program.pass_inputs()
        ]
        assert len(inputs) == len(plan.units), "a program's inputs do not match its gang"
        attention = StepAttention(
            self._reads(plan.units, inputs, streams),
            store=self._cache.store,
            workspace=self._cache.workspace,
            strategy_for=self._cache.attention.strategy_for,
            batch_invariant=self._config.batch_invariant,
        )
        flows = self._family.forward(
            inputs, attention, batch_invariant=self._config.batch_invariant
        )
        return StepResult(flows, attention.reports, attention.failures)

    def _reads(
        self,
        units: Sequence[ScheduledPass],
        inputs: Sequence[PassInputs],
        streams: Mapping[str, Stream],
    ) -> list[PassReads]:
        reads = []
        first_row = 0
        for scheduled, item in zip(units, inputs, strict=True):
            num_tokens = scheduled.unit.num_tokens
            rows = slice(first_row, first_row + num_tokens)
            first_row += num_tokens
            entries = self._cache.block_manager.read_table(scheduled.branch_id, item.read_upto)
            stream = streams[scheduled.request_id]
            pages, first_position = PageRuns.from_columns(entries), item.first_token
            if item.packed_positions:
                pages, first_position = pages.packed(), pages.num_tokens
            reads.append(
                PassReads(
                    rows=rows,
                    positions=np.arange(first_position, first_position + num_tokens),
                    pages=pages,
                    transform=item.transform,
                    text=stream.text_entries[scheduled.unit.branch],
                    commit=scheduled.commit,
                )
            )
        return reads
