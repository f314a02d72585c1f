"""Keep the memory of one step for the next one."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

# From malloc.h. Larger blocks than the first bound always go back to the system when they are freed.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT, _KEPT_IN_ALL = 32 * 2**20, 256 * 2**20


@cache
def keep_freed_memory() -> None:
    """Let glibc reuse freed blocks instead of handing each megabyte back to the system.

    It would otherwise be fetched and zeroed again, page by page, for every activation of every
    step, which takes longer than the arithmetic. The process may keep up to 256 MiB that it has
    freed; its peak is the same. Nothing happens where there is no glibc.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_IN_ALL)
