import itertools
from collections.abc import Callable

import pytest

from qvg_engine.block_manager.manager import BlockManager
from qvg_engine.errors import OutOfPagesError, RequestError
from qvg_engine.scheduler.core import Scheduler
from qvg_engine.scheduler.needs import Needs
from qvg_engine.scheduler.unit import PassUnit

MakeScheduler = Callable[..., tuple[Scheduler, BlockManager]]
MakePass = Callable[..., PassUnit]


def admit(scheduler: Scheduler, *request_ids: str, num_pages: int = 5) -> None:
    """Add streams of two branches and admit them in a step of its own."""
    for request_id in request_ids:
        scheduler.add(request_id, Needs(pages=num_pages), num_branches=2)
    plan = scheduler.schedule()
    assert plan.admitted == request_ids
    scheduler.complete(plan)


def pass_step(scheduler: Scheduler) -> tuple[str, ...]:
    """Complete one step; the streams that ran."""
    plan = scheduler.schedule()
    scheduler.complete(plan)
    scheduler.check_integrity()
    return plan.request_ids


def num_tokens(scheduler: Scheduler, manager: BlockManager, request_id: str) -> list[int]:
    """Visible tokens of each branch."""
    ids = scheduler.branch_ids(request_id)
    return [manager.read_table(branch_id).num_tokens for branch_id in ids]


def test_a_plan_says_what_runs(
    make_scheduler: MakeScheduler, denoise: MakePass, commit: MakePass
) -> None:
    scheduler, _ = make_scheduler()
    admit(scheduler, "a", "b")
    scheduler.offer("a", (denoise(7, branch=0), denoise(7, branch=1)))
    scheduler.offer("b", (commit(9, branches=(1, 0)),))
    plan = scheduler.schedule()
    assert plan.step_index == 1
    assert plan.request_ids == ("a", "b")
    assert plan.num_tokens == 23
    first, second, third = plan.units
    assert (first.branch_id, second.branch_id) == scheduler.branch_ids("a")
    assert first.commit is None
    assert third.branch_id == scheduler.branch_ids("b")[1]
    assert third.commit is not None
    assert third.commit.num_tokens == 9
    assert len(third.commit.page_ids) == 3
    with pytest.raises(AttributeError):
        plan.step_index = 3  # type: ignore[misc]


def test_a_stream_is_ready_only_while_it_offers(
    make_scheduler: MakeScheduler, denoise: MakePass
) -> None:
    scheduler, _ = make_scheduler()
    admit(scheduler, "a")
    assert pass_step(scheduler) == ()
    scheduler.offer("a", (denoise(),))
    assert pass_step(scheduler) == ("a",)
    assert pass_step(scheduler) == ()
    scheduler.offer("a", (denoise(),))
    scheduler.offer("a", None)
    assert pass_step(scheduler) == ()


def test_a_waiting_stream_runs_in_the_step_that_admits_it(
    make_scheduler: MakeScheduler, denoise: MakePass
) -> None:
    scheduler, _ = make_scheduler()
    scheduler.add("a", Needs(pages=1), num_branches=1)
    scheduler.offer("a", (denoise(),))
    plan = scheduler.schedule()
    assert plan.admitted == plan.request_ids == ("a",)


def test_a_gang_runs_whole_or_not_at_all(make_scheduler: MakeScheduler, denoise: MakePass) -> None:
    scheduler, _ = make_scheduler(max_batch_tokens=35)
    admit(scheduler, "a", "b", "c")
    scheduler.offer("a", (denoise(12),))
    scheduler.offer("b", (denoise(12), denoise(12, branch=1)))
    scheduler.offer("c", (denoise(23),))
    assert pass_step(scheduler) == ("a", "c")
    assert pass_step(scheduler) == ("b",)


def test_a_gang_above_the_budget_runs_alone(
    make_scheduler: MakeScheduler, denoise: MakePass
) -> None:
    scheduler, _ = make_scheduler(max_batch_tokens=20)
    admit(scheduler, "a", "large", "c")
    scheduler.offer("a", (denoise(10),))
    scheduler.offer("large", (denoise(11), denoise(11, branch=1)))
    scheduler.offer("c", (denoise(10),))
    assert pass_step(scheduler) == ("a", "c")
    scheduler.offer("a", (denoise(10),))
    scheduler.offer("c", (denoise(10),))
    assert pass_step(scheduler) == ("large",)
    assert pass_step(scheduler) == ("a", "c")


