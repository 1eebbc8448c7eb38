"""After the warm-up nothing is compiled any more."""

import subprocess
import sys

WORKLOAD = """
import numpy as np
from numba.core.dispatcher import Dispatcher
from qvg_engine.block_manager import (
    block_table, manager, page_count, page_entries, page_pool, table_loops, warm_up
)

modules = (page_count, page_entries, page_pool, table_loops)
loops = {
    f"{module.__name__}.{name}": loop
    for module in modules
    for name, loop in vars(module).items()
    if isinstance(loop, Dispatcher)
}

def compiled():
    return {name: len(loop.nopython_signatures) for name, loop in loops.items()}

warm_up.warm_up()
before = compiled()
assert sum(count > 0 for count in before.values()) >= 13

pages = manager.BlockManager(num_pages=500, page_size=64)
pages.open_owner("a", 400)
first = pages.open_branch("a")
second = pages.open_branch("a")
pages.read_table(first).packed, pages.read_table(first).num_tokens
for _ in range(9):
    pages.publish(pages.begin_commit([first, second], 192))
third = pages.fork_branch(second)
pages.publish(pages.begin_commit((second, third), np.int64(100), at_token=300))
pages.publish(pages.begin_commit([first], 100, at_token=300, free_first=True))
pages.rollback(pages.begin_commit([first], 100))
for branch in (first, second, third):
    pages.evict(branch, 70, 80)
    pages.evict(branch, 0, 128)
for upto in (None, 0, 77, 390):
    pages.read_table(third, upto).packed, pages.read_table(third, upto).num_tokens
pages.num_live_tokens(), pages.check_integrity()
pages.close_branch(first), pages.close_owner("a")
page_count.peak_pages([192] * 9, page_size=64)
page_count.peak_pages(np.full(9, 192, dtype=np.int32), page_size=64, window_tokens=500)

after = compiled()
late = [name for name in before if after[name] != before[name]]
assert not late, f"compiled after the warm-up: {late}"
"""


def test_nothing_is_compiled_after_the_warm_up() -> None:
    result = subprocess.run(
        [sys.executable, "-c", WORKLOAD], capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr
