from collections.abc import Callable

import pytest

from qvg_engine.block_manager.manager import BlockManager
from qvg_engine.errors import CapacityError, RequestError
from qvg_engine.scheduler.core import MAX_PRIORITY, Scheduler
from qvg_engine.scheduler.needs import Needs
from qvg_engine.scheduler.unit import PassUnit

MakeScheduler = Callable[..., tuple[Scheduler, BlockManager]]


def pass_step(scheduler: Scheduler) -> tuple[str, ...]:
    """Complete one step; the streams that it admitted."""
    plan = scheduler.schedule()
    scheduler.complete(plan)
    scheduler.check_integrity()
    return plan.admitted


@pytest.mark.parametrize(
    ("needs", "shortfall"),
    [
        (Needs(pages=21), "needs 21 pages of 20;"),
        (Needs(decoder_slots=4), "needs 4 decoder slots of 3;"),
        (Needs(pages=21, text_rows=1_000), "needs 21 pages of 20, 1,000 text rows of 100;"),
    ],
)
def test_what_can_never_fit_is_refused_with_numbers(
    make_scheduler: MakeScheduler, needs: Needs, shortfall: str
) -> None:
    scheduler, _ = make_scheduler()
    with pytest.raises(CapacityError) as caught:
        scheduler.add("huge", needs, num_branches=1)
    message = str(caught.value)
    with pytest.raises(CapacityError) as asked_before:
        scheduler.check_request("huge", needs, priority=0)
    assert str(asked_before.value) == message
    assert "'huge' can never fit" in message
    assert shortfall in message
    assert "up to 20 pages, 3 decoder slots, 100 text rows (80 tokens of KV-cache)" in message
    assert "\n" not in message
    assert not scheduler.has_work


def test_asking_adds_nothing(make_scheduler: MakeScheduler) -> None:
    scheduler, _ = make_scheduler()
    scheduler.check_request("a", Needs(pages=20), priority=0)
    assert not scheduler.has_work


def test_what_fits_exactly_is_admitted(make_scheduler: MakeScheduler) -> None:
    scheduler, manager = make_scheduler()
    needs = Needs(pages=20, decoder_slots=3, text_rows=100)
    scheduler.add("a", needs, num_branches=2)
    assert pass_step(scheduler) == ("a",)
    assert len(set(scheduler.branch_ids("a"))) == 2
    assert manager.num_unreserved == 0


def test_a_waiting_stream_holds_nothing(make_scheduler: MakeScheduler) -> None:
    scheduler, manager = make_scheduler()
    scheduler.add("a", Needs(pages=20), num_branches=3)
    assert scheduler.branch_ids("a") == ()
    assert manager.num_unreserved == 20
    assert (scheduler.num_waiting, scheduler.num_running) == (1, 0)


@pytest.mark.parametrize(
    "needs",
    [Needs(pages=11), Needs(decoder_slots=2), Needs(text_rows=51)],
    ids=["pages", "decoder slots", "text rows"],
)
def test_every_resource_is_reserved(make_scheduler: MakeScheduler, needs: Needs) -> None:
    scheduler, _ = make_scheduler()
    scheduler.add("a", needs, num_branches=1)
    scheduler.add("b", needs, num_branches=1)
    assert pass_step(scheduler) == ("a",)
    assert pass_step(scheduler) == ()
    scheduler.finish("a")
    assert pass_step(scheduler) == ("b",)


def test_max_streams_bounds_the_running(make_scheduler: MakeScheduler) -> None:
    scheduler, _ = make_scheduler(max_streams=2)
    for request_id in "abc":
        scheduler.add(request_id, Needs(), num_branches=1)
    assert pass_step(scheduler) == ("a", "b")
    scheduler.finish("b")
    assert pass_step(scheduler) == ("c",)


def test_order_is_priority_then_arrival(make_scheduler: MakeScheduler) -> None:
    scheduler, _ = make_scheduler()
    for request_id, priority in [("a", 1), ("b", 0), ("c", 1), ("d", -1), ("e", 0)]:
        scheduler.add(request_id, Needs(), num_branches=1, priority=priority)
    assert pass_step(scheduler) == ("d", "b", "e", "a", "c")


