"""What leaves the queues, when, where to and together with what; and what is refused because it can't be in time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from inferential.config.schema import InferentialConfig
from inferential.scheduling.base import Order
from inferential.scheduling.batching import batch_limit, enough, fits, worth_waiting
from inferential.scheduling.calls import Calls
from inferential.scheduling.fairness import GuaranteedShare
from inferential.scheduling.journal import Journal
from inferential.scheduling.model import STAGING_PATH, ModelState, Slots
from inferential.scheduling.replicas import ReplicaState
from inferential.scheduling.request import INFINITY, Call, Request
from inferential.scheduling.waiting import MAX_RETRY_AFTER_MS, End, Record, WaitingRoom
from inferential.types import Reason, Status

_CONFIDENT_CALLS = 8  # so many calls of a model must have been seen before one is staged on a prediction
_RELAX_AFTER_S = 0.25
# Of its budget: kept between what lower levels take and the deadline of a better one, for what the server does not see and cannot
# predict: a reply's way where it is slow. On a busy machine 1 % of the best level came too late with a twentieth, 0.2 % with a tenth.
_RESERVE = 0.1
_MOST_SPARE = 0.25  # of the budget
_MOST_OWED = 4.0  # turns; for a client that is owed so many a call may be half as large as for others


@dataclass(slots=True)
class _Opening:
    """A place where a call could go now."""

    replica: ReplicaState
    order: Order | None
    retry: Request | None
    follows: Call | None
    """The call it would be staged behind."""


@dataclass(slots=True)
class _Plan:
    """The times of a call that could be made: it is over at `start + fixed + item x requests`, margins included."""

    start: float
    call: float
    """Fixed time of a call that follows another one."""
    runs: float
    """Fixed time of this one, without any margin."""
    fixed: float
    item: float
    tail: float
    """What 99 % of the calls take longer than that at most."""


class Dispatcher:
    """One dispatch path for all models and strategies."""

    def __init__(
        self, config: InferentialConfig, room: WaitingRoom, calls: Calls, *, end: End, record: Record, journal: Journal
    ) -> None:
        scheduling = config.scheduling
        self._room = room
        self._calls = calls
        self._end = end
        self._record = record
        self._journal = journal
        self._predictive = scheduling.early_refusal == "predictive"
        self._deadline_margin_s = scheduling.deadline_margin_ms / 1e3
        self._contention_hold_s = scheduling.contention_hold_ms / 1e3
        self._staging = config.dispatch.staging
        self._share = GuaranteedShare(scheduling.min_share)

    def dispatch(self, now: float, made: list[Call]) -> None:
        """Adds the calls to send now: most urgent first, until no model that waits has a place to go or wants to go."""
        held: set[str] = set()
        waiting = self._room.models
        while True:
            openings: list[tuple[ModelState, _Opening]] = []
            for model in waiting.values():
                if model.name not in held:
                    found = self._opening(model, now)
                    if found is not None:
                        openings.append((model, found))
            if not openings:
                break
            model, opening = openings[0] if len(openings) == 1 else self._next_model(openings, now)
            waited = len(model.queue)
            call = self._start(model, opening, now)
            if call is not None:
                made.append(call)
            elif len(model.queue) == waited:  # else some were refused: others may have a place to go
                held.add(model.name)
        if self._predictive:
            for model in list(waiting.values()):
                self._refuse_hopeless(model, now)

    # --- deadlines that do not hold ----------------------------------------------------------------------------------

    def expire(self, now: float) -> None:
        """What still waits at its expiry is answered then."""
        for model in list(self._room.models.values()):
            queue = model.queue
            while (request := queue.first_to_expire()) is not None:
                if request.expiry > now:
                    model.wake = request.expiry
                    break
                self._room.remove(model, request, served=False)
                self._missed(model, request, now)
                self._record("requests_expired", 1.0, model.name, request.observation.client_id)
                self._end(request, Status.EXPIRED, error="its deadline passed while it waited")

    def _missed(self, model: ModelState, request: Request, now: float) -> None:
        """Not everything could be in time: from now on levels and shares count.

        A budget that no idle model could meet with ease proves nothing.
        """
        if request.expiry - request.arrival >= 2.0 * model.service.mean(1):
            model.contended_until = now + self._contention_hold_s

    def _refuse_hopeless(self, model: ModelState, now: float) -> None:
        """Early refusal of what can't be in time wherever it goes next."""
        if not model.service.known:
            return
        start = now
        if model.replicas.free() is None:
            start = _first_end([model], start)
        for slots in (model.slots, model.device):
            if not slots.free:
                start = _first_end(slots.models, start)
        several = len(model.replicas) > 1 and not model.affinity
        needs = model.service.mean(1) + self._deadline_margin_s
        while (request := model.queue.first_to_expire()) is not None:
            if several and request.expiry < start + needs:
                several = False
                fastest = min((r.speed for r in model.replicas if not r.draining), default=1.0)
                needs = model.service.mean(1) * fastest + self._deadline_margin_s
            if request.expiry >= start + needs:
                # At that time at the latest it is known that it can't be in time.
                model.wake = min(model.wake, max(now, request.expiry - needs) + 1e-6)
                return
            self._refuse(model, request, start + needs, now)

    def _refuse(self, model: ModelState, request: Request, done_at: float, now: float) -> None:
        """Early refusal of a request that would be done at `done_at`, after its deadline."""
        stream = request.stream
        over = stream is not None and model.over_share(stream)
        self._room.remove(model, request, served=False)
        self._missed(model, request, now)
        late_ms = (done_at - request.expiry) * 1e3
        if over:
            reason, text = Reason.OVER_SHARE, "its client has more than its share of the queue"
        else:
            reason, text = Reason.CANNOT_MEET_DEADLINE, f"it would be {late_ms:.1f} ms late"
        self._end(request, Status.REJECTED, reason, text, min(MAX_RETRY_AFTER_MS, max(1.0, late_ms)))
        if now >= model.relax_at and model.next_end() is None:
            model.relax_at = now + _RELAX_AFTER_S
            model.service.relax()

    # --- where a call could go ---------------------------------------------------------------------------------------

    def _next_model(self, openings: list[tuple[ModelState, _Opening]], now: float) -> tuple[ModelState, _Opening]:
        """Which of several models that could start a call does."""
        if self._room.scheduler.takes_turns:
            return min(openings, key=lambda pair: (pair[0].turn, pair[0].index))
        contended = any(m.contended_until > now for m, _ in openings)
        ranked: list[tuple[int, float, int, tuple[ModelState, _Opening]]] = []
        for model, opening in openings:
            first = opening.retry
            if first is None and opening.order is not None:
                first = opening.order.first(model.contended_until > now)
            if first is not None:
                level = first.level if contended else 0
                ranked.append((level, first.key, model.index, (model, opening)))
        if contended:
            levels = sorted({rank[0] for rank in ranked})
            best = self._share.best(levels)
            self._share.served(best, levels)
            ranked = [rank for rank in ranked if rank[0] == best]
        return min(ranked)[3]

    def _opening(self, model: ModelState, now: float) -> _Opening | None:
        """Where a call of a model could go now: a replica with room, else behind a call that is about to end."""
        slots, device = model.slots, model.device
        if slots.running < slots.limit and device.running < device.limit:
            retries = model.retries
            for request in retries:
                replica = _other_replica(model, request)
                if replica is not None:
                    return _Opening(replica, None, request, None)
            if not retries or len(model.queue) > len(retries):
                if model.affinity:
                    opening = _affine_opening(model, now)
                    if opening is not None:
                        return opening
                else:
                    replica = model.replicas.free()
                    if replica is not None:
                        return _Opening(replica, model.orders[None], None, None)
        return self._stage(model, now) if self._staging and model.stages else None

    def _stage(self, model: ModelState, now: float) -> _Opening | None:
        """Behind a call that is about to end, so that its replica is not idle until the next one has come."""
        if model.service.samples < _CONFIDENT_CALLS:
            return None
        call = model.next_end()
        if call is None or call.staged or call.replica.path != STAGING_PATH:
            return None
        replica = model.replicas.get(call.replica.id)
        if replica is None or replica.draining or replica.staged is not None:
            return None
        order = model.orders.get(call.replica.id if model.affinity else None)
        if order is None or (model.affinity and order.first(model.contended_until > now) is None):
            return None
        # A staged call inherits the slot of the one before it: what waits for that slot or replica must not starve.
        if model.retries or self._wanted(model, model.slots) or self._wanted(model, model.device):
            return None
        ahead = model.service.lead_s
        if call.ends_at - call.begins_at < 2.0 * ahead:
            return None  # it would be staged as soon as its predecessor is sent: the slot is free soon enough
        if now < call.ends_at - ahead:
            model.wake = min(model.wake, call.ends_at - ahead)
            return None
        if now > call.ends_at + max(ahead, model.service.margin_s):
            return None  # it takes longer than predicted: nobody knows when it will end
        return _Opening(replica, order, None, call)

    def _wanted(self, model: ModelState, slots: Slots) -> bool:
        """Whether other models wait for slots that are all taken."""
        if slots.free:
            return False
        return any(m is not model and (m.slots is slots or m.device is slots) for m in self._room.models.values())

    # --- what goes together ------------------------------------------------------------------------------------------

    def _start(self, model: ModelState, opening: _Opening, now: float) -> Call | None:
        """Forms a call. None: it is worth waiting for more, or everything was refused."""
        replica, order, retry, follows = opening.replica, opening.order, opening.retry, opening.follows
        service = model.service
        speed = model.speed(replica)
        item = service.item_s * speed
        following = service.call_s * speed
        runs = following + (service.overhead_s if follows is None else 0.0)
        start = now if follows is None else max(now, follows.ends_at)
        contended = model.contended_until > now
        depth = len(model.queue)
        if retry is not None:
            requests = [retry]
            self._room.remove(model, retry, served=True)
        else:
            assert order is not None, "an opening has an order or a retry"
            plan = _Plan(
                start,
                following,
                runs,
                runs + service.margin_s * speed + self._deadline_margin_s,
                item,
                service.tail_s * speed,
            )
            limit = model.batch_size_of(replica)
            if model.most > 1:
                limit = self._limit(model, plan, limit, now)
                batch = _Batch(model, plan, min(limit, depth), limit)
                hold = self._room.scheduler.hold_until(batch, now)
                if hold > now and batch.size < limit:
                    model.wake = min(model.wake, hold)
                    return None
            requests = self._gather(model, replica, order, plan, limit, contended, now)
            if not requests:
                return None
        size = len(requests)
        ends_at = start + runs + item * size
        call = self._calls.open(model, replica, requests, now, begins_at=start, ends_at=ends_at, follows=follows)
        model.turn = call.id
        model.relax_at = ends_at + _RELAX_AFTER_S
        if self._journal.on:
            for request in requests:
                self._journal.dispatched(now, request, call, depth, contended)
        self._record("queue_depth", float(depth), model.name)
        self._record("batch_size", float(size), model.name)
        return call

    def _limit(self, model: ModelState, plan: _Plan, most: int, now: float) -> int:
        """The largest batch (docs/scheduling.md, "Batches")."""
        service = model.service
        if most == 1 or not service.known:
            return most
        budget = model.tight_budget.value
        spare = 0.0
        if not self._predictive:  # else no batch is larger than the deadlines of its members allow
            spare = min(service.margin_s + self._deadline_margin_s + service.lead_s, _MOST_SPARE * budget)
        # One batch follows the other, so what it takes to reach an idle replica does not count twice.
        return batch_limit(plan.call, plan.item, budget - spare, model.arrivals_per_replica(now), most)

    def _level_limits(self, model: ModelState, plan: _Plan, most: int, now: float) -> dict[int, int]:
        """Of each level the largest batch that its requests may be added to ("Room for better levels")."""
        service = model.service
        if most == 1 or not service.known:
            return {}
        spare = plan.tail + self._deadline_margin_s + service.lead_s
        return model.levels.limits(now, plan.call, plan.item, spare, _RESERVE, most)

    def _gather(
        self,
        model: ModelState,
        replica: ReplicaState,
        order: Order,
        plan: _Plan,
        limit: int,
        contended: bool,
        now: float,
    ) -> list[Request]:
        """Takes the requests of the next call out of the queue.

        One that would be late here and in time on a faster replica, which is busy yet, waits for that one.
        With refusal on nothing is taken that would miss its deadline in this call, and nothing whose deadline is so near that it would
        make the batch too small for the device to keep up: that is refused. A better level is not refused for the sake of lower ones:
        these take what room it leaves, at a safe distance from its deadline.
        """
        service = model.service
        start, item = plan.start, plan.item
        judge = self._predictive and service.known
        choose = service.known and len(model.replicas) > 1 and not model.affinity
        keeps_up = INFINITY
        if judge and limit > 1 and not contended:
            keeps_up = enough(plan.fixed, item, model.arrivals_per_replica(now))
        limits = self._level_limits(model, plan, limit, now)
        requests: list[Request] = []
        room = limit
        above = INFINITY
        """The lowest level in the batch that outranks others..."""
        left = 0
        """...how many of it and better ones still wait: who goes before them has its guaranteed share..."""
        below = limit
        """...and how large the batch may become by those below it."""
        while len(requests) < room:
            request = order.first(contended)
            if request is None:
                break
            level = request.level
            most = limits.get(level, limit)
            if len(requests) >= most:
                break
            if judge:
                rivals = int(cast(Any, order).rivals(request))  # a user's order may count with numpy
                need = min(most, len(requests) + rivals)
                if keeps_up < need:
                    need = max(1, math.ceil(keeps_up - 1e-9))
                outranks = rivals < len(model.queue) and model.levels.better(level)
                fixed = plan.runs + self._deadline_margin_s if outranks else plan.fixed
                size = fits(request.expiry, start, fixed, item, limit)
                if size < need and contended and _owed(request) >= _MOST_OWED:
                    need = max(1, need // 2)
                if size < need or size < 1:
                    if choose and self._waits_for_faster(model, replica, request, max(1, need), now):
                        break
                    self._refuse(model, request, start + fixed + item * max(1, need), now)
                    left -= level <= above
                    continue
                if size <= len(requests) or (level > above and left <= 0 and len(requests) >= below):
                    break
                room = min(room, size)
                if outranks:
                    if level > above or above == INFINITY:
                        above = float(level)
                    left = rivals - 1
                    safe = plan.runs + plan.tail + self._deadline_margin_s
                    safe += _RESERVE * (request.expiry - request.arrival)
                    below = min(below, fits(request.expiry, start, safe, item, limit))
            elif (
                choose
                and not requests
                and request.expiry < start + plan.fixed + item
                and self._waits_for_faster(model, replica, request, 1, now)
            ):
                break
            self._room.remove(model, request, served=True)
            requests.append(request)
        return requests

    def _waits_for_faster(self, model: ModelState, here: ReplicaState, request: Request, size: int, now: float) -> bool:
        """Whether a call of `size` would be in time on a faster replica than `here`, at the end of what that one is doing."""
        service = model.service
        for replica in model.replicas:
            if replica.speed >= here.speed or replica.draining or not replica.full:
                continue  # where there is room it would be chosen if it were quicker there
            last = replica.staged
            free_at = last.ends_at if last is not None else min(call.ends_at for call in replica.calls.values())
            if now > free_at + service.margin_s:
                continue  # it takes longer than predicted: nobody knows when it will end
            needs = (service.mean(size) + service.margin_s) * replica.speed + self._deadline_margin_s
            if max(now, free_at) + needs <= request.expiry:
                model.wake = min(model.wake, request.expiry - needs + 1e-6)
                return True
        return False


def _first_end(models: Sequence[ModelState], now: float) -> float:
    """When the first call of these models is predicted to end; not before `now`, and `now` where none runs."""
    return max(now, min((call.ends_at for m in models if (call := m.next_end()) is not None), default=now))


def _owed(request: Request) -> float:
    """Turns that were due to a request's client and that it did not get."""
    stream = request.stream
    return 0.0 if stream is None else stream.account(request.level).owed


def _affine_opening(model: ModelState, now: float) -> _Opening | None:
    """Of the replicas with room, the one whose clients' first request is the most urgent."""
    best: tuple[float, int, _Opening] | None = None
    for replica_id, order in model.orders.items():
        replica = None if replica_id is None else model.replicas.get(replica_id)
        if replica is None or not replica.has_room:
            continue
        first = order.first(model.contended_until > now)
        if first is not None and (best is None or first.key < best[0]):
            best = (first.key, replica.index, _Opening(replica, order, None, None))
    return None if best is None else best[2]


def _other_replica(model: ModelState, request: Request) -> ReplicaState | None:
    """A replica with room for a request that failed before: one it was not tried on, where such a one lives."""
    live = [r for r in model.replicas if not r.draining]
    untried = [r for r in live if r.replica.id not in request.tried]
    with_room = (r for r in untried or live if r.has_room)
    return min(with_room, key=lambda r: ((r.running + 1) * r.speed, r.index), default=None)


class _Batch:
    """What a scheduler sees of a batch that could leave now (scheduling/base.py)."""

    __slots__ = ("_model", "_plan", "limit", "size")

    def __init__(self, model: ModelState, plan: _Plan, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        self._model = model
        self._plan = plan

    @property
    def oldest_arrival(self) -> float:
        oldest = self._model.queue.oldest()
        return INFINITY if oldest is None else oldest.arrival

    def deadline_window(self, now: float) -> float:
        model, plan = self._model, self._plan
        first = model.queue.first_to_expire()
        if first is None or self.size >= self.limit or not model.service.known:
            return now
        # A batch that is staged begins only at `start`.
        latest = first.expiry - plan.fixed - plan.item * self.size - (plan.start - now)
        rate = model.arrivals_per_replica(now)
        return worth_waiting(now, self.size, self.limit, plan.fixed, plan.item, rate, latest, model.forecast.next(now))
