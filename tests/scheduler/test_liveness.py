"""The bound of docs/scheduling.md on how long a gang waits, where it is hardest to keep."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvg_engine.block_manager.manager import BlockManager
from qvg_engine.scheduler.config import SchedulerConfig
from qvg_engine.scheduler.core import Scheduler
from qvg_engine.scheduler.needs import Needs
from qvg_engine.scheduler.unit import PassKind, PassUnit

BUDGET = 10


class Crowd:
    """Running streams that all have a gang on offer in every step."""

    def __init__(self, priorities: list[int], *, aging_steps: int) -> None:
        config = SchedulerConfig(
            max_streams=len(priorities), max_batch_tokens=BUDGET, aging_steps=aging_steps
        )
        manager = BlockManager(num_pages=1, page_size=1)
        self.scheduler = Scheduler(config, block_manager=manager, capacity=Needs())
        self.served_steps: list[list[int]] = [[] for _ in priorities]
        for index, priority in enumerate(priorities):
            self.scheduler.add(str(index), Needs(), num_branches=1, priority=priority)
        self.scheduler.complete(self.scheduler.schedule())

    def run(self, num_steps: int, gang_tokens: list[int]) -> None:
        """Stream i offers gangs of `gang_tokens[i]` tokens."""
        for _ in range(num_steps):
            for index, num_tokens in enumerate(gang_tokens):
                unit = PassUnit(branch=0, kind=PassKind.DENOISE, num_tokens=num_tokens)
                self.scheduler.offer(str(index), (unit,))
            plan = self.scheduler.schedule()
            self.scheduler.complete(plan)
            for request_id in plan.request_ids:
                self.served_steps[int(request_id)].append(plan.step_index)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    streams=st.lists(
        st.tuples(st.integers(-2, 3), st.integers(1, BUDGET + 5)), min_size=1, max_size=7
    ),
    aging_steps=st.integers(1, 6),
)
def test_no_gang_waits_longer_than_the_bound(
    streams: list[tuple[int, int]], aging_steps: int
) -> None:
    priorities = [priority for priority, _ in streams]
    crowd = Crowd(priorities, aging_steps=aging_steps)
    crowd.run(120, [num_tokens for _, num_tokens in streams])
    for priority, served_steps in zip(priorities, crowd.served_steps, strict=True):
        overtaken_steps = (priority - min(priorities)) * aging_steps
        last_step = 0
        for step in [*served_steps, 121]:
            bound = last_step + overtaken_steps + len(streams)
            assert step <= bound or (step == 121 and bound > 120)
            last_step = step


@pytest.mark.parametrize("num_streams", [1, 2, 7])
def test_equal_priorities_take_turns(num_streams: int) -> None:
    crowd = Crowd([0] * num_streams, aging_steps=8)
    crowd.run(5 * num_streams, [BUDGET + 1] * num_streams)
    for index, served_steps in enumerate(crowd.served_steps):
        assert served_steps == list(range(1 + index, 1 + 5 * num_streams, num_streams))


def test_the_bound_is_reached() -> None:
    """Three urgent streams and a patient one, one gang a step."""
    crowd = Crowd([0, 0, 0, 2], aging_steps=5)
    crowd.run(60, [BUDGET] * 4)
    first, second = crowd.served_steps[3][:2]
    assert first == 0 + 2 * 5 + 4 - 1
    assert second - first <= 2 * 5 + 4