def test_nobody_slips_past_a_stream_that_does_not_fit_yet(make_scheduler: MakeScheduler) -> None:
    scheduler, _ = make_scheduler()
    for request_id, num_pages in [("a", 10), ("large", 20), ("small", 1)]:
        scheduler.add(request_id, Needs(pages=num_pages), num_branches=1)
    assert pass_step(scheduler) == ("a",)
    assert pass_step(scheduler) == ()
    scheduler.finish("a")
    assert pass_step(scheduler) == ("large",)
    scheduler.finish("large")
    assert pass_step(scheduler) == ("small",)


@pytest.mark.parametrize(("wait_steps", "first"), [(29, "new"), (30, "old")])
def test_aging_steps_make_up_for_a_unit_of_priority(
    make_scheduler: MakeScheduler, wait_steps: int, first: str
) -> None:
    scheduler, _ = make_scheduler(max_streams=1, aging_steps=10)
    scheduler.add("running", Needs(), num_branches=1, priority=-MAX_PRIORITY)
    scheduler.add("old", Needs(), num_branches=1, priority=3)
    for _ in range(wait_steps):
        pass_step(scheduler)
    scheduler.add("new", Needs(), num_branches=1, priority=0)
    scheduler.finish("running")
    assert pass_step(scheduler) == (first,)


@pytest.mark.parametrize("priority", [1, 4])
def test_a_low_priority_is_admitted_under_a_stream_of_higher_ones(
    make_scheduler: MakeScheduler, priority: int
) -> None:
    """Every step brings a stream of priority 0, and every stream runs for two steps."""
    aging_steps, lifetime = 5, 2
    scheduler, _ = make_scheduler(max_streams=2, aging_steps=aging_steps)
    scheduler.add("patient", Needs(pages=20), num_branches=1, priority=priority)
    num_ahead = priority * aging_steps
    end_steps: dict[str, int] = {}
    for step in range(1 + (num_ahead + 1) * lifetime):
        scheduler.add(f"hasty-{step}", Needs(pages=10), num_branches=1)
        for request_id in pass_step(scheduler):
            if request_id == "patient":
                assert sorted(end_steps) == sorted(f"hasty-{i}" for i in range(num_ahead))
                return
            end_steps[request_id] = step + lifetime
        for request_id, end_step in end_steps.items():
            if end_step == step + 1:
                scheduler.finish(request_id)
    pytest.fail(f"not admitted after {step} steps")


def test_an_id_in_use_is_refused_until_it_ends(make_scheduler: MakeScheduler) -> None:
    scheduler, _ = make_scheduler()
    scheduler.add("a", Needs(), num_branches=1)
    with pytest.raises(RequestError, match="request_id 'a' is in use"):
        scheduler.add("a", Needs(), num_branches=1)
    scheduler.finish("a")
    scheduler.add("a", Needs(), num_branches=1)
    assert pass_step(scheduler) == ("a",)


@pytest.mark.parametrize("priority", [MAX_PRIORITY + 1, -MAX_PRIORITY - 1])
def test_priority_has_a_range(make_scheduler: MakeScheduler, priority: int) -> None:
    scheduler, _ = make_scheduler()
    with pytest.raises(RequestError, match=f"priority of 'a' is {priority}; give a number from"):
        scheduler.add("a", Needs(), num_branches=1, priority=priority)
    assert not scheduler.has_work


def test_rollback_takes_back_admissions(
    make_scheduler: MakeScheduler, denoise: Callable[..., PassUnit]
) -> None:
    scheduler, manager = make_scheduler(max_streams=2)
    for request_id in "abc":
        scheduler.add(request_id, Needs(pages=5), num_branches=1)
        scheduler.offer(request_id, (denoise(),))
    plan = scheduler.schedule()
    assert plan.admitted == ("a", "b")
    scheduler.rollback(plan)
    scheduler.check_integrity()
    assert (scheduler.num_waiting, scheduler.num_running) == (3, 0)
    assert manager.num_unreserved == 20
    again = scheduler.schedule()
    assert (again.admitted, again.step_index) == (plan.admitted, plan.step_index)
    assert [scheduled.unit for scheduled in again.units] == [denoise(), denoise()]
