"""Heads on several threads of the CPU."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

# Multiply-adds that take a thread a millisecond or so, ten times as long as to start it.
_LEAST_WORK = 1 << 26


def for_heads(
    task: Callable[[int, int], None], num_heads: int, work: int, *, is_even: bool = False
) -> None:
    """Call `task(first, last)` for ranges that make up the heads [0, num_heads).

    Args:
        task: works on the heads [first, last), on nothing that another head needs, and lets go of
            Python's lock.
        work: multiply-adds of all heads together, about.
        is_even: heads take equally long, and a range of them less than each alone: one range for
            each thread.

    Uses as many threads as torch does, or fewer if there is little work. They live as long as the
    call: none waits in a loop and takes a core from torch's.
    """
    num_threads = min(torch.get_num_threads(), num_heads, work // _LEAST_WORK)
    if num_threads < 2:
        task(0, num_heads)
        return
    # Head by head otherwise: whoever is done takes the next.
    num_ranges = num_threads if is_even else num_heads
    ends = [part * num_heads // num_ranges for part in range(num_ranges + 1)]
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in pool.map(task, ends[:-1], ends[1:]):
            pass
