"""Who sends: clients live, idle and evicted, and what is known of each at each model."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from inferential.tracking.cadence import Cadence

if TYPE_CHECKING:
    from inferential.scheduling.request import Request


MAX_CLIENTS = 131_072  # of one model that are remembered
MAX_SLOTS = 256
"""Slots of a client whose cadence is known: those seen last."""


class Account:
    """What a client has had at one priority level, in virtual time (scheduling/fairness.py)."""

    __slots__ = ("finish", "owed")

    def __init__(self) -> None:
        self.finish = 0.0
        """End of its last turn."""
        self.owed = 0.0
        """Turns that were due and that it did not get."""


class Stream:
    """One client at one model: its fair share and its cadence (one more cadence for each named slot)."""

    __slots__ = (
        "_accounts",
        "_slots",
        "cadence",
        "client_id",
        "index",
        "last_seen",
        "queued",
        "replica",
        "turn",
        "waiting",
        "weight",
    )

    def __init__(self, client_id: str, index: int, weight: float) -> None:
        self.client_id = client_id
        self.index = index
        """Number in order of first sight; makes orders between clients deterministic."""
        self.weight = weight
        self.cadence = Cadence()
        self._slots: dict[str, Cadence] | None = None
        self._accounts: dict[int, Account] = {}
        self.queued = 0
        """How many of its requests wait."""
        self.waiting: deque[Request] = deque()
        """These, oldest first, and some that wait no more."""
        self.last_seen = 0.0
        self.turn = 0
        """When its last turn was, in turns of its model; 0: never."""
        self.replica: str | None = None
        """The replica it keeps to, where the model asks for that."""

    def account(self, level: int) -> Account:
        """Its account at a priority level."""
        found = self._accounts.get(level)
        if found is None:
            found = self._accounts[level] = Account()
        return found

    def enqueued(self, request: Request) -> None:
        """A request of it began to wait."""
        self.queued += 1
        waiting = self.waiting
        while waiting and not waiting[0].queued:
            waiting.popleft()
        waiting.append(request)

    def oldest(self) -> Request | None:
        """The one of its waiting requests that has waited longest."""
        waiting = self.waiting
        while waiting and not waiting[0].queued:
            waiting.popleft()
        return waiting[0] if waiting else None

    def cadence_of(self, slot: str) -> Cadence:
        """Bodies behind one client that name a slot have a cadence each."""
        if not slot:
            return self.cadence
        slots = self._slots
        if slots is None:
            slots = self._slots = {}
        found = slots.pop(slot, None)
        if found is None:
            found = Cadence()
            if len(slots) >= MAX_SLOTS:
                del slots[next(iter(slots))]
        slots[slot] = found  # the last seen is the last
        return found


class Streams:
    """The clients of one model, least recently seen first, so that the idle ones are found without a search."""

    __slots__ = ("_by_client", "_count", "evicted")

    def __init__(self) -> None:
        self._by_client: OrderedDict[str, Stream] = OrderedDict()
        self._count = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._by_client)

    def seen(self, client_id: str, now: float, weights: Mapping[str, float]) -> Stream:
        """The client's stream, new or known; it counts as seen now."""
        stream = self._by_client.get(client_id)
        if stream is None:
            self._count += 1
            stream = self._by_client[client_id] = Stream(client_id, self._count, weights.get(client_id, 1.0))
        else:
            self._by_client.move_to_end(client_id)
        stream.last_seen = now
        return stream

    def excess(self, most: int) -> list[Stream]:
        """Forgets the one that was seen least recently, of those of which nothing waits, where there are more than so many."""
        if len(self._by_client) <= most:
            return []
        for stream in self._by_client.values():
            if not stream.queued:
                return self._forget([stream])
        return []

    def live(self, since: float) -> int:
        """How many were seen at or after that time; O(answer)."""
        count = 0
        for stream in reversed(self._by_client.values()):
            if stream.last_seen < since:
                break
            count += 1
        return count

    def evict(self, before: float) -> list[Stream]:
        """Forgets clients not seen since that time, except those of which something still waits."""
        gone: list[Stream] = []
        for stream in self._by_client.values():
            if stream.last_seen >= before:
                break
            if not stream.queued:
                gone.append(stream)
        return self._forget(gone)

    def _forget(self, gone: list[Stream]) -> list[Stream]:
        for stream in gone:
            del self._by_client[stream.client_id]
        self.evicted += len(gone)
        return gone
