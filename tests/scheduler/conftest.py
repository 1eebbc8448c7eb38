"""Builders that the scheduler's tests share."""

from collections.abc import Callable

import pytest

from qvg_engine.block_manager.manager import BlockManager
from qvg_engine.scheduler.config import SchedulerConfig
from qvg_engine.scheduler.core import Scheduler
from qvg_engine.scheduler.needs import Needs
from qvg_engine.scheduler.unit import CommitIntent, PassKind, PassUnit

PAGE_SIZE = 4
NUM_PAGES = 20

MakeScheduler = Callable[..., tuple[Scheduler, BlockManager]]


@pytest.fixture
def make_scheduler() -> MakeScheduler:
    """Builds a scheduler over 20 pages of 4 tokens, with 3 decoder slots and 100 text rows."""

    def make(
        *, max_streams: int = 8, max_batch_tokens: int = 100, aging_steps: int = 10
    ) -> tuple[Scheduler, BlockManager]:
        manager = BlockManager(num_pages=NUM_PAGES, page_size=PAGE_SIZE)
        config = SchedulerConfig(
            max_streams=max_streams, max_batch_tokens=max_batch_tokens, aging_steps=aging_steps
        )
        capacity = Needs(pages=NUM_PAGES, decoder_slots=3, text_rows=100)
        return Scheduler(config, block_manager=manager, capacity=capacity), manager

    return make


@pytest.fixture
def denoise() -> Callable[..., PassUnit]:
    """Builds a denoising pass."""

    def make(num_tokens: int = 12, *, branch: int = 0) -> PassUnit:
        return PassUnit(branch=branch, kind=PassKind.DENOISE, num_tokens=num_tokens)

    return make


@pytest.fixture
def commit() -> Callable[..., PassUnit]:
    """Builds a commit pass of the first of `branches`."""

    def make(
        num_tokens: int = 12,
        *,
        branches: tuple[int, ...] = (0,),
        at_token: int | None = None,
        free_first: bool = False,
    ) -> PassUnit:
        intent = CommitIntent(
            branches=branches, num_tokens=num_tokens, at_token=at_token, free_first=free_first
        )
        return PassUnit(
            branch=branches[0], kind=PassKind.COMMIT, num_tokens=num_tokens, commit=intent
        )

    return make
