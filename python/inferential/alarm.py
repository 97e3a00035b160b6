"""One alarm on an event loop, precise to some tens of microseconds where the system has a descriptor for it.

asyncio's own timers fire up to two milliseconds late: epoll counts in whole ones, rounded up. Where calls of 20 ms follow one another
without a gap that is what a deadline fails by.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("s", ctypes.c_long), ("ns", ctypes.c_long))


class _Times(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """Calls `ring` on the loop at the moment it was last set to, once. Belongs to the loop's thread; created on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._handle: asyncio.TimerHandle | None = None
        self._fd = -1
        self._set: Any = None
        self.at: float | None = None
        """When it rings, in the loop's time (monotonic seconds); None: not set."""
        if sys.platform == "linux":
            # A C library without it, a loop that takes no descriptors: then the loop's own timers do.
            with contextlib.suppress(AttributeError, OSError, NotImplementedError):
                self._open()

    def _open(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._set = libc.timerfd_settime
        fd = libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        try:
            self._loop.add_reader(fd, self._readable)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self._times = _Times()
        self._pointer = ctypes.byref(self._times)

    def set(self, at: float) -> None:
        """Rings then and not when it would have; at once where that is past."""
        self.at = at
        if self._fd < 0:
            if self._handle is not None:
                self._handle.cancel()
            self._handle = self._loop.call_at(at, self._rings)
            return
        ns = max(1, int(at * 1e9))  # 0 would be never
        value = self._times.value
        value.s, value.ns = divmod(ns, 1_000_000_000)
        self._set(self._fd, _ABSOLUTE, self._pointer, None)

    def close(self) -> None:
        """It rings no more. May be called twice."""
        self.at = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _readable(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # it was set anew meanwhile
            return
        self._rings()

    def _rings(self) -> None:
        self.at = None
        self._ring()