def test_least_recently_served_goes_first(make_scheduler: MakeScheduler, denoise: MakePass) -> None:
    scheduler, _ = make_scheduler(max_batch_tokens=24)
    admit(scheduler, "a", "b", "c")
    served = []
    for _ in range(6):
        for request_id in "abc":
            scheduler.offer(request_id, (denoise(12),))
        served.append("".join(pass_step(scheduler)))
    assert served == ["ab", "ca", "bc", "ab", "ca", "bc"]


@pytest.mark.parametrize("priority", [1, 3])
def test_a_low_priority_is_served_once_its_age_makes_up_for_it(
    make_scheduler: MakeScheduler, denoise: MakePass, priority: int
) -> None:
    scheduler, _ = make_scheduler(max_batch_tokens=12, aging_steps=4)
    scheduler.add("low", Needs(), num_branches=1, priority=priority)
    scheduler.add("high", Needs(), num_branches=1)
    low_steps = []
    for step in range(5 * 4 * priority):
        scheduler.offer("low", (denoise(12),))
        scheduler.offer("high", (denoise(12),))
        if pass_step(scheduler) == ("low",):
            low_steps.append(step)
    gaps = [after - before for before, after in itertools.pairwise(low_steps)]
    assert len(gaps) >= 2
    assert set(gaps) == {4 * priority + 1}


def test_complete_publishes(make_scheduler: MakeScheduler, commit: MakePass) -> None:
    scheduler, manager = make_scheduler()
    admit(scheduler, "a")
    scheduler.offer("a", (commit(9, branches=(0, 1)),))
    plan = scheduler.schedule()
    assert num_tokens(scheduler, manager, "a") == [0, 0]
    scheduler.complete(plan)
    assert num_tokens(scheduler, manager, "a") == [9, 9]
    assert manager.num_used == 3
    scheduler.offer("a", (commit(5, branches=(1,), at_token=4),))
    assert pass_step(scheduler) == ("a",)
    assert num_tokens(scheduler, manager, "a") == [9, 9]
    assert manager.num_used == 5


def test_complete_rolls_back_only_what_failed(
    make_scheduler: MakeScheduler, commit: MakePass
) -> None:
    scheduler, manager = make_scheduler()
    admit(scheduler, "a", "b")
    for request_id in "ab":
        scheduler.offer(request_id, (commit(9),))
    scheduler.complete(scheduler.schedule(), failed={"a"})
    scheduler.check_integrity()
    assert num_tokens(scheduler, manager, "a") == [0, 0]
    assert num_tokens(scheduler, manager, "b") == [9, 0]
    assert manager.num_used == 3
    assert pass_step(scheduler) == ()


def test_rollback_leaves_all_as_before(
    make_scheduler: MakeScheduler, denoise: MakePass, commit: MakePass
) -> None:
    scheduler, manager = make_scheduler(max_batch_tokens=12)
    admit(scheduler, "a", "b")
    scheduler.offer("a", (commit(9),))
    scheduler.offer("b", (denoise(),))
    plan = scheduler.schedule()
    scheduler.rollback(plan)
    scheduler.check_integrity()
    assert manager.num_used == 0
    again = scheduler.schedule()
    assert again.step_index == plan.step_index
    assert again.request_ids == ("a",)
    scheduler.complete(again)
    assert num_tokens(scheduler, manager, "a") == [9, 0]


def test_rollback_keeps_dropped_what_was_freed_first(
    make_scheduler: MakeScheduler, commit: MakePass
) -> None:
    scheduler, manager = make_scheduler()
    admit(scheduler, "a")
    scheduler.offer("a", (commit(20),))
    pass_step(scheduler)
    scheduler.offer("a", (commit(16, at_token=4, free_first=True),))
    scheduler.rollback(scheduler.schedule())
    scheduler.check_integrity()
    assert num_tokens(scheduler, manager, "a") == [4, 0]
    assert pass_step(scheduler) == ("a",)
    assert num_tokens(scheduler, manager, "a") == [20, 0]


