"""The engine: decides what is queued, refused, dispatched and answered. No I/O, no clock: `now` is an argument everywhere.

`now` is monotonic seconds and never goes back. Not thread-safe: one engine belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from inferential.config.schema import InferentialConfig
from inferential.scheduling.request import Call, CallError, CallResult, Outcome, Replica, Request


class MetricsSink(Protocol):
    """Where the engine reports numbers (metrics.collector in the server, anything in a simulation)."""

    def record(self, name: str, value: float, model: str | None = None, client: str | None = None) -> None:
        """One point of a metric."""


class Engine:
    """See the module. After every input the driver takes `take_calls` and `take_outcomes` and asks `next_wakeup`."""

    def __init__(self, config: InferentialConfig, models: Sequence[str], metrics: MetricsSink) -> None: ...

    # replicas
    def replica_up(self, replica: Replica, now: float) -> None: ...
    def replica_down(self, model: str, replica_id: str, reason: str, now: float, *, drained: bool = False) -> None: ...

    # clients
    def submit(self, request: Request, now: float) -> None: ...
    def cancel(self, connection: bytes, request_id: int, now: float) -> bool: ...
    def disconnect(self, connection: bytes, now: float) -> None: ...

    # results
    def complete(self, call_id: int, result: CallResult, now: float) -> None: ...
    def fail(self, call_id: int, error: CallError, now: float) -> None: ...

    # time
    def advance(self, now: float) -> None: ...
    def next_wakeup(self) -> float | None: ...

    # effects since the last time they were taken
    def take_calls(self) -> list[Call]: ...
    def take_outcomes(self) -> list[Outcome]: ...
    def take_abandoned(self) -> list[Call]: ...

    # life cycle
    def drain(self, now: float) -> None:
        """From now on submissions end SHUTTING_DOWN; what was accepted goes on."""

    def abort(self, now: float) -> None:
        """Everything left ends SHUTTING_DOWN."""

    @property
    def pending(self) -> int:
        """Requests without an outcome."""
        ...
