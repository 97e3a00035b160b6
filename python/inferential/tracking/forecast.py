"""What is about to arrive at one model: the rate, and the next observations by their clients' cadence."""

from __future__ import annotations

import heapq
import math

from inferential.tracking.cadence import UNKNOWN, Cadence

_RATE_WINDOW_S = 0.5
_LOOK_AHEAD = 4


class ArrivalRate:
    """Arrivals per second, each counting e^(-age / 0.5 s)."""

    __slots__ = ("_at", "_rate", "_since")

    def __init__(self) -> None:
        self._rate = 0.0
        self._at = 0.0
        self._since = -1.0

    def arrived(self, now: float) -> None:
        """Counts one."""
        if self._since < 0.0:
            self._since = now
        self._rate = self._rate * math.exp((self._at - now) / _RATE_WINDOW_S) + 1.0 / _RATE_WINDOW_S
        self._at = now

    def at(self, now: float) -> float:
        """The rate as of now."""
        if self._since < 0.0:
            return 0.0
        seen = 1.0 - math.exp((self._since - now) / _RATE_WINDOW_S)
        # Young averages have not yet seen a window's worth; below a tenth of one they'd be guesses.
        return self._rate * math.exp((self._at - now) / _RATE_WINDOW_S) / max(0.1, seen)


class Forecast:
    """Expected arrivals, one for each client (and slot) whose cadence is known."""

    __slots__ = ("_due", "_kept", "_sequence")

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Cadence]] = []
        self._kept = 0
        self._sequence = 0

    def arrived(self, cadence: Cadence) -> None:
        """After an observation was counted in its cadence: the next one is expected."""
        if cadence.due_at == UNKNOWN:
            return
        self._sequence += 1
        due = self._due
        heapq.heappush(due, (cadence.due_at, self._sequence, cadence))
        if len(due) > 64 + 4 * self._kept:
            now = cadence.last_arrival
            self._due = [e for e in due if e[0] == e[2].due_at and e[0] > now]
            heapq.heapify(self._due)
            self._kept = len(self._due)

    def next(self, now: float) -> list[float]:
        """By when the next few observations are expected, in order, all after `now`; O(log n) amortised.

        One that did not come by then is not expected any more.
        """
        due = self._due
        found: list[tuple[float, int, Cadence]] = []
        while due and len(found) < _LOOK_AHEAD:
            entry = heapq.heappop(due)
            if entry[0] == entry[2].due_at and entry[0] > now:
                found.append(entry)
        for entry in found:
            heapq.heappush(due, entry)
        return [entry[0] for entry in found]
