"""The timeline of docs/scheduling.md is what the scheduler does."""

from pathlib import Path

from qvg_engine.block_manager.manager import BlockManager
from qvg_engine.scheduler.config import SchedulerConfig
from qvg_engine.scheduler.core import Scheduler
from qvg_engine.scheduler.needs import Needs
from qvg_engine.scheduler.plan import StepPlan
from qvg_engine.scheduler.unit import CommitIntent, Gang, PassKind, PassUnit

PAGE = Path(__file__).parents[2] / "docs" / "scheduling.md"
NUM_TOKENS = 192
NUM_STEPS = 12


def denoise(branch: int = 0) -> PassUnit:
    return PassUnit(branch=branch, kind=PassKind.DENOISE, num_tokens=NUM_TOKENS)


def commit(*branches: int) -> Gang:
    intent = CommitIntent(branches=branches, num_tokens=NUM_TOKENS)
    return (PassUnit(branch=0, kind=PassKind.COMMIT, num_tokens=NUM_TOKENS, commit=intent),)


PROGRAMS: dict[str, list[Gang]] = {
    "a": [(denoise(),)] * 4 + [commit(0)],
    "b": [(denoise(0), denoise(1))] * 6 + [commit(0, 1)],
    "c": [(denoise(),)] * 4 + [commit(0)] + [(denoise(),)] * 4,
    "d": [(denoise(),)] * 4,
}


def cell(scheduler: Scheduler, plan: StepPlan, request_id: str) -> str:
    """What the stream does in this step."""
    passes = [scheduled for scheduled in plan.units if scheduled.request_id == request_id]
    if passes:
        return "".join("D" if scheduled.commit is None else "C" for scheduled in passes)
    return "." if scheduler.branch_ids(request_id) else "w"


def draw() -> str:
    scheduler = Scheduler(
        SchedulerConfig(max_batch_tokens=3 * NUM_TOKENS),
        block_manager=BlockManager(num_pages=40, page_size=64),
        capacity=Needs(pages=40, decoder_slots=3),
    )
    left = {request_id: list(program) for request_id, program in PROGRAMS.items()}
    rows = {"step": [str(step) for step in range(NUM_STEPS)]} | {rid: [] for rid in left}
    for request_id in left:
        num_branches = 2 if request_id == "b" else 1
        scheduler.add(request_id, Needs(pages=6, decoder_slots=1), num_branches=num_branches)
    for _ in range(NUM_STEPS):
        for request_id, program in left.items():
            scheduler.offer(request_id, program[0])
        plan = scheduler.schedule()
        for request_id in left:
            rows[request_id].append(cell(scheduler, plan, request_id))
        scheduler.complete(plan)
        for request_id in plan.request_ids:
            del left[request_id][0]
            if not left[request_id]:
                scheduler.finish(request_id)
                del left[request_id]
    lines = (f"{name:6}" + "".join(f"{text:4}" for text in row) for name, row in rows.items())
    return "\n".join(line.rstrip() for line in lines)


def test_the_drawn_timeline_is_true() -> None:
    assert draw() in PAGE.read_text()
