"""A step whose forward is launched: what its streams emitted, and whether that may leave."""

from collections.abc import Mapping

import msgspec
import torch

from qvg_engine.block_manager.codebooks import SpanFigures
from qvg_engine.block_manager.commit import PendingCommit
from qvg_engine.errors import NonFiniteError
from qvg_engine.kernels.readback import Readback
from qvg_engine.output import PendingOutput
from qvg_engine.runner import StepResult
from qvg_engine.scheduler.plan import StepPlan
from qvg_engine.stream import Stream, by_request


class Verdict(msgspec.Struct, frozen=True):
    """`errors`: why streams failed, by request id; `figures` of the others' spans, by commit id."""

    errors: dict[str, str]
    figures: dict[int, SpanFigures]


class Emission(msgspec.Struct, frozen=True):
    """What one stream emitted in a step, in order; `finished` if there will be no more."""

    outputs: tuple[PendingOutput, ...]
    finished: bool


class LaunchedStep:
    """What is known of a step at once, and what will be when the device is done with it.

    `errors` says why streams failed as far as the host knows; `emissions` by request id.
    """

    def __init__(self, plan: StepPlan, result: StepResult, streams: Mapping[str, Stream]) -> None:
        self.plan = plan
        self.streams = {request_id: streams[request_id] for request_id in plan.request_ids}
        self.flows = result.flows
        self.emissions: dict[str, Emission] = {}
        self.errors = {
            request_id: f"request {request_id!r}: {result.failures[commit.commit_id]}"
            for request_id, commit in self.commits
            if commit.commit_id in result.failures
        }
        self._reports = result.reports
        finite = [torch.stack([flow.isfinite().all() for flow in result.flows])]
        self._flags = Readback([*finite, *(x for r in self._reports.values() for x in r.tensors)])
        self._verdict: Verdict | None = None

    @property
    def commits(self) -> list[tuple[str, PendingCommit]]:
        """The commits of the step, with their requests."""
        return [(unit.request_id, unit.commit) for unit in self.plan.units if unit.commit]

    def is_alive(self, request_id: str, streams: Mapping[str, Stream]) -> bool:
        """Whether the stream that ran is still under way."""
        return streams.get(request_id) is self.streams[request_id]

    def flows_of(self, request_id: str) -> list[torch.Tensor]:
        """The flows of one stream's passes, in order."""
        passes = by_request([unit.request_id for unit in self.plan.units])
        return [self.flows[index] for index in passes[request_id]]

    def verdict(self) -> Verdict:
        """Who failed, and what spans reported; waits for the device."""
        if self._verdict is None:
            finite, *reported = self._flags.wait()
            errors = {
                unit.request_id: _explain_not_finite(unit.request_id)
                for unit, is_finite in zip(self.plan.units, finite.tolist(), strict=True)
                if not is_finite
            }
            errors = self.errors | errors
            self._verdict = Verdict(errors, self._read_reports(reported, errors))
        return self._verdict

    def _read_reports(
        self, tensors: list[torch.Tensor], errors: dict[str, str]
    ) -> dict[int, SpanFigures]:
        """The figures; a report of rows that are not finite goes into `errors`."""
        request_of = {commit.commit_id: request_id for request_id, commit in self.commits}
        found = {}
        rest = iter(tensors)
        for commit_id, report in self._reports.items():
            own = [next(rest) for _ in report.tensors]
            request_id = request_of[commit_id]
            try:
                figures = report.read(own)
            except NonFiniteError as error:
                errors.setdefault(request_id, f"request {request_id!r}: {error}")
                continue
            if request_id not in errors:
                found[commit_id] = figures
        return found


def _explain_not_finite(request_id: str) -> str:
    return (
        f"request {request_id!r}: the network's output has NaN or Inf: check the request's "
        "noise, embeddings and context, or compute in float32"
    )
