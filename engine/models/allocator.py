"""What the process does with memory that tensors give back."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Keep the memory of freed tensors in the process instead of handing it back to the system.

    glibc returns every large block at once, and the next tensor of that size is mapped and zeroed page
    by page: a third of the time of decoding on a CPU. The peak stays what it was. It holds for the
    whole process, threads that are started later too; under another C library nothing happens.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_ARENA_MAX, 1)  # a thread's own arena has no room for large blocks
