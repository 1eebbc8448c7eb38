"""Settings of the process that decide how fast tensors come and go on the host."""

import ctypes
import sys


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of any size instead of giving them back to the system.

    Every operation of an eager step allocates a megabyte or so; fetching that from the system anew
    costs a page fault per 4 KiB, which in a small virtual machine can take longer than the
    operation itself. Does nothing where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)
