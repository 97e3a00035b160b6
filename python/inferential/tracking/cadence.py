"""How often a client sends: a moving average of its intervals, and when its next observation is due."""

from __future__ import annotations

UNKNOWN = float("inf")
_GRACE_S = 0.00025  # a message has to be read before it has arrived


class Cadence:
    """Of one client (and slot) at one model. Times are monotonic seconds."""

    __slots__ = ("asked_s", "due_at", "interval_s", "jitter_s", "last_arrival")

    def __init__(self) -> None:
        self.interval_s = 0.0
        """0 until two observations have arrived."""
        self.jitter_s = 0.0
        """Moving average of how far intervals are from the average one."""
        self.last_arrival = -1.0
        self.due_at = UNKNOWN
        """By when the next observation is expected: average interval plus jitter after the last, and a little."""
        self.asked_s = 0.0
        """By how much it was asked to send later, once, and has not yet."""

    def ask(self, shift_s: float) -> None:
        """Its client is asked to delay an observation by this much: the longer interval will say nothing of its cadence."""
        self.asked_s = shift_s
        self.due_at = UNKNOWN

    def arrived(self, now: float, alpha: float) -> float:
        """Counts an observation and returns by how many seconds it was overdue.

        The answer rests on what was learned before this observation: asked afterwards the clock would have been reset by it, and
        nobody would ever be overdue.
        """
        last = self.last_arrival
        self.last_arrival = now
        if last < 0.0:
            return 0.0
        interval = now - last
        learned = self.interval_s
        if learned <= 0.0:
            self.interval_s = interval
            self.due_at = now + interval + _GRACE_S
            return 0.0
        if self.asked_s and interval - learned > 0.5 * self.asked_s:
            interval -= self.asked_s
            self.asked_s = 0.0
        late = interval - learned
        learned += alpha * late
        self.interval_s = learned
        jitter = self.jitter_s
        jitter += alpha * ((late if late > 0.0 else -late) - jitter)
        self.jitter_s = jitter
        self.due_at = now + learned + jitter + _GRACE_S
        return late if late > 0.0 else 0.0
