"""How deep the machine's processors may sleep while there are requests (docs/adr/0008-processors-kept-awake.md)."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import struct
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from inferential.errors import ConfigError

logger = logging.getLogger("inferential.server")

DEVICE = "/dev/cpu_dma_latency"
"""Linux's PM QoS: whoever has it open and has written a 32-bit number limits the wakeup latency to so many microseconds."""
DRIVER = "/sys/devices/system/cpu/cpuidle/current_driver"
"""Who puts processors to sleep; without a driver for it Linux has one way to, and no limit changes that."""
HOLD_S = 1.0
"""How long the limit outlasts the last request. Each change wakes every processor, so it is not made for each request."""

_NO_LIMIT = 2**31 - 1  # PM_QOS_LATENCY_ANY


class CpuLatency:
    """Limits the wakeup latency of all processors of this machine while there are requests, and for HOLD_S after the last.

    Belongs to the loop's thread. The limit ends with the process at the latest, however that ends.

    Args:
        limit_us: the most that a processor may take to wake up, in microseconds; 0: none sleeps.
        loop: for the timer.
        busy: whether requests are not answered yet.
        clock: seconds of time.monotonic().

    Raises:
        ConfigError: the device cannot be opened.
    """

    def __init__(
        self,
        limit_us: int,
        loop: asyncio.AbstractEventLoop,
        busy: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            # A file object, which closes it when it is freed: what is left open holds for the whole machine.
            self._device = os.fdopen(os.open(DEVICE, os.O_WRONLY | os.O_CLOEXEC), "wb", buffering=0)
        except OSError as e:
            raise ConfigError(
                f"cpu.max_wakeup_latency_us: cannot open {DEVICE} for writing ({e.strerror}); {_hint(e)}, or leave the setting out"
            ) from e
        if _without_driver():
            logger.warning(
                "cpu.max_wakeup_latency_us changes nothing on this machine: its Linux has no cpuidle driver (%s)",
                DRIVER,
            )
        self._limit_us = limit_us
        self._loop = loop
        self._busy = busy
        self._clock = clock
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None
        _open.add(self)

    def used(self, now: float) -> None:
        """A request came."""
        self._last = now
        if self._timer is None:
            self._write(self._limit_us)
            self._timer = self._loop.call_later(HOLD_S, self._look)

    def close(self) -> None:
        """Ends the limit. May be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._write(_NO_LIMIT)
        self._device.close()

    def forked(self) -> None:
        """In a child process: the limit is its parent's and must not outlive that."""
        self._device.close()

    def _look(self) -> None:
        left_s = HOLD_S if self._busy() else self._last + HOLD_S - self._clock()
        if left_s > 0.0:
            self._timer = self._loop.call_later(left_s, self._look)
        else:
            self._timer = None
            self._write(_NO_LIMIT)

    def _write(self, limit_us: int) -> None:
        if not self._device.closed:
            self._device.write(struct.pack("=i", limit_us))


_open: weakref.WeakSet[CpuLatency] = weakref.WeakSet()


def _close_in_child() -> None:
    for each in list(_open):
        each.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _hint(e: OSError) -> str:
    if e.errno == errno.ENOENT:
        return "it is Linux's, and a container has it with --device /dev/cpu_dma_latency"
    return 'only root may, unless a udev rule like KERNEL=="cpu_dma_latency", GROUP="robots", MODE="0660" lets a group'


def _without_driver() -> bool:
    try:
        return Path(DRIVER).read_text().strip() == "none"
    except OSError:  # not mounted: nobody can tell
        return False