def test_a_commit_beyond_the_reservation_changes_nothing(
    make_scheduler: MakeScheduler, commit: MakePass
) -> None:
    scheduler, manager = make_scheduler()
    admit(scheduler, "a", "greedy")
    scheduler.add("late", Needs(), num_branches=1)
    scheduler.offer("a", (commit(20),))
    scheduler.offer("greedy", (commit(21),))
    for _ in range(2):
        with pytest.raises(OutOfPagesError):
            scheduler.schedule()
        scheduler.check_integrity()
        assert manager.num_used == 0
        assert scheduler.num_waiting == 1
    scheduler.finish("greedy")
    assert pass_step(scheduler) == ("a",)
    assert num_tokens(scheduler, manager, "a") == [20, 0]


def test_evict_frees_pages_of_one_branch(make_scheduler: MakeScheduler, commit: MakePass) -> None:
    scheduler, manager = make_scheduler()
    admit(scheduler, "a")
    scheduler.offer("a", (commit(20),))
    pass_step(scheduler)
    assert scheduler.evict("a", 0, sink_tokens=4, window_start=12) == 2
    assert num_tokens(scheduler, manager, "a") == [12, 0]
    scheduler.check_integrity()


def test_finish_gives_back_everything(make_scheduler: MakeScheduler, commit: MakePass) -> None:
    scheduler, manager = make_scheduler(max_streams=2)
    for request_id in "abc":
        scheduler.add(request_id, Needs(pages=5, decoder_slots=1), num_branches=2)
        scheduler.offer(request_id, (commit(20),))
    assert pass_step(scheduler) == ("a", "b")
    assert manager.num_used == 10
    assert scheduler.finish("c") == 0
    assert scheduler.finish("a") == 5
    scheduler.check_integrity()
    assert (scheduler.num_waiting, scheduler.num_running) == (0, 1)
    assert scheduler.finish("b") == 5
    assert (manager.num_used, manager.num_unreserved) == (0, 20)
    assert not scheduler.has_work


def test_unknown_ids_are_named(make_scheduler: MakeScheduler) -> None:
    scheduler, _ = make_scheduler()
    with pytest.raises(RequestError, match="no request 'a'"):
        scheduler.finish("a")
    with pytest.raises(RequestError, match="no request 'a'"):
        scheduler.offer("a", None)


def test_calls_out_of_turn_are_our_bugs(make_scheduler: MakeScheduler, denoise: MakePass) -> None:
    scheduler, _ = make_scheduler()
    admit(scheduler, "a", "b")
    scheduler.offer("a", (denoise(),))
    plan = scheduler.schedule()
    with pytest.raises(AssertionError, match="plan at hand"):
        scheduler.schedule()
    with pytest.raises(AssertionError, match="plan at hand"):
        scheduler.finish("b")
    with pytest.raises(AssertionError, match="plan at hand"):
        scheduler.evict("b", 0, sink_tokens=0, window_start=1)
    with pytest.raises(AssertionError, match="runs in the plan"):
        scheduler.offer("a", None)
    with pytest.raises(AssertionError, match="did not run"):
        scheduler.complete(plan, failed={"b"})
    scheduler.add("c", Needs(), num_branches=1)
    scheduler.offer("b", (denoise(),))
    scheduler.complete(plan)
    with pytest.raises(AssertionError, match="not the plan at hand"):
        scheduler.complete(plan)
    assert pass_step(scheduler) == ("b",)


def test_stats_count_completed_steps_that_ran_something(
    make_scheduler: MakeScheduler, denoise: MakePass, commit: MakePass
) -> None:
    scheduler, _ = make_scheduler(max_streams=2)
    admit(scheduler, "a", "b")
    scheduler.add("c", Needs(), num_branches=1)
    assert scheduler.stats().mean_streams_per_step == 0.0
    scheduler.offer("a", (denoise(12), denoise(12, branch=1)))
    scheduler.offer("b", (commit(9),))
    pass_step(scheduler)
    scheduler.offer("b", (denoise(12),))
    scheduler.rollback(scheduler.schedule())
    pass_step(scheduler)
    pass_step(scheduler)
    stats = scheduler.stats()
    assert (stats.num_waiting, stats.num_running) == (1, 2)
    assert (stats.num_pages_used, stats.num_pages_free, stats.num_pages_reserved) == (3, 17, 10)
    assert (stats.num_steps, stats.num_passes_last_step) == (2, 1)
    assert stats.mean_streams_per_step == 1.5
    assert stats.mean_passes_per_step == 2.0
    assert stats.mean_tokens_per_step == 22.5
