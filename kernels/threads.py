"""Heads on several threads of the CPU."""

import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

# Multiply-adds that take a thread a millisecond or so, ten times as long as to start it.
_LEAST_WORK = 1 << 26

_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


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

    Uses as many threads as torch does, or fewer if there is little work: torch's own, where they
    can be had. After each of its operators torch's threads wait in a loop for more, for
    milliseconds, and any other thread has to share the cores with them.
    """
    num_threads = min(torch.get_num_threads(), num_heads, work // _LEAST_WORK)
    if num_threads < 2:
        task(0, num_heads)
        return
    # Head by head otherwise: whoever is done takes the next.
    num_ranges = num_threads if is_even else num_heads
    ends = [part * num_heads // num_ranges for part in range(num_ranges + 1)]
    ranges = pairwise(ends)
    run = _torch_threads()
    if run is None:
        _run_in_pool(task, ranges, num_threads)
    else:
        _run_in_torch(run, task, ranges, num_threads)


def _run_in_pool(
    task: Callable[[int, int], None], ranges: Iterator[tuple[int, int]], num_threads: int
) -> None:
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in pool.map(lambda heads: task(*heads), ranges):
            pass


def _run_in_torch(
    run: Any,
    task: Callable[[int, int], None],
    ranges: Iterator[tuple[int, int]],
    num_threads: int,
) -> None:
    failures: list[BaseException] = []

    def work(_: object) -> None:
        try:
            # Python's lock is held while the next range is taken.
            for heads in ranges:
                task(*heads)
        except BaseException as failure:
            failures.append(failure)

    run(_BODY(work), None, num_threads, 0)
    if failures:
        raise failures[0]


@cache
def _torch_threads() -> Any | None:
    """What runs a function in the threads of torch's OpenMP: GNU's entry, which others have too.

    None where torch is built without, or with one that has no such entry.
    """
    for library in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        try:
            # Looked up in the libraries that torch was linked with; it is long loaded.
            run = ctypes.CDLL(str(library)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        run.argtypes = [_BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        run.restype = None
        return run
    return None
