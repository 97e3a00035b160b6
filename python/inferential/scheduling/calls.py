"""Calls in flight: the slots they hold, when they are predicted to end, and when to stop waiting for them."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from inferential.scheduling.heap import LazyHeap
from inferential.scheduling.model import ModelState
from inferential.scheduling.replicas import ReplicaState
from inferential.scheduling.request import INFINITY, Call, Request


class Calls:
    """Of all models. Opening and closing a call is O(log n)."""

    def __init__(self, timeout_s: float, overrun_s: float) -> None:
        self.timeout_s = timeout_s
        self._overrun_s = overrun_s
        self._open: dict[int, Call] = {}
        self._checks: LazyHeap[Call] = LazyHeap(attrgetter("open"))
        self._count = 0

    def get(self, call_id: int) -> Call | None:
        """A call that is still counted on."""
        return self._open.get(call_id)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._open.values())

    def open(
        self,
        model: ModelState,
        replica: ReplicaState,
        requests: list[Request],
        now: float,
        *,
        begins_at: float,
        ends_at: float,
        follows: Call | None,
    ) -> Call:
        """A new call. It takes a slot; with `follows` it is staged behind that call and takes over its slot when that ends."""
        self._count += 1
        call = Call(self._count, model.name, replica.replica, requests, now, now + self.timeout_s)
        call.unanswered = len(requests)
        call.begins_at = begins_at
        if follows is not None and replica.full:
            call.lead_s = follows.ends_at - now
        self._open[call.id] = call
        replica.calls[call.id] = call
        if follows is None:
            replica.running += 1
            model.slots.running += 1
            model.device.running += 1
            model.replicas.changed(replica)
        else:
            call.staged = call.followed = True
            call.behind = follows
            replica.staged = call
            follows.yields = False
            model.ends.discard()
        call.ends_at = ends_at
        call.yields = True
        model.ends.push(ends_at, call.id, call)
        first = requests[0].expiry
        for request in requests:
            request.dispatched_at = now
            request.call = call
            if request.expiry < first:
                first = request.expiry
        self._checks.push(min(call.deadline, first + self._overrun_s), call.id, call)
        return call

    def close(self, model: ModelState, call: Call, now: float) -> ReplicaState:
        """No answer to this call is counted on any more; its slot goes to the call staged behind it, or becomes free."""
        del self._open[call.id]
        call.open = False
        self._checks.discard()
        if call.yields:
            call.yields = False
            model.ends.discard()
            model.ends.top()  # lets go of its payloads: where nothing is staged or refused nobody else asks
        replica = model.replicas.get(call.replica.id)
        if replica is None or call.id not in replica.calls:
            # The replica was removed, and has perhaps come back under its name: that one knows nothing of this call.
            return self._close_orphan(model, call)
        del replica.calls[call.id]
        after = replica.staged
        if call.staged:
            replica.staged = None
            before = call.behind
            if before is not None and before.open:
                _predict(model, before, before.ends_at)
        elif after is not None and after.behind is call:
            _promote(model, replica, after, now)
        else:
            replica.running -= 1
            _free(model)
            model.replicas.changed(replica)
        if replica.draining and not replica.calls:
            model.replicas.remove(replica)
        return replica

    def _close_orphan(self, model: ModelState, call: Call) -> ReplicaState:
        if not call.staged:
            heir = next((c for c in self._open.values() if c.behind is call), None)
            if heir is None:
                _free(model)
            else:
                heir.staged = False
                heir.behind = None
        return ReplicaState(call.replica, 0)

    def check_later(self, call: Call) -> None:
        """Looks at a call again when it times out, or when the first of its requests is too late for a reply."""
        at = call.deadline
        for request in call.requests:
            if not request.done:
                at = min(at, request.expiry + self._overrun_s)
        self._checks.push(at, call.id, call)

    @property
    def next_check(self) -> float:
        """When the next call is to be looked at."""
        entry = self._checks.top()
        return INFINITY if entry is None else entry[0]

    def due(self, now: float) -> Iterator[tuple[Call, list[Request]]]:
        """Calls to be looked at now, with those of their requests that are too late for a reply."""
        checks = self._checks
        while (entry := checks.top()) is not None and entry[0] <= now:
            call = checks.pop()
            yield call, [r for r in call.requests if not r.done and r.expiry + self._overrun_s <= now]


def _free(model: ModelState) -> None:
    model.slots.running -= 1
    model.device.running -= 1


def _promote(model: ModelState, replica: ReplicaState, call: Call, now: float) -> None:
    """The call before a staged one has ended: it begins."""
    replica.staged = None
    call.staged = False
    call.behind = None
    call.begins_at = now
    _predict(model, call, now + model.speed(replica) * model.service.mean(len(call.requests)))


def _predict(model: ModelState, call: Call, ends_at: float) -> None:
    """A call is predicted to end then, and nothing is staged behind it."""
    if call.yields:
        model.ends.discard()
    call.ends_at = ends_at
    call.yields = True
    model.ends.push(ends_at, call.id, call)
