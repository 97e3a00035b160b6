"""Why recent requests waited, were batched, refused or superseded: a bounded list of decisions."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping
from typing import Any

from inferential.scheduling.request import Request

_VALUES = {
    "dispatch": ("waited_ms", "batch_size", "replica", "queue_depth", "staged", "contended", "predicted_ms"),
    "retry": ("error",),
    "outcome": ("status", "reason", "error", "e2e_ms"),
}


class Journal:
    """The last `size` decisions; 0: none are kept. Noting one costs a tuple."""

    __slots__ = ("_entries", "on")

    def __init__(self, size: int) -> None:
        self._entries: deque[tuple[float, str, int, str, tuple[Any, ...]]] = deque(maxlen=size)
        self.on = size > 0

    def note(self, now: float, request: Request, what: str, values: tuple[Any, ...]) -> None:
        """Writes a decision down; `values` are those that `what` has (of a dispatch the last is its predicted end, in `now`'s time)."""
        observation = request.observation
        self._entries.append((now, observation.client_id, observation.request_id, what, values))

    def of(self, client_id: str, request_id: int) -> list[dict[str, Any]]:
        """The decisions about a request, in order. Looks at all entries."""
        found: list[dict[str, Any]] = []
        for at, client, number, what, values in self._entries:
            if number == request_id and client == client_id:
                entry = {"at": at, "decision": what, **dict(zip(_VALUES[what], map(_plain, values), strict=True))}
                if what == "dispatch":
                    entry["predicted_ms"] = (entry["predicted_ms"] - at) * 1e3
                found.append(entry)
        return found


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


def _plain(value: Any) -> Any:
    # An enum's name takes longer to get than all the rest of a note.
    return value.name if isinstance(value, enum.Enum) else value
