"""Why recent requests waited, were batched, refused or superseded: a bounded list of decisions."""

from __future__ import annotations

import enum
from collections import deque
from typing import Any

from inferential.scheduling.request import Request

_VALUES = {
    "dispatch": ("waited_ms", "batch_size", "replica", "queue_depth", "staged", "contended", "predicted_end"),
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
        """Writes a decision down; `values` are those that `what` has."""
        observation = request.observation
        self._entries.append((now, observation.client_id, observation.request_id, what, values))

    def of(self, client_id: str, request_id: int) -> list[dict[str, Any]]:
        """The decisions about a request, in order. Looks at all entries."""
        return [
            {"at": at, "decision": what, **dict(zip(_VALUES[what], map(_named, values), strict=True))}
            for (at, client, number, what, values) in self._entries
            if number == request_id and client == client_id
        ]


def _named(value: Any) -> Any:
    # An enum's name takes longer to get than all the rest of a note.
    return value.name if isinstance(value, enum.Enum) else value
