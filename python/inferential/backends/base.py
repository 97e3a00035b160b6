"""What the server asks of a backend: the way to the replicas of some models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from inferential.scheduling.request import Call, CallError, CallResult, Replica


class BackendEvents(Protocol):
    """What a backend tells the server. All calls are made on the server's event loop."""

    def replica_up(self, replica: Replica) -> None:
        """A replica can take calls now. Again with the same id: its slots or batch size changed."""

    def replica_down(self, model: str, replica_id: str, reason: str, *, drained: bool = False) -> None:
        """A replica is gone. Calls that it holds are failed by the engine as retryable, unless `drained`: then it takes
        no new calls, and those it holds still finish."""

    def completed(self, call_id: int, result: CallResult) -> None:
        """A call ended. Results of calls that were given up meanwhile are ignored by the engine."""

    def completed_all(self, results: Sequence[tuple[int, CallResult]]) -> None:
        """Calls that ended, by id, reported together: what follows is decided once for all of them."""

    def failed(self, call_id: int, error: CallError) -> None:
        """A call failed as a whole."""

    def trouble(self, model: str, why: str) -> None:
        """Why a model has no replica, for people; empty when that is over."""

    def waiting(self, model: str) -> int:
        """Requests that wait for a call of this model; asked a few times a second, for autoscaling."""


class Backend(Protocol):
    """The way to the replicas. Used on the server's event loop only; no method blocks."""

    async def start(self, events: BackendEvents) -> None:
        """Begins to look for replicas; returns without waiting for any."""

    def dispatch(self, call: Call) -> None:
        """Sends a call to its replica, when the round ends at the latest. Never raises: trouble is told by `failed`."""

    def flushed(self) -> None:
        """A round of dispatching is over: what `dispatch` kept back is sent now."""

    def abandon(self, call: Call) -> None:
        """Nobody waits for this call any more; the backend may cancel it."""

    async def stop(self, timeout_s: float) -> None:
        """Frees everything within `timeout_s`."""
