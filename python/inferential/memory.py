"""What a process that serves tells the C library's allocator (docs/adr/0007-freed-memory-is-kept.md)."""

from __future__ import annotations

import ctypes
import os
import sys

KEPT_BYTES = 64 * 1024 * 1024
"""What a heap keeps of the memory freed at its end; each thread that allocates may have a heap."""
HEAP_BYTES = 32 * 1024 * 1024
"""Up to here, the most that glibc takes, memory is from a heap and not mapped for itself."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)


def keep_freed_memory() -> bool:
    """Has the C library keep memory that was freed for the next message, instead of giving it back to the system each time.

    For processes that are the server's or the replica's own. Any thread; once is enough.

    Returns:
        Whether it does: not with a C library other than glibc, nor where the user has set one of its allocator's variables.
    """
    by_the_user = "MALLOC_TRIM_THRESHOLD_" in os.environ or "MALLOC_MMAP_THRESHOLD_" in os.environ
    if by_the_user or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    # One of them set ends glibc's own adaptation of both, so both are.
    return bool(mallopt(_MMAP_THRESHOLD, HEAP_BYTES)) and bool(mallopt(_TRIM_THRESHOLD, KEPT_BYTES))
