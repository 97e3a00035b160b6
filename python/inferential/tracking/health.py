"""How models and replicas are doing, as plain data."""

from __future__ import annotations

from typing import Any

_ALPHA = 0.1


class Health:
    """Latency, error rate and last error of one model or replica."""

    __slots__ = ("calls", "error_rate", "errors", "last_error", "last_error_at", "latency_ms")

    def __init__(self) -> None:
        self.calls = 0
        self.errors = 0
        self.error_rate = 0.0
        """Moving average over calls of the share of their requests that failed."""
        self.latency_ms = 0.0
        """Moving average of a call's time from dispatch to answer."""
        self.last_error = ""
        self.last_error_at: float | None = None

    def succeeded(self, latency_s: float) -> None:
        """A call was answered."""
        self.calls += 1
        latency_ms = latency_s * 1e3
        self.latency_ms = (
            latency_ms if self.calls - self.errors == 1 else self.latency_ms + _ALPHA * (latency_ms - self.latency_ms)
        )
        self.error_rate -= _ALPHA * self.error_rate

    def failed(self, message: str, now: float) -> None:
        """A call failed."""
        self.calls += 1
        self.errors += 1
        self.error_rate += _ALPHA * (1.0 - self.error_rate)
        self.last_error = message
        self.last_error_at = now

    def item_failed(self, message: str, size: int, now: float) -> None:
        """One of the `size` requests of a call that was answered failed. To be told after `succeeded`."""
        self.error_rate += _ALPHA / size
        self.last_error = message
        self.last_error_at = now

    def as_dict(self) -> dict[str, Any]:
        """For people and for JSON."""
        return {
            "calls": self.calls,
            "errors": self.errors,
            "error_rate": self.error_rate,
            "latency_ms": self.latency_ms,
            "last_error": self.last_error,
            "last_error_at": self.last_error_at,
        }
