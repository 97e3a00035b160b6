"""The engine: decides what is queued, refused, dispatched and answered. No I/O, no clock: `now` is an argument everywhere.

`now` is monotonic seconds and never goes back. Not thread-safe: one engine belongs to one thread.

Inputs are only noted when they come; what follows from them is decided once for all of them when the driver takes effects
(`take_calls`, `take_outcomes`, `take_abandoned`, `next_wakeup`). So observations that arrive in one burst can leave in one batch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from inferential.config.schema import InferentialConfig
from inferential.scheduling.base import Order, make_scheduler
from inferential.scheduling.batching import batch_limit, enough, fits, worth_waiting
from inferential.scheduling.fairness import GuaranteedShare
from inferential.scheduling.heap import LazyHeap
from inferential.scheduling.model import ModelState, Slots
from inferential.scheduling.order import Weights, find_policy
from inferential.scheduling.queue import Load
from inferential.scheduling.replicas import ReplicaState
from inferential.scheduling.request import (
    INFINITY,
    Call,
    CallError,
    CallResult,
    ItemError,
    Outcome,
    Replica,
    Request,
)
from inferential.types import Reason, Status

_CONFIDENT_CALLS = (
    8  # so many calls of a model must have been seen before one is staged on the strength of a prediction
)
_STAGE_AHEAD_S = 0.0005
_EVICT_EVERY_S = 1.0
_LIVE_S = 10.0  # a client is live for so long after its last observation, then idle until it is evicted
_MAX_RETRY_AFTER_MS = 1000.0


class MetricsSink(Protocol):
    """Where the engine reports numbers (metrics.collector in the server, anything in a simulation)."""

    def record(self, name: str, value: float, model: str | None = None, client: str | None = None) -> None:
        """One point of a metric."""


class _Opening(NamedTuple):
    """A place where a call could go now."""

    replica: ReplicaState
    order: Order | None
    retry: Request | None
    follows: Call | None
    """The call it would be staged behind."""


class Engine:
    """See the module. After every input the driver takes `take_calls` and `take_outcomes` and asks `next_wakeup`.

    Args:
        config: read once; later changes of it have no effect.
        models: the names that requests may ask for.
        metrics: told of every decision; must not raise and must not call the engine.

    Raises:
        ConfigError: an unknown strategy, option or policy.
    """

    def __init__(self, config: InferentialConfig, models: Sequence[str], metrics: MetricsSink) -> None:
        scheduling, queue, dispatch = config.scheduling, config.queue, config.dispatch
        self._config = config
        self._record = metrics.record
        self._scheduler = make_scheduler(scheduling.strategy, scheduling.options, scheduling)
        self._policy = find_policy(scheduling.policy)
        self._weights = Weights.of(scheduling)
        self._default_step_s = scheduling.default_step_ms / 1e3
        self._overrun_s = scheduling.overrun_ms / 1e3
        self._predictive = scheduling.early_refusal == "predictive"
        self._deadline_margin_s = scheduling.deadline_margin_ms / 1e3
        self._contention_hold_s = scheduling.contention_hold_ms / 1e3
        self._ttl_s = queue.request_ttl_ms / 1e3
        self._max_requests = queue.max_requests
        self._max_requests_per_model = queue.max_requests_per_model
        self._max_bytes = queue.max_bytes
        self._max_bytes_per_model = queue.max_bytes_per_model
        self._drop_oldest = queue.overflow == "drop_oldest"
        self._max_retries = dispatch.max_retries
        self._call_timeout_s = dispatch.call_timeout_ms / 1e3
        self._staging = dispatch.staging
        self._retry_after_ms = dispatch.retry_after_ms
        self._cadence_alpha = config.cadence.alpha
        self._forget_after_s = config.cadence.forget_after_s
        self._client_budgets = {
            name: c.latency_budget_ms / 1e3 for name, c in config.clients.items() if c.latency_budget_ms is not None
        }
        self._client_weights = {name: c.share for name, c in config.clients.items()}

        self._load = Load()
        shared = None if scheduling.pipeline_dispatch.enabled else Slots(scheduling.max_concurrent_dispatch)
        self._share = GuaranteedShare(scheduling.min_share)
        devices: dict[str, Slots] = {}
        self._models: dict[str, ModelState] = {}
        for index, name in enumerate(models):
            settings = config.models.of(name)
            device = Slots(INFINITY) if settings.device is None else devices.setdefault(settings.device, Slots(1))
            slots = shared or Slots(settings.max_inflight)
            self._models[name] = ModelState(name, index, config, self._scheduler, slots, device, self._load)

        self._waiting: dict[str, ModelState] = {}
        """Models with something queued."""
        self._connections: dict[bytes, dict[int, Request]] = {}
        """Requests without an outcome, by connection and request id (v1: minus their sequence number)."""
        self._calls: dict[int, Call] = {}
        self._checks: LazyHeap[Call] = LazyHeap(attrgetter("open"))
        """When each call is to be looked at: given up, or its requests are too late for a reply."""
        self._new_calls: list[Call] = []
        self._outcomes: list[Outcome] = []
        self._abandoned: list[Call] = []
        self._explain: deque[tuple[Any, ...]] = deque(maxlen=scheduling.explain_records)
        self._now = 0.0
        self._unsettled = False
        self._draining = False
        self._sequence = 0
        self._call_count = 0
        self._pending = 0
        self._evict_at = 0.0

    # --- replicas ----------------------------------------------------------------------------------------------------

    def replica_up(self, replica: Replica, now: float) -> None:
        """A replica takes calls (again); its slots or batch size may have changed. Models not configured are ignored."""
        self._at(now)
        model = self._models.get(replica.model)
        if model is not None:
            model.replicas.put(replica)
            model.replicas_changed()

    def replica_down(self, model: str, replica_id: str, reason: str, now: float, *, drained: bool = False) -> None:
        """A replica is gone: calls it holds fail as retryable. `drained`: it takes no new calls, those it holds still end."""
        self._at(now)
        m = self._models.get(model)
        replica = None if m is None else m.replicas.get(replica_id)
        if m is None or replica is None:
            return
        replica.draining = True
        m.replicas.changed(replica)
        m.replicas_changed()
        if not drained or not replica.calls:
            m.replicas.remove(replica)
        if not drained:
            error = CallError(
                f"replica {replica_id} of model {model!r} is gone: {reason}", retryable=True, unavailable=True
            )
            for call in list(replica.calls.values()):
                self._fail(m, call, error, now)
        if m.affinity and replica_id in m.orders:
            self._move(m, replica_id)
        if not m.replicas.live:
            for request in list(m.queue):
                self._unqueue(m, request, served=False)
                self._unavailable(request, f"model {model!r} has no live replica: {reason}")

    def _move(self, model: ModelState, replica_id: str) -> None:
        """Clients that kept to a replica that is gone keep to others from now on."""
        if not model.replicas.live:
            return
        gone = model.orders.pop(replica_id)
        moved = [request for request in model.queue if request.lane == replica_id and not request.attempt]
        for request in moved:
            gone.discard(request, False)
        for request in moved:
            self._push(model, request)

    # --- clients -----------------------------------------------------------------------------------------------------

    def submit(self, request: Request, now: float) -> None:
        """Takes a request; it gets exactly one outcome. One whose id is outstanding on its connection is counted and ignored."""
        self._at(now)
        observation = request.observation
        self._sequence = sequence = self._sequence + 1
        request.sequence = sequence
        outstanding = self._connections.get(request.connection)
        if outstanding is None:
            outstanding = self._connections[request.connection] = {}
        request_id = observation.request_id or -sequence
        if request_id in outstanding:
            self._record("observation_errors", 1.0, observation.model_id, observation.client_id)
            return
        outstanding[request_id] = request
        self._pending += 1

        model = self._models.get(observation.model_id)
        if model is None:
            known = ", ".join(sorted(self._models)) or "none"
            self._end(
                request, Status.UNKNOWN_MODEL, error=f"unknown model {observation.model_id!r}; this server has: {known}"
            )
            return

        client_id = observation.client_id
        arrival = request.arrival
        stream = model.streams.seen(client_id, arrival, self._client_weights)
        request.stream = stream
        cadence = stream.cadence_of(observation.slot) if observation.slot else stream.cadence
        overdue = cadence.arrived(arrival, self._cadence_alpha)
        budget_ms = observation.latency_budget_ms
        budget = budget_ms / 1e3 if budget_ms > 0.0 else self._client_budgets.get(client_id, model.budget_s)
        budget = min(budget, self._ttl_s)
        request.expiry = arrival + budget
        if observation.steps_remaining is not None:
            step_s = observation.step_ms / 1e3 or self._default_step_s
            request.dry_at = arrival + observation.steps_remaining * step_s
        request.key = self._policy(request, overdue, self._weights)
        if model.most > 1:
            model.rate.arrived(arrival)
            model.forecast.arrived(cadence)
            model.tight_budget.add(budget)

        if self._draining:
            self._end(request, Status.SHUTTING_DOWN, error="the server is shutting down")
        elif not model.replicas.live:
            self._unavailable(request, f"model {model.name!r} has no live replica")
        elif self._admit(model, request):
            self._enqueue(model, request)

    def _admit(self, model: ModelState, request: Request) -> bool:
        """Makes room for a request within the bounds, or refuses it."""
        replaced = None
        if model.latest_only or request.observation.latest_only:
            replaced = self._replace(model, request)
        size = request.size_bytes
        largest = min(self._max_bytes, self._max_bytes_per_model)
        if size > largest:
            error = f"an observation of {size} bytes is more than a queue may hold ({largest} bytes)"
            self._end(request, Status.REJECTED, Reason.TOO_LARGE, error)
            return False
        queue, load = model.queue, self._load
        while len(queue) >= self._max_requests_per_model or queue.size_bytes + size > self._max_bytes_per_model:
            if not self._overflow(model, request, f"the queue of model {model.name!r} is full"):
                return False
        while load.requests >= self._max_requests or load.size_bytes + size > self._max_bytes:
            fullest = min((m for m in self._waiting.values()), key=_oldest_sequence)
            if not self._overflow(fullest, request, "the server's queues are full"):
                return False
        if replaced is not None:
            # It takes the older one's place, else a client that sends often enough would never be served.
            request.key = min(request.key, replaced.key)
        return True

    def _replace(self, model: ModelState, request: Request) -> Request | None:
        """Newest observation wins: ends the queued one that this one replaces."""
        observation = request.observation
        if observation.is_v1:
            return None
        place = (request.connection, observation.slot)
        older = model.latest.get(place)
        model.latest[place] = request
        if older is None or not older.queued:
            return None
        self._unqueue(model, older, served=False)
        model.latest[place] = request
        self._end(older, Status.SUPERSEDED, error="a newer observation took its place")
        return older

    def _overflow(self, model: ModelState, newest: Request, what: str) -> bool:
        """Frees a place in a model's queue; False: the newest was refused instead."""
        heaviest = model.heaviest
        over = heaviest is not None and model.over_share(heaviest)
        if not self._drop_oldest:
            over = newest.stream is not None and newest.stream is heaviest and over
            victim, text = newest, f"{what}"
        else:
            oldest = heaviest.oldest() if over and heaviest is not None else model.queue.oldest()
            assert oldest is not None, "a full queue has an oldest request"
            victim, text = oldest, f"{what}; the oldest was dropped"
            self._unqueue(model, victim, served=False)
        observation = victim.observation
        self._record("queue_full_drops", 1.0, observation.model_id, observation.client_id)
        reason = Reason.OVER_SHARE if over else Reason.QUEUE_FULL
        if over:
            text = f"{what}, and client {observation.client_id!r} has more than its share of it"
        self._end(victim, Status.REJECTED, reason, text, retry_after_ms=self._backlog_ms(model))
        return victim is not newest

    def _backlog_ms(self, model: ModelState) -> float:
        """How long what waits for a model will take."""
        service = model.service
        batch = max(1, model.most)
        calls = 1 + len(model.queue) // batch
        ms = 1e3 * calls * service.mean(batch) / max(1, model.replicas.live)
        return min(_MAX_RETRY_AFTER_MS, max(1.0, ms))

    def _enqueue(self, model: ModelState, request: Request) -> None:
        """A request begins to wait, for the first time or again."""
        queue = model.queue
        if not queue:
            self._waiting[model.name] = model
        queue.add(request)
        stream = request.stream
        assert stream is not None, "set at arrival"
        if not stream.queued:
            model.clients_waiting += 1
        stream.enqueued(request)
        heaviest = model.heaviest
        if heaviest is None or stream.queued >= heaviest.queued:
            model.heaviest = stream
        if request.attempt:
            model.retries.append(request)
            model.retries.sort(key=_urgency)
        else:
            self._push(model, request)

    def _push(self, model: ModelState, request: Request) -> None:
        """Into the order that it waits in."""
        lane: str | None = None
        if model.affinity:
            lane = self._lane(model, request)
        order = model.orders.get(lane)
        if order is None:
            order = model.orders[lane] = self._scheduler.order()
        request.lane = lane
        order.push(request)

    def _lane(self, model: ModelState, request: Request) -> str:
        """The replica that a client keeps to; the least loaded one where it has none yet."""
        stream = request.stream
        assert stream is not None, "set at arrival"
        kept = None if stream.replica is None else model.replicas.get(stream.replica)
        if kept is None or kept.draining:
            kept = min(
                (r for r in model.replicas if not r.draining),
                key=lambda r: ((r.assigned + 1) * r.speed / r.replica.slots, r.index),
            )
            kept.assigned += 1
            stream.replica = kept.replica.id
        return kept.replica.id

    def _unqueue(self, model: ModelState, request: Request, *, served: bool) -> None:
        """A request waits no more."""
        queue = model.queue
        queue.remove(request)
        if request.attempt:
            model.retries.remove(request)
        else:
            model.orders[request.lane].discard(request, served)
        stream = request.stream
        assert stream is not None, "set at arrival"
        stream.queued -= 1
        if not stream.queued:
            model.clients_waiting -= 1
        if model.latest:
            place = (request.connection, request.observation.slot)
            if model.latest.get(place) is request:
                del model.latest[place]
        if not queue:
            del self._waiting[model.name]

    def cancel(self, connection: bytes, request_id: int, now: float) -> bool:
        """Ends a queued or running request CANCELLED at once; a running one's result is dropped. False: no such request."""
        self._at(now)
        request = self._connections.get(connection, {}).get(request_id)
        if request is None:
            return False
        self._withdraw(request, Status.CANCELLED, "cancelled by its client")
        return True

    def disconnect(self, connection: bytes, now: float) -> None:
        """A connection is gone: everything of it ends CANCELLED (with nobody to tell), nothing more of it reaches a model."""
        self._at(now)
        for request in list(self._connections.get(connection, {}).values()):
            self._withdraw(request, Status.CANCELLED, "its connection is gone")

    def _withdraw(self, request: Request, status: Status, error: str) -> None:
        if request.queued:
            self._unqueue(self._models[request.observation.model_id], request, served=False)
        self._end(request, status, error=error)

    # --- results -----------------------------------------------------------------------------------------------------

    def complete(self, call_id: int, result: CallResult, now: float) -> None:
        """A call was answered. Unknown and given up calls are ignored."""
        self._at(now)
        call = self._calls.get(call_id)
        if call is None:
            return
        model = self._models[call.model]
        replica = self._close(model, call, now)
        size = len(call.requests)
        elapsed = now - call.started_at
        self._learn(model, replica, call, result.inference_s, now)
        model.health.succeeded(elapsed)
        replica.health.succeeded(elapsed)
        inference_ms = result.inference_s * 1e3
        replica_id = call.replica.id
        items = result.items
        record = self._record
        name = model.name
        for i, request in enumerate(call.requests):
            if request.done:
                continue
            request.call = None
            item = (
                items[i]
                if i < len(items)
                else ItemError(f"the model answered {len(items)} of {size} requests of a batch")
            )
            if isinstance(item, ItemError):
                if item.expired:
                    record("requests_expired", 1.0, name, request.observation.client_id)
                    self._end(request, Status.EXPIRED, error=item.message)
                    continue
                model.health.item_failed(item.message, now)
                self._failed(model, request, item.message, item.retryable, False, replica_id)
                continue
            queue_s = (call.begins_at if call.begins_at < now else call.started_at) - request.arrival
            outcome = Outcome(request, Status.OK)
            outcome.body = item
            outcome.queue_ms = queue_ms = queue_s * 1e3
            outcome.inference_ms = inference_ms
            outcome.batch_size = size
            outcome.replica = replica_id
            client = request.observation.client_id
            record("scheduling_wait_ms", queue_ms, name, client)
            record("inference_latency_ms", inference_ms, name, client)
            self._finish(outcome)

    def fail(self, call_id: int, error: CallError, now: float) -> None:
        """A call failed as a whole. Unknown and given up calls are ignored."""
        self._at(now)
        call = self._calls.get(call_id)
        if call is not None:
            self._fail(self._models[call.model], call, error, now)

    def _fail(self, model: ModelState, call: Call, error: CallError, now: float) -> None:
        replica = self._close(model, call, now)
        model.health.failed(error.message, now)
        replica.health.failed(error.message, now)
        self._record("dispatch_errors", 1.0, model.name)
        for request in call.requests:
            if not request.done:
                request.call = None
                self._failed(model, request, error.message, error.retryable, error.unavailable, call.replica.id)

    def _failed(
        self, model: ModelState, request: Request, error: str, retryable: bool, unavailable: bool, replica_id: str
    ) -> None:
        """Runs a request again where that is allowed and can be in time, else answers it."""
        request.tried = (*request.tried, replica_id)
        again = retryable and request.attempt < self._max_retries and model.replicas.live
        if again and self._now + model.service.mean(1) < request.expiry:
            request.attempt += 1
            self._record("dispatch_retries", 1.0, model.name, request.observation.client_id)
            self._note(request, "retry", (error,))
            self._enqueue(model, request)
        elif unavailable:
            self._unavailable(request, error)
        else:
            self._end(request, Status.MODEL_ERROR, error=error)

    def _learn(self, model: ModelState, replica: ReplicaState, call: Call, inference_s: float, now: float) -> None:
        """From a call that was answered: its time since it could begin."""
        took = now - call.begins_at
        size = len(call.requests)
        service = model.service
        predicted = service.mean(size) + (0.0 if call.followed else service.overhead_s)
        if service.known and predicted > 0.0:
            replica.took(took / predicted)
            model.replicas.changed(replica)
        service.learn(size, took, from_idle=not call.followed, inference_s=inference_s)

    def _close(self, model: ModelState, call: Call, now: float) -> ReplicaState:
        """The engine counts on no answer to this call any more; its slot goes to the call staged behind it, or becomes free."""
        del self._calls[call.id]
        call.open = False
        self._checks.discard()
        replica = model.replicas.get(call.replica.id)
        if replica is None or call.id not in replica.calls:
            # It was removed, perhaps came back under its name: this call's own record of it still counts.
            replica = ReplicaState(call.replica, 0)
            replica.calls[call.id] = call
            replica.running = 1
            known = False
        else:
            known = True
        del replica.calls[call.id]
        if call.yields:
            call.yields = False
            model.ends.discard()
        if call.staged:
            replica.staged = None
            before = call.behind
            if before is not None and before.open:
                self._ends(model, before, before.ends_at)
            return replica
        after = replica.staged if known else None
        if after is not None and after.behind is call:
            replica.staged = None
            after.staged = False
            after.behind = None
            after.begins_at = now
            self._ends(model, after, now + self._speed(model, replica) * model.service.mean(len(after.requests)))
        else:
            replica.running -= 1
            model.slots.running -= 1
            model.device.running -= 1
            if known:
                model.replicas.changed(replica)
        if known and replica.draining and not replica.calls:
            model.replicas.remove(replica)
        return replica

    def _ends(self, model: ModelState, call: Call, ends_at: float) -> None:
        """A call is predicted to end then, and nothing is staged behind it."""
        if call.yields:
            model.ends.discard()
        call.ends_at = ends_at
        call.yields = True
        model.ends.push(ends_at, call.id, call)

    # --- time --------------------------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Time has passed; call it at `next_wakeup` at the latest."""
        self._at(now)

    def _at(self, now: float) -> None:
        self._now = max(self._now, now)
        self._unsettled = True

    @property
    def unsettled(self) -> bool:
        """Whether taking effects would decide something new; false right after they were taken."""
        return self._unsettled

    def next_wakeup(self) -> float | None:
        """When `advance` must be called next if nothing else happens; None: never."""
        self._settle()
        entry = self._checks.top()
        wake: float = INFINITY if entry is None else entry[0]
        for model in self._waiting.values():
            wake = min(wake, model.wake)
        return None if wake == INFINITY else wake

    # --- effects -----------------------------------------------------------------------------------------------------

    def take_calls(self) -> list[Call]:
        """Calls to send, since the last time."""
        self._settle()
        taken, self._new_calls = self._new_calls, []
        return taken

    def take_outcomes(self) -> list[Outcome]:
        """Requests that ended, since the last time."""
        self._settle()
        taken, self._outcomes = self._outcomes, []
        return taken

    def take_abandoned(self) -> list[Call]:
        """Calls that nobody waits for any more, since the last time; the backend may cancel them. Until it answers, or the call times
        out, they keep their slots: a model that hangs is not given more work because its clients have left.
        """
        self._settle()
        taken, self._abandoned = self._abandoned, []
        return taken

    # --- life cycle --------------------------------------------------------------------------------------------------

    def drain(self, now: float) -> None:
        """From now on submissions end SHUTTING_DOWN; what was accepted goes on."""
        self._at(now)
        self._draining = True

    def abort(self, now: float) -> None:
        """Everything left ends SHUTTING_DOWN."""
        self.drain(now)
        for outstanding in list(self._connections.values()):
            for request in list(outstanding.values()):
                self._withdraw(request, Status.SHUTTING_DOWN, "the server is shutting down")

    @property
    def pending(self) -> int:
        """Requests without an outcome."""
        return self._pending

    def use_scheduler(self, name: str, now: float, **options: Any) -> None:
        """Changes the strategy; what is queued stays queued.

        Raises:
            ConfigError: unknown name or option; the strategy stays as it was.
        """
        self._at(now)
        scheduler = make_scheduler(name, options, self._config.scheduling)
        self._scheduler = scheduler
        for model in self._models.values():
            waiting = [r for r in model.queue if not r.attempt]
            for request in waiting:
                model.orders[request.lane].discard(request, False)
            model.orders = {} if model.affinity else {None: scheduler.order()}
            for request in waiting:
                self._push(model, request)

    # --- what people ask ---------------------------------------------------------------------------------------------

    def ready(self, model: str) -> bool:
        """Whether a model has a live replica."""
        found = self._models.get(model)
        return found is not None and found.replicas.live > 0

    def waiting(self, model: str) -> int:
        """Requests that wait for a call of the model."""
        found = self._models.get(model)
        return 0 if found is None else len(found.queue)

    def health(self) -> dict[str, Any]:
        """Per model and replica: latency, errors, queue, calls, learned times. Plain data, times in ms."""
        return {name: self._model_health(m) for name, m in self._models.items()}

    def _model_health(self, m: ModelState) -> dict[str, Any]:
        service = m.service
        return {
            "ready": m.replicas.live > 0,
            "queue_depth": len(m.queue),
            "queue_bytes": m.queue.size_bytes,
            "in_flight": sum(len(r.calls) for r in m.replicas),
            "contended": m.contended_until > self._now,
            "clients": {
                "live": m.streams.live(self._now - _LIVE_S),
                "known": len(m.streams),
                "evicted": m.streams.evicted,
            },
            "service_time": {
                "call_ms": service.call_s * 1e3,
                "item_ms": service.item_s * 1e3,
                "overhead_ms": service.overhead_s * 1e3,
                "margin_ms": service.margin_s * 1e3,
            },
            **m.health.as_dict(),
            "replicas": {
                r.replica.id: {
                    "path": r.replica.path,
                    "slots": r.replica.slots,
                    "in_flight": len(r.calls),
                    "draining": r.draining,
                    "speed": r.speed,
                    **r.health.as_dict(),
                }
                for r in m.replicas
            },
        }

    def explain(self, client_id: str, request_id: int) -> list[dict[str, Any]]:
        """What was decided about a recent request and why, in order; empty: not known (any more). O(explain_records)."""
        return [
            {"at": at, "decision": what, **dict(zip(_EXPLAINED[what], values, strict=True))}
            for (at, client, number, what, values) in self._explain
            if number == request_id and client == client_id
        ]

    # --- the decisions -----------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        if not self._unsettled:
            return
        self._unsettled = False
        now = self._now
        self._check_calls(now)
        waiting = self._waiting
        if waiting:
            for model in list(waiting.values()):
                self._expire(model, now)
            self._dispatch(now)
            for model in list(waiting.values()):
                self._refuse_hopeless(model, now)
        if now >= self._evict_at:
            self._evict_at = now + _EVICT_EVERY_S
            for model in self._models.values():
                for stream in model.streams.evict(now - self._forget_after_s):
                    if stream.replica is not None:
                        kept = model.replicas.get(stream.replica)
                        if kept is not None:
                            kept.assigned -= 1
                    if model.heaviest is stream:
                        model.heaviest = None

    def _check_calls(self, now: float) -> None:
        checks = self._checks
        while True:
            entry = checks.top()
            if entry is None or entry[0] > now:
                return
            call = checks.pop()
            if now >= call.deadline:
                message = f"replica {call.replica.id} of model {call.model!r} gave no answer within {self._call_timeout_s * 1e3:g} ms"
                self._abandoned.append(call)
                self._fail(self._models[call.model], call, CallError(message, retryable=True), now)
                continue
            for request in call.requests:
                if not request.done and request.expiry + self._overrun_s <= now:
                    self._end(request, Status.EXPIRED, error="its deadline passed while it ran")
                    self._record("requests_expired", 1.0, call.model, request.observation.client_id)
            if call.open:
                self._check_later(call)

    def _check_later(self, call: Call) -> None:
        at = call.deadline
        for request in call.requests:
            if not request.done:
                late = request.expiry + self._overrun_s
                at = min(at, late)
        self._checks.push(at, call.id, call)

    def _expire(self, model: ModelState, now: float) -> None:
        """What still waits at its expiry is answered then."""
        queue = model.queue
        while True:
            request = queue.first_to_expire()
            if request is None:
                return
            if request.expiry > now:
                model.wake = request.expiry
                return
            self._unqueue(model, request, served=False)
            self._missed(model, request, now)
            self._record("requests_expired", 1.0, model.name, request.observation.client_id)
            self._end(request, Status.EXPIRED, error="its deadline passed while it waited")

    def _missed(self, model: ModelState, request: Request, now: float) -> None:
        """Not everything could be in time: from now on levels and shares count. A budget that no idle model could meet proves nothing."""
        if request.expiry - request.arrival >= 2.0 * model.service.mean(1):
            model.contended_until = now + self._contention_hold_s

    def _refuse_hopeless(self, model: ModelState, now: float) -> None:
        """Early refusal of what can't be in time wherever it goes next."""
        service = model.service
        if not self._predictive or not service.known:
            return
        start = now
        if not (model.slots.free and model.device.free and model.replicas.free() is not None):
            call = model.next_end()
            if call is not None and call.ends_at > now:
                start = call.ends_at
        needs = service.mean(1) + self._deadline_margin_s
        queue = model.queue
        while True:
            request = queue.first_to_expire()
            if request is None:
                return
            if request.expiry >= start + needs:
                # At that time at the latest it is known that it can't be in time.
                model.wake = min(model.wake, max(now, request.expiry - needs) + 1e-6)
                return
            self._refuse(model, request, start + needs, now)

    def _refuse(self, model: ModelState, request: Request, done_at: float, now: float) -> None:
        """Early refusal of a queued request that would be done at `done_at`, after its deadline."""
        stream = request.stream
        over = stream is not None and model.over_share(stream)
        self._unqueue(model, request, served=False)
        self._missed(model, request, now)
        late_ms = (done_at - request.expiry) * 1e3
        if over:
            reason, text = Reason.OVER_SHARE, "its client has more than its share of the queue"
        else:
            reason, text = Reason.CANNOT_MEET_DEADLINE, f"it would be {late_ms:.1f} ms late"
        retry = min(_MAX_RETRY_AFTER_MS, max(1.0, late_ms))
        self._end(request, Status.REJECTED, reason, text, retry_after_ms=retry)

    def _dispatch(self, now: float) -> None:
        """Sends what can go, most urgent first, until no model that waits has a place to go or wants to go."""
        held: set[str] = set()
        turns = self._scheduler.takes_turns
        while True:
            openings = [(m, o) for m in self._waiting.values() if m.name not in held and (o := self._opening(m, now))]
            if not openings:
                return
            model, opening = openings[0]
            if len(openings) > 1:
                model, opening = self._next_model(openings, turns, now)
            if not self._start(model, opening, now):
                held.add(model.name)

    def _next_model(
        self, openings: list[tuple[ModelState, _Opening]], turns: bool, now: float
    ) -> tuple[ModelState, _Opening]:
        """Which of several models that could start a call does."""
        if turns:
            return min(openings, key=lambda pair: (pair[0].turn, pair[0].index))
        contended = any(m.contended_until > now for m, _ in openings)
        ranked: list[tuple[int, float, int, tuple[ModelState, _Opening]]] = []
        for model, opening in openings:
            first = opening.retry
            if first is None and opening.order is not None:
                first = opening.order.first(model.contended_until > now)
            if first is not None:
                ranked.append(
                    (first.observation.priority if contended else 0, first.key, model.index, (model, opening))
                )
        if contended:
            levels = sorted({rank[0] for rank in ranked})
            best = self._share.best(levels)
            self._share.served(best, levels)
            ranked = [rank for rank in ranked if rank[0] == best]
        return min(ranked)[3]

    def _opening(self, model: ModelState, now: float) -> _Opening | None:
        """Where a call of a model could go now: a replica with room, else behind a call that is about to end."""
        if model.slots.free and model.device.free:
            if model.retries:
                for request in model.retries:
                    replica = self._other_replica(model, request)
                    if replica is not None:
                        return _Opening(replica, None, request, None)
            if not model.affinity:
                replica = model.replicas.free()
                if replica is not None and len(model.queue) > len(model.retries):
                    return _Opening(replica, model.orders[None], None, None)
            else:
                opening = self._affine_opening(model, now)
                if opening is not None:
                    return opening
        if not self._staging or model.service.samples < _CONFIDENT_CALLS or len(model.queue) == len(model.retries):
            return None
        call = model.next_end()
        if call is None or call.staged or call.replica.slots != 1 or call.replica.path != "direct":
            return None
        replica = model.replicas.get(call.replica.id)
        if replica is None or replica.draining or replica.staged is not None:
            return None
        order = model.orders.get(call.replica.id if model.affinity else None)
        if order is None:
            return None
        ahead = model.service.overhead_s + _STAGE_AHEAD_S
        if call.ends_at - call.begins_at < 2.0 * ahead:
            return None  # it would be staged as soon as its predecessor is sent: the slot is free soon enough
        if now < call.ends_at - ahead:
            model.wake = min(model.wake, call.ends_at - ahead)
            return None
        if now > call.ends_at + max(ahead, model.service.margin_s):
            return None  # it takes longer than predicted: nobody knows when it will end
        return _Opening(replica, order, None, call)

    def _affine_opening(self, model: ModelState, now: float) -> _Opening | None:
        best: tuple[float, int, _Opening] | None = None
        for replica_id, order in model.orders.items():
            replica = None if replica_id is None else model.replicas.get(replica_id)
            if replica is None or not replica.has_room:
                continue
            first = order.first(model.contended_until > now)
            if first is not None and (best is None or first.key < best[0]):
                best = (first.key, replica.index, _Opening(replica, order, None, None))
        return None if best is None else best[2]

    def _other_replica(self, model: ModelState, request: Request) -> ReplicaState | None:
        """A replica with room for a request that failed before: one it was not tried on, where such a one lives."""
        live = [r for r in model.replicas if not r.draining]
        untried = [r for r in live if r.replica.id not in request.tried]
        return min(
            (r for r in untried or live if r.has_room), key=lambda r: ((r.running + 1) * r.speed, r.index), default=None
        )

    def _speed(self, model: ModelState, replica: ReplicaState) -> float:
        # With one replica the model's own line says all; its ratio would only add noise.
        return replica.speed if len(model.replicas) > 1 else 1.0

    def _start(self, model: ModelState, opening: _Opening, now: float) -> bool:
        """Forms a call and sends it. False: it is worth waiting for more, or everything was refused."""
        replica, order, retry, follows = opening
        service = model.service
        speed = self._speed(model, replica)
        item = service.item_s * speed
        runs = service.call_s * speed + (service.overhead_s if follows is None else 0.0)
        start = now if follows is None else max(now, follows.ends_at)
        fixed = runs + service.margin_s + self._deadline_margin_s
        contended = model.contended_until > now
        depth = len(model.queue)
        if retry is not None or order is None:
            assert retry is not None, "an opening has an order or a retry"
            requests = [retry]
            self._unqueue(model, retry, served=True)
        else:
            limit = model.batch_size_of(replica)
            if limit > 1 and service.known:
                # A better level is to find its next batch in time even when both run long.
                first = order.first(contended)
                levels = contended and first is not None and order.rivals(first) < depth
                spare = (service.tail_s if levels else service.margin_s) + self._deadline_margin_s
                spare += service.overhead_s + _STAGE_AHEAD_S
                limit = batch_limit(runs, item, model.tight_budget.value - spare, limit)
            if limit > 1 or model.most > 1:
                batch = _Batch(model, min(limit, depth), limit, fixed, item, start)
                hold = self._scheduler.hold_until(batch, now)
                if hold > now and batch.size < limit:
                    model.wake = min(model.wake, hold)
                    return False
            requests = self._gather(model, order, limit, fixed, item, start, contended, now)
            if not requests:
                return False

        self._call_count += 1
        call = Call(self._call_count, model.name, replica.replica, requests, now, now + self._call_timeout_s)
        size = call.unanswered = len(requests)
        call.begins_at = start
        self._calls[call.id] = call
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
        self._ends(model, call, start + runs + item * size)
        model.turn = call.id
        for request in requests:
            request.dispatched_at = now
            request.call = call
        self._check_later(call)
        if self._explain.maxlen:
            values = (size, replica.replica.id, depth, call.staged, contended, call.ends_at)
            for request in requests:
                self._note(request, "dispatch", ((now - request.arrival) * 1e3, *values))
        self._new_calls.append(call)
        self._record("queue_depth", float(depth), model.name)
        self._record("batch_size", float(size), model.name)
        return True

    def _gather(
        self,
        model: ModelState,
        order: Order,
        limit: int,
        fixed: float,
        item: float,
        start: float,
        contended: bool,
        now: float,
    ) -> list[Request]:
        """Takes the requests of the next call out of the queue (docs/scheduling.md, "Batches").

        With refusal on nothing is taken that would miss its deadline in this call, and nothing whose deadline is so near that it would
        make the batch too small for the device to keep up: that is refused.
        """
        judge = self._predictive and model.service.known
        wanted = limit
        if judge and limit > 1 and not contended:
            rate = model.rate.at(now) / max(1, model.replicas.live)
            wanted = min(limit, max(1, math.ceil(enough(fixed, item, rate) - 1e-9))) if rate * item < 1.0 else limit
        requests: list[Request] = []
        room = limit
        while len(requests) < room:
            request = order.first(contended)
            if request is None:
                break
            if judge:
                size = fits(request.expiry, start, fixed, item, limit)
                need = min(wanted, len(requests) + order.rivals(request))
                if size < need or size < 1:
                    self._refuse(model, request, start + fixed + item * max(1, need), now)
                    continue
                if size <= len(requests):
                    break
                room = min(room, size)
            self._unqueue(model, request, served=True)
            requests.append(request)
        return requests

    # --- outcomes ----------------------------------------------------------------------------------------------------

    def _unavailable(self, request: Request, error: str) -> None:
        self._end(request, Status.UNAVAILABLE, error=error, retry_after_ms=self._retry_after_ms)

    def _end(
        self,
        request: Request,
        status: Status,
        reason: Reason = Reason.NONE,
        error: str = "",
        retry_after_ms: float = 0.0,
    ) -> None:
        """Decides a request that was not answered by its model."""
        outcome = Outcome(request, status, reason, error, retry_after_ms)
        outcome.queue_ms = ((request.dispatched_at or self._now) - request.arrival) * 1e3
        call = request.call
        self._finish(outcome)
        if call is not None:
            request.call = None
            call.unanswered -= 1
            if not call.unanswered and call.open:
                self._abandoned.append(call)

    def _finish(self, outcome: Outcome) -> None:
        """The one place where a request ends."""
        request = outcome.request
        assert not request.done, "a request ends once"
        request.done = True
        observation = request.observation
        connection = request.connection
        outstanding = self._connections[connection]
        del outstanding[observation.request_id or -request.sequence]
        if not outstanding:
            del self._connections[connection]
        self._pending -= 1
        self._outcomes.append(outcome)
        e2e_ms = (self._now - request.arrival) * 1e3
        if outcome.status is Status.OK:
            self._record("e2e_latency_ms", e2e_ms, observation.model_id, observation.client_id)
        if self._explain.maxlen:
            self._note(request, "outcome", (outcome.status.name, outcome.reason.name, outcome.error, e2e_ms))

    def _note(self, request: Request, what: str, values: tuple[Any, ...]) -> None:
        observation = request.observation
        self._explain.append((self._now, observation.client_id, observation.request_id, what, values))


