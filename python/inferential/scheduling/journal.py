"""Why recent requests waited, were batched, refused or superseded: a bounded list of decisions."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from inferential.scheduling.request import Call, Request
from inferential.types import Reason, Status


class Journal:
    """The last `size` decisions; 0: none are kept.

    In columns: tuples would be objects for the garbage collector to look through, and thousands of them every second stop the
    server for milliseconds.
    """

    __slots__ = (
        "_at", "_clients", "_contended", "_count", "_details", "_ends", "_errors", "_ms", "_numbers", "_queued", "_reasons", "_size",
        "_sizes", "_staged", "on",
    )  # fmt: skip

    def __init__(self, size: int) -> None:
        self._size = size
        self._count = 0
        self._at = [0.0] * size
        self._clients = [""] * size
        self._numbers = [0] * size
        self._details: list[Any] = [None] * size
        """Of a dispatch its replica, of an outcome the status; a retry has nothing."""
        self._ms = [0.0] * size
        self._reasons: list[Any] = [None] * size
        self._errors = [""] * size
        # The call of a dispatch.
        self._sizes = [0] * size
        self._queued = [0] * size
        self._staged = [False] * size
        self._contended = [False] * size
        self._ends = [0.0] * size
        self.on = size > 0

    def dispatched(self, now: float, request: Request, call: Call, queued: int, contended: bool) -> None:
        """A request leaves in a call; `queued`: how many waited."""
        place = self._note(now, request, call.replica.id, (now - request.arrival) * 1e3)
        self._sizes[place] = len(call.requests)
        self._queued[place] = queued
        self._staged[place] = call.staged
        self._contended[place] = contended
        self._ends[place] = call.ends_at

    def retried(self, now: float, request: Request, error: str) -> None:
        """A request failed and waits again."""
        place = self._note(now, request, None, 0.0)
        self._errors[place] = error

    def ended(self, now: float, request: Request, status: Status, reason: Reason, error: str, e2e_ms: float) -> None:
        """A request has its outcome."""
        place = self._note(now, request, status, e2e_ms)
        self._reasons[place] = reason
        self._errors[place] = error

    def _note(self, now: float, request: Request, details: Any, ms: float) -> int:
        observation = request.observation
        place = self._count % self._size
        self._count += 1
        self._at[place] = now
        self._clients[place] = observation.client_id
        self._numbers[place] = observation.request_id
        self._details[place] = details
        self._ms[place] = ms
        return place

    def of(self, client_id: str, request_id: int) -> list[dict[str, Any]]:
        """The decisions about a request, in order. Looks at all entries."""
        if not self.on:
            return []
        places: list[int] = []
        numbers, place = self._numbers, -1
        with contextlib.suppress(ValueError):  # there is no further one
            while True:
                place = numbers.index(request_id, place + 1)  # many times quicker than to look at each
                if self._clients[place] == client_id and place < self._count:
                    places.append(place)
        newest = self._count % self._size  # the place after the newest entry has the oldest
        places.sort(key=lambda place: (place < newest, place))
        return [self._entry(place) for place in places]

    def _entry(self, place: int) -> dict[str, Any]:
        at, details = self._at[place], self._details[place]
        if details is None:
            return {"at": at, "decision": "retry", "error": self._errors[place]}
        if isinstance(details, Status):
            return {
                "at": at,
                "decision": "outcome",
                "status": details.name,
                "reason": self._reasons[place].name,
                "error": self._errors[place],
                "e2e_ms": self._ms[place],
            }
        return {
            "at": at,
            "decision": "dispatch",
            "waited_ms": self._ms[place],
            "batch_size": self._sizes[place],
            "replica": details,
            "queue_depth": self._queued[place],
            "staged": self._staged[place],
            "contended": self._contended[place],
            "predicted_ms": (self._ends[place] - at) * 1e3,
        }


def describe(decision: Mapping[str, Any]) -> str:
    """A decision in words, of what `Journal.of` (or a server's answer to `explain`) has."""
    match decision["decision"]:
        case "dispatch":
            words = [f"waited {decision['waited_ms']:.1f} ms"]
            others = decision["batch_size"] - 1
            words.append(f"sent to {decision['replica']} " + (f"together with {others} more" if others else "alone"))
            if left := decision["queue_depth"] - decision["batch_size"]:
                words.append(f"{left} left waiting")
            if decision["contended"]:
                words.append("not all can be in time: levels and shares decide")
            if decision["staged"]:
                words.append("staged behind the call that runs there")
            if decision["predicted_ms"] > 0.0:  # of the first call nothing is known
                words.append(f"predicted to be over in {decision['predicted_ms']:.1f} ms")
            return ", ".join(words)
        case "retry":
            return f"failed ({decision['error']}), runs again"
        case "outcome":
            reason = "" if decision["reason"] == "NONE" else f" ({decision['reason']})"
            why = f": {decision['error']}" if decision["error"] else ""
            return f"{decision['status']}{reason} {decision['e2e_ms']:.1f} ms after its arrival{why}"
        case other:
            return str(other)
