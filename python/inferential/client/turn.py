"""Whose turn it is to use a blocking connection."""

from __future__ import annotations

import contextlib
import operator
import threading
from collections.abc import Callable
from typing import Any

from inferential.client.core import Core
from inferential.errors import ConcurrentWaitError


class Turn:
    """Lets one thread in at a time, with `with`; a second one is told and does not wait, but for the end of a glance.

    A signal handler may raise between any two steps of Python (KeyboardInterrupt, a time-out): what takes the lock looks whether it
    did, and what gives it back is the lock's own method, before which no handler runs. What the exception has left behind is mended
    by whoever has the turn next.
    """

    __slots__ = ("_core", "_glancing", "_lock")

    def __init__(self, core: Core) -> None:
        self._lock: Any = threading.RLock()  # it knows its owner; nobody enters twice
        self._glancing: Any = threading.RLock()  # a callback may ask for the state of the link
        self._core = core

    def __enter__(self) -> None:
        self._core.check_process()
        lock = self._lock
        if lock._is_owned():
            raise ConcurrentWaitError(
                "another call on this connection is under way in this thread (this one comes from within a callback or a signal handler); "
                "call it when that one is over"
            )
        try:
            if not lock.acquire(blocking=False):
                with self._glancing:  # if it was a glance, it is over now
                    if not lock.acquire(blocking=False):
                        raise ConcurrentWaitError(
                            "another call on this connection is under way in another thread; use one connection per thread, or a lock "
                            "of your own"
                        )
            self._core.mend()
        except BaseException:
            if lock._is_owned():
                lock.release()
            raise

    __exit__ = property(operator.attrgetter("_lock.__exit__"))

    def glance(self, look: Callable[[], object]) -> None:
        """Calls `look`, which waits for nothing, unless a call is under way: for threads that only watch.

        A call that finds it in progress waits for its end: a robot must not lose an action because somebody looked.
        """
        self._core.check_process()
        if self._glancing.acquire(blocking=False):
            try:
                with contextlib.suppress(ConcurrentWaitError), self:
                    look()
            finally:
                self._glancing.release()
