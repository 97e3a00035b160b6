"""How deep the machine's processors may sleep while requests come (docs/adr/0008-processors-kept-awake.md)."""

from __future__ import annotations

import asyncio
import os
import struct

from inferential.errors import ConfigError

DEVICE = "/dev/cpu_dma_latency"
"""Linux's PM QoS: whoever has it open and has written a 32-bit number limits the wakeup latency to so many microseconds."""
HOLD_S = 1.0
"""How long the limit outlasts the last request. Setting it wakes every processor, so it is not for each request."""

_NO_LIMIT = 2**31 - 1  # PM_QOS_CPU_LATENCY_DEFAULT_VALUE


class CpuLatency:
    """Limits the wakeup latency of all processors of this machine while there are requests, and for HOLD_S after.

    Belongs to the loop's thread.

    Args:
        limit_us: the most that a processor may take to wake up, in microseconds; 0: none sleeps.
        loop: for the timer.

    Raises:
        ConfigError: the device cannot be opened.
    """

    def __init__(self, limit_us: int, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._fd = os.open(DEVICE, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as e:
            raise ConfigError(
                f"cpu.max_wakeup_latency_us: cannot open {DEVICE} for writing ({e.strerror}); it is Linux's, and root's unless a udev "
                f'rule like KERNEL=="cpu_dma_latency", GROUP="robots", MODE="0660" says otherwise; without it leave the setting out'
            ) from e
        self._limit_us = limit_us
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._used = False  # since the timer was set

    def used(self) -> None:
        """A request came."""
        self._used = True
        if self._timer is None:
            self._write(self._limit_us)
            self._watch()

    def close(self) -> None:
        """Ends the limit. May be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _watch(self) -> None:
        self._used = False
        self._timer = self._loop.call_later(HOLD_S, self._look)

    def _look(self) -> None:
        if self._used:
            self._watch()
        else:
            self._timer = None
            self._write(_NO_LIMIT)

    def _write(self, limit_us: int) -> None:
        os.write(self._fd, struct.pack("=i", limit_us))
