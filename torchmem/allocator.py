"""Make large CPU tensors cheap: keep freed memory and back it with huge pages. A leaf; import before torch.

By default every tensor above 32 MiB is fresh memory from the kernel, zeroed page by page on first touch. On the 2-core
virtual machines we build for, that made `x * 2` on 134 MB take 64 ms instead of 8 (benchmarks/dreamer_update.py).
"""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_memory() -> bool:
    """Tune this process; True where it took effect. A user's own THP_MEM_ALLOC_ENABLE=0 switches it off.

    Must run before torch allocates: torch reads the variable once, at its first allocation.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # c10/core/alignment: madvise(MADV_HUGEPAGE) from 2 MiB on
    if os.environ["THP_MEM_ALLOC_ENABLE"] == "0" or sys.platform != "linux":
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        # 2^31 - 1 is the largest int: never give memory back, and take none by mmap that would be given back.
        return bool(libc.mallopt(M_MMAP_MAX, 0)) and bool(libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError):  # not glibc (musl, say): slower, nothing else
        return False