_EXPLAINED = {
    "dispatch": ("waited_ms", "batch_size", "replica", "queue_depth", "staged", "contended", "predicted_end"),
    "retry": ("error",),
    "outcome": ("status", "reason", "error", "e2e_ms"),
}


def _urgency(request: Request) -> tuple[float, int]:
    return request.key, request.sequence


def _oldest_sequence(model: ModelState) -> int:
    oldest = model.queue.oldest()
    assert oldest is not None, "only models with something queued are asked"
    return oldest.sequence


class _Batch:
    """What a scheduler sees of a batch that could leave now (scheduling/base.py)."""

    __slots__ = ("_fixed", "_item", "_model", "_start", "limit", "size")

    def __init__(self, model: ModelState, size: int, limit: int, fixed: float, item: float, start: float) -> None:
        self.size = size
        self.limit = limit
        self._model = model
        self._fixed = fixed
        self._item = item
        self._start = start

    @property
    def oldest_arrival(self) -> float:
        oldest = self._model.queue.oldest()
        return INFINITY if oldest is None else oldest.arrival

    def deadline_window(self, now: float) -> float:
        model = self._model
        first = model.queue.first_to_expire()
        if first is None or self.size >= self.limit or not model.service.known:
            return now
        # From `start` on, as a batch that is staged begins only then.
        lead = self._start - now
        latest = first.expiry - self._fixed - self._item * self.size - lead
        return worth_waiting(now, self.size, self.limit, self._fixed, self._item, latest, model.forecast.next(now))
