"""The engine: decides what is queued, refused, dispatched and answered. No I/O, no clock: `now` is an argument everywhere.

`now` is monotonic seconds and never goes back. Not thread-safe: one engine belongs to one thread.

Inputs are only noted when they come; what follows from them is decided once for all of them when the driver takes effects
(`take_calls`, `take_outcomes`, `take_abandoned`, `next_wakeup`). So observations that arrive in one burst can leave in one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from inferential.config.schema import InferentialConfig
from inferential.scheduling.base import make_scheduler
from inferential.scheduling.calls import Calls
from inferential.scheduling.dispatch import Dispatcher
from inferential.scheduling.journal import Journal
from inferential.scheduling.model import STAGING_PATH, ModelState, Slots
from inferential.scheduling.order import Weights, find_policy
from inferential.scheduling.replicas import ReplicaState
from inferential.scheduling.request import INFINITY, Call, CallError, CallResult, ItemError, Outcome, Replica, Request
from inferential.scheduling.waiting import WaitingRoom
from inferential.types import Reason, Status

_EVICT_EVERY_S = 1.0
_GIVEN_UP = 1000  # calls that timed out, of which a result may still come
_LIVE_S = 10.0  # a client is live for so long after its last observation, then idle until it is evicted


class MetricsSink(Protocol):
    """Where the engine reports numbers (metrics.collector in the server, anything in a simulation)."""

    def record(self, name: str, value: float, model: str | None = None, client: str | None = None) -> None:
        """One point of a metric."""


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
        scheduling, dispatch = config.scheduling, config.dispatch
        self._scheduling = scheduling
        self._record = metrics.record
        self._policy = find_policy(scheduling.policy)
        self._weights = Weights.of(scheduling)
        self._default_step_s = scheduling.default_step_ms / 1e3
        self._ttl_s = config.queue.request_ttl_ms / 1e3
        self._max_retries = dispatch.max_retries
        self._retry_after_ms = dispatch.retry_after_ms
        self._cadence_alpha = config.cadence.alpha
        self._forget_after_s = config.cadence.forget_after_s
        self._spreads = scheduling.phase_shift == "spread"
        self._client_budgets = {
            name: c.latency_budget_ms / 1e3 for name, c in config.clients.items() if c.latency_budget_ms is not None
        }
        self._client_weights = {name: c.share for name, c in config.clients.items()}

        scheduler = make_scheduler(scheduling.strategy, scheduling.options, scheduling)
        self._journal = Journal(scheduling.explain_records)
        self._room = WaitingRoom(config, scheduler, end=self._end, record=self._record, let_go=self._let_go)
        self._calls = Calls(dispatch.call_timeout_ms / 1e3, scheduling.overrun_ms / 1e3)
        self._dispatcher = Dispatcher(
            config, self._room, self._calls, end=self._end, record=self._record, journal=self._journal
        )
        shared = None if scheduling.pipeline_dispatch.enabled else Slots(scheduling.max_concurrent_dispatch)
        devices: dict[str, Slots] = {}
        self._models: dict[str, ModelState] = {}
        for index, name in enumerate(models):
            settings = config.models.of(name)
            device = Slots(INFINITY) if settings.device is None else devices.setdefault(settings.device, Slots(1))
            slots = shared or Slots(settings.max_inflight)
            self._models[name] = ModelState(name, index, config, scheduler, slots, device, self._room.load)

        self._connections: dict[bytes, dict[int, Request]] = {}
        """Requests without an outcome, by connection and request id (v1: minus their sequence number)."""
        self._new_calls: list[Call] = []
        self._outcomes: list[Outcome] = []
        self._abandoned: list[Call] = []
        self._given_up: dict[int, list[tuple[str, str]]] = {}
        """Calls that timed out, the oldest first: model and client of each request."""
        self._now = 0.0
        self._unlearned: tuple[ModelState, ReplicaState, Call, CallResult, float] | None = None
        """The call that was answered last, while nothing was learned from it."""
        self._unsettled = False
        self._draining = False
        self._sequence = 0
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
        m.replicas.drain(replica)
        m.replicas_changed()
        if not drained or not replica.calls:
            m.replicas.remove(replica)
        if not drained:
            error = CallError(
                f"replica {replica_id} of model {model!r} is gone: {reason}", retryable=True, unavailable=True
            )
            for call in list(replica.calls.values()):
                self._fail(m, call, error)
        if not m.replicas.live:
            for request in list(m.queue):
                self._room.remove(m, request, served=False)
                self._unavailable(request, f"model {model!r} has no live replica: {reason}")
            m.orders.pop(replica_id, None)
        elif m.affinity and replica_id in m.orders:
            self._room.move(m, replica_id)

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
        model.forget_excess()
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
            model.levels.arrived(request.level, budget, arrival)
        if model.phases is not None:
            model.phases.arrived(cadence, arrival)

        if self._draining:
            self._end(request, Status.SHUTTING_DOWN, error="the server is shutting down")
        elif not model.replicas.live:
            self._unavailable(request, f"model {model.name!r} has no live replica")
        else:
            self._room.admit(model, request)

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
            self._room.remove(self._models[request.observation.model_id], request, served=False)
        self._end(request, status, error=error)

    # --- results -----------------------------------------------------------------------------------------------------

    def complete(self, call_id: int, result: CallResult, now: float) -> None:
        """A call was answered. That of an unknown one is ignored, that of one that was given up counted."""
        self._at(now)
        call = self._calls.get(call_id)
        if call is None:
            given_up = self._given_up.pop(call_id, None)
            if given_up is not None:
                for (name, client), item in zip(given_up, result.items, strict=False):
                    if not isinstance(item, ItemError):
                        self._record("late_replies", 1.0, name, client)
            return
        model = self._models[call.model]
        self._learn_unstaged(model, call, now)
        replica = self._calls.close(model, call, now)
        size = len(call.requests)
        self._unlearned = (model, replica, call, result, now)
        inference_ms = result.inference_s * 1e3
        replica_id = call.replica.id
        items = result.items
        record = self._record
        name = model.name
        for i, request in enumerate(call.requests):
            if request.done:
                if i < len(items) and not isinstance(items[i], ItemError):
                    record("late_replies", 1.0, name, request.observation.client_id)
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
                self._learn()
                model.health.item_failed(item.message, size, now)
                replica.health.item_failed(item.message, size, now)
                self._failed(model, request, replica_id, CallError(item.message, item.retryable))
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
        _release(call)

    def fail(self, call_id: int, error: CallError, now: float) -> None:
        """A call failed as a whole. Unknown and given up calls are ignored."""
        self._at(now)
        call = self._calls.get(call_id)
        if call is not None:
            self._fail(self._models[call.model], call, error)
            _release(call)

    def _fail(self, model: ModelState, call: Call, error: CallError) -> None:
        now = self._now
        replica = self._calls.close(model, call, now)
        model.health.failed(error.message, now)
        replica.health.failed(error.message, now)
        self._record("dispatch_errors", 1.0, model.name)
        for request in call.requests:
            if not request.done:
                request.call = None
                self._failed(model, request, call.replica.id, error)

    def _failed(self, model: ModelState, request: Request, replica_id: str, error: CallError) -> None:
        """Runs a request again where that is allowed and can be in time, else answers it."""
        request.tried = (*request.tried, replica_id)
        again = error.retryable and request.attempt < self._max_retries and model.replicas.live
        if again and self._now + model.service.mean(1) < request.expiry:
            request.attempt += 1
            self._record("dispatch_retries", 1.0, model.name, request.observation.client_id)
            if self._journal.on:
                self._journal.retried(self._now, request, error.message)
            self._room.add(model, request)
        elif error.unavailable:
            self._unavailable(request, error.message)
        else:
            self._end(request, Status.MODEL_ERROR, error=error.message)

    def _learn(self) -> None:
        """From the call that was answered last, unless that was done: its time since it could begin.

        Before anything is decided that may depend on it, but not before its answers have left: they would wait for it.
        """
        unlearned, self._unlearned = self._unlearned, None
        if unlearned is None:
            return
        model, replica, call, result, now = unlearned
        elapsed = now - call.started_at
        model.health.succeeded(elapsed)
        replica.health.succeeded(elapsed)
        took = now - call.begins_at
        size = len(call.requests)
        service = model.service
        predicted = service.mean(size) + (0.0 if call.followed else service.overhead_s)
        speed = model.speed(replica)
        if service.known and predicted > 0.0:
            replica.took(took / predicted)
            model.replicas.changed(replica)
        service.learn(size, took, from_idle=not call.followed, inference_s=result.inference_s, speed=speed)
        if call.lead_s is not None and result.ahead_s is not None:
            service.learn_lead(call.lead_s - result.ahead_s)

    def _learn_unstaged(self, model: ModelState, call: Call, now: float) -> None:
        """From a call that is about to be closed, with nothing staged behind it although something waits: it ended early, most often."""
        service = model.service
        if (
            call.staged
            or not call.yields
            or not model.queue
            or not service.lead_known
            or call.replica.path != STAGING_PATH
        ):
            return
        replica = model.replicas.get(call.replica.id)
        if replica is not None and replica.full:
            # Sent just in time, the next would have been on its way for as long as it takes to reach an idle replica.
            service.learn_lead(service.overhead_s + call.ends_at - now)

    # --- time --------------------------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Time has passed; call it at `next_wakeup` at the latest."""
        self._at(now)

    def _at(self, now: float) -> None:
        self._learn()
        if now > self._now:
            self._now = now
        self._unsettled = True

    @property
    def unsettled(self) -> bool:
        """Whether taking effects would decide something new; false right after they were taken."""
        return self._unsettled

    def next_wakeup(self) -> float | None:
        """When `advance` must be called next if nothing else happens; None: never."""
        if self._unsettled:
            self._settle()
        self._learn()
        wake = self._calls.next_check
        for model in self._room.models.values():
            wake = min(wake, model.wake)
        return None if wake == INFINITY else wake

    # --- effects -----------------------------------------------------------------------------------------------------

    def take_calls(self) -> list[Call]:
        """Calls to send, since the last time."""
        if self._unsettled:
            self._settle()
        taken, self._new_calls = self._new_calls, []
        return taken

    def take_outcomes(self) -> list[Outcome]:
        """Requests that ended, since the last time."""
        if self._unsettled:
            self._settle()
        return self.outcomes_so_far()

    def outcomes_so_far(self) -> list[Outcome]:
        """The same, but decides nothing."""
        taken, self._outcomes = self._outcomes, []
        return taken

    def take_abandoned(self) -> list[Call]:
        """Calls that nobody waits for any more, since the last time; the backend may cancel them. Until it answers, or the call times
        out, they keep their slots: a model that hangs is not given more work because its clients have left.
        """
        if self._unsettled:
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
        self._room.use(make_scheduler(name, options, self._scheduling), self._models.values())

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
        self._learn()
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
        return self._journal.of(client_id, request_id)

    # --- the decisions -----------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        self._unsettled = False
        now = self._now
        if now >= self._calls.next_check:
            self._learn()
            self._check_calls(now)
        if self._room.models:
            self._learn()
            self._let_go()
        if now >= self._evict_at:
            self._evict_at = now + _EVICT_EVERY_S
            for model in self._models.values():
                model.forget(now, now - self._forget_after_s)

    def _let_go(self) -> None:
        self._dispatcher.expire(self._now)
        self._dispatcher.dispatch(self._now, self._new_calls)

    def _check_calls(self, now: float) -> None:
        """Gives up calls that got no answer, and answers their requests that are too late for one."""
        calls = self._calls
        for call, late in calls.due(now):
            if now >= call.deadline:
                message = f"replica {call.replica.id} of model {call.model!r} gave no answer within {calls.timeout_s * 1e3:g} ms"
                if call.unanswered:
                    self._abandoned.append(call)
                self._given_up[call.id] = [(call.model, r.observation.client_id) for r in call.requests]
                if len(self._given_up) > _GIVEN_UP:
                    del self._given_up[next(iter(self._given_up))]
                self._fail(self._models[call.model], call, CallError(message, retryable=True))
                continue
            for request in late:
                self._end(request, Status.EXPIRED, error="its deadline passed while it ran")
                self._record("requests_expired", 1.0, call.model, request.observation.client_id)
            calls.check_later(call)

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
            if call in self._new_calls:  # nothing of it has left: it needs not reach the model
                call.requests.remove(request)
                if not call.requests:
                    self._new_calls.remove(call)
                    self._calls.close(self._models[call.model], call, self._now)
            elif not call.unanswered and call.open:
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
        if self._spreads:
            self._spread(outcome)
        self._outcomes.append(outcome)
        e2e_ms = (self._now - request.arrival) * 1e3
        if outcome.status is Status.OK:
            self._record("e2e_latency_ms", e2e_ms, observation.model_id, observation.client_id)
        if self._journal.on:
            self._journal.ended(self._now, request, outcome.status, outcome.reason, outcome.error, e2e_ms)

    def _spread(self, outcome: Outcome) -> None:
        """Asks a client whose request had to wait for longer than a call, or was not served for its deadline, to come later in its
        period, where that moment is crowded and a later one is not.
        """
        request = outcome.request
        observation, stream = request.observation, request.stream
        if stream is None or observation.is_v1 or observation.slot:
            return  # a hint is for a connection's loop; bodies that share one can't follow it
        model = self._models[observation.model_id]
        if outcome.status is Status.OK:
            self._learn()
            if outcome.queue_ms <= model.service.mean(1) * 1e3:
                return
        elif outcome.status is not Status.EXPIRED and outcome.status is not Status.REJECTED:
            return
        assert model.phases is not None, "phase_shift is a setting of all models"
        shift_s = model.phases.shift_s(stream.cadence, self._now)
        if shift_s:
            stream.cadence.ask(shift_s)
            outcome.phase_shift_ms = shift_s * 1e3


def _release(call: Call) -> None:
    """The payloads of a call that its backend is done with, but for what is tried again: heaps may know its requests for longer."""
    for request in call.requests:
        if request.done:
            request.frames = ()
