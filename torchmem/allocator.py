"""Make large CPU tensors cheap: back them with huge pages. A leaf; import before torch.

By default every tensor above 32 MiB is fresh memory from the kernel, zeroed 4 KiB at a time on first touch. On the
2-core virtual machines we build for, that made `x * 2` on 134 MB take 64 ms; with huge pages it takes 18.
"""

from __future__ import annotations

import os

VARIABLE = "THP_MEM_ALLOC_ENABLE"  # c10/core/alignment: madvise(MADV_HUGEPAGE) from 2 MiB on


def use_huge_pages() -> None:
    """Ask torch for huge pages, unless the user has set the variable. Without effect once torch has allocated."""
    os.environ.setdefault(VARIABLE, "1")
