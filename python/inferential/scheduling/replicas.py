"""The replicas of one model: which have room, and which will be done first."""

from __future__ import annotations

import heapq

from inferential.scheduling.request import Call, Replica
from inferential.tracking.health import Health

_ALPHA = 0.2


class ReplicaState:
    """One replica and what it is doing."""

    __slots__ = ("assigned", "calls", "draining", "health", "index", "replica", "running", "speed", "staged", "version")

    def __init__(self, replica: Replica, index: int) -> None:
        self.replica = replica
        self.index = index
        self.calls: dict[int, Call] = {}
        self.running = 0
        """Calls that hold one of its slots."""
        self.staged: Call | None = None
        self.draining = False
        self.assigned = 0
        """Clients that keep to it."""
        self.speed = 1.0
        """Moving average of (time of its calls) / (time predicted for the model); below 1 is faster."""
        self.health = Health()
        self.version = 0

    @property
    def has_room(self) -> bool:
        """Whether a call can begin now."""
        return not (self.full or self.draining)

    @property
    def full(self) -> bool:
        """Whether one call more would wait there."""
        return self.running >= self.replica.slots

    def took(self, ratio: float) -> None:
        """Counts a call by its time relative to the prediction."""
        self.speed += _ALPHA * (ratio - self.speed)


class Replicas:
    """A heap of those with room, the one predicted to finish first on top. O(log n) per change, amortised."""

    __slots__ = ("_by_id", "_count", "_free", "_only", "live")

    def __init__(self) -> None:
        self._by_id: dict[str, ReplicaState] = {}
        self._free: list[tuple[float, int, int, ReplicaState]] = []
        self._only: ReplicaState | None = None
        """Where there is one alone, as for most models, nothing needs to be ranked."""
        self._count = 0
        self.live = 0
        """How many take new calls."""

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._by_id.values())

    def get(self, replica_id: str) -> ReplicaState | None:
        """By id, draining ones included."""
        return self._by_id.get(replica_id)

    def put(self, replica: Replica) -> ReplicaState:
        """Adds one, or changes one that is known; it takes calls (again)."""
        state = self._by_id.get(replica.id)
        if state is None:
            self._count += 1
            state = self._by_id[replica.id] = ReplicaState(replica, self._count)
            self.live += 1
            self._counted()
        elif state.draining:
            self.live += 1
        state.replica = replica
        state.draining = False
        self.changed(state)
        return state

    def drain(self, state: ReplicaState) -> None:
        """One takes no new calls."""
        if not state.draining:
            state.draining = True
            self.live -= 1
            self.changed(state)

    def remove(self, state: ReplicaState) -> None:
        """Forgets one."""
        self.drain(state)
        state.version += 1
        self._by_id.pop(state.replica.id, None)
        self._counted()

    def _counted(self) -> None:
        """One came or went."""
        states = list(self._by_id.values())
        self._only = states[0] if len(states) == 1 else None
        for state in states:
            self.changed(state)

    def changed(self, state: ReplicaState) -> None:
        """To be told after every change of its load or speed."""
        if state is self._only:
            return
        state.version += 1
        free = self._free
        if state.running < state.replica.slots and not state.draining:
            heapq.heappush(free, ((state.running + 1) * state.speed, state.index, state.version, state))
            if len(free) > 64 + 4 * len(self._by_id):
                self._free = [entry for entry in free if entry[2] == entry[3].version]
                heapq.heapify(self._free)

    def free(self) -> ReplicaState | None:
        """The one with room that is predicted to finish a call first."""
        only = self._only
        if only is not None:
            return only if only.running < only.replica.slots and not only.draining else None
        free = self._free
        while free:
            entry = free[0]
            if entry[2] == entry[3].version:
                return entry[3]
            heapq.heappop(free)
        return None
