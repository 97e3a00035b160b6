"""What waits at all models: admission within the bounds, places taken over, lanes, and leaving."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from inferential.config.schema import InferentialConfig
from inferential.scheduling.base import Scheduler
from inferential.scheduling.model import ModelState
from inferential.scheduling.queue import Load
from inferential.scheduling.request import Request
from inferential.types import Reason, Status

MAX_RETRY_AFTER_MS = 1000.0


class End(Protocol):
    """Gives a request, which waits no more, its outcome."""

    def __call__(
        self,
        request: Request,
        status: Status,
        reason: Reason = Reason.NONE,
        error: str = "",
        retry_after_ms: float = 0.0,
    ) -> None:
        """See Outcome."""


class Record(Protocol):
    """One point of a metric."""

    def __call__(self, name: str, value: float, model: str | None = None, client: str | None = None) -> None:
        """See MetricsSink."""


class WaitingRoom:
    """The queues and orders of all models. The one way into them and the one way out."""

    def __init__(
        self,
        config: InferentialConfig,
        scheduler: Scheduler,
        *,
        end: End,
        record: Record,
        let_go: Callable[[], None],
    ) -> None:
        """`let_go` has everything leave that has a place to go now."""
        queue = config.queue
        self.scheduler = scheduler
        self.load = Load()
        self.models: dict[str, ModelState] = {}
        """Those with something that waits, in the order in which they began to."""
        self._end = end
        self._record = record
        self._let_go = let_go
        self._max_requests = queue.max_requests
        self._max_requests_per_model = queue.max_requests_per_model
        self._max_bytes = queue.max_bytes
        self._max_bytes_per_model = queue.max_bytes_per_model
        self._drop_oldest = queue.overflow == "drop_oldest"

    def admit(self, model: ModelState, request: Request) -> None:
        """A new request waits, or is refused, or another one is refused for its sake."""
        size = request.size_bytes
        largest = min(self._max_bytes, self._max_bytes_per_model)
        if size > largest:
            error = f"an observation of {size} bytes is more than a queue may hold ({largest} bytes)"
            self._end(request, Status.REJECTED, Reason.TOO_LARGE, error)
            return
        if model.latest or model.latest_only or request.observation.latest_only:
            if not self._drop_oldest and self._too_large_to_replace(model, request):
                self._overflow(model, request, f"the queue of model {model.name!r} is full")
                return
            self._replace(model, request)
        if not self._full(model, size) or self._make_room(model, request):
            self.add(model, request)
        else:
            self._forget(model, request)

    def _full(self, model: ModelState, size: int, count: int = 1) -> bool:
        """Whether so many requests more, of `size` bytes together, are too many."""
        queue, load = model.queue, self.load
        return (
            len(queue) + count > self._max_requests_per_model
            or queue.size_bytes + size > self._max_bytes_per_model
            or load.requests + count > self._max_requests
            or load.size_bytes + size > self._max_bytes
        )

    def _too_large_to_replace(self, model: ModelState, request: Request) -> bool:
        """Whether a newcomer does not fit in the place of the one that it would replace, which then stays."""
        older = self._older(model, request)
        if older is None or not self._full(model, request.size_bytes - older.size_bytes, 0):
            return False
        self._let_go()
        older = self._older(model, request)
        return older is not None and self._full(model, request.size_bytes - older.size_bytes, 0)

    def _older(self, model: ModelState, request: Request) -> Request | None:
        """The waiting one whose place a newcomer takes."""
        observation = request.observation
        return None if observation.is_v1 else model.latest.get((request.connection, observation.slot))

    def _make_room(self, model: ModelState, request: Request) -> bool:
        """Brings the queues down until a newcomer fits in; False: it was refused instead."""
        self._let_go()  # what came in one burst is no overflow while models are idle
        size, queue, load = request.size_bytes, model.queue, self.load
        while len(queue) >= self._max_requests_per_model or queue.size_bytes + size > self._max_bytes_per_model:
            if not self._overflow(model, request, f"the queue of model {model.name!r} is full"):
                return False
        while load.requests >= self._max_requests or load.size_bytes + size > self._max_bytes:
            with_oldest = min(self.models.values(), key=_oldest_sequence)
            if not self._overflow(with_oldest, request, "the server's queues are full"):
                return False
        return True

    def _replace(self, model: ModelState, request: Request) -> None:
        """Newest observation wins: ends the queued one that this one replaces; and this one may be replaced, where it says so."""
        observation = request.observation
        if observation.is_v1:
            return
        older = self._older(model, request)
        if older is not None:
            self.remove(model, older, served=False)
            self._end(older, Status.SUPERSEDED, error="a newer observation took its place")
            # It takes the older one's place, else a client that sends often enough would never be served.
            request.key = min(request.key, older.key)
        if model.latest_only or observation.latest_only:
            model.latest[(request.connection, observation.slot)] = request

    def _overflow(self, model: ModelState, newest: Request, what: str) -> bool:
        """Frees a place in a model's queue; False: the newest was refused instead."""
        heaviest = model.heaviest
        over = heaviest is not None and model.over_share(heaviest)
        if self._drop_oldest:
            oldest = heaviest.oldest() if over and heaviest is not None else model.queue.oldest()
            assert oldest is not None, "a full queue has an oldest request"
            victim, text = oldest, f"{what}; the oldest was dropped"
            self.remove(model, victim, served=False)
        else:
            victim, text = newest, what
            over = over and newest.stream is heaviest
        observation = victim.observation
        self._record("queue_full_drops", 1.0, observation.model_id, observation.client_id)
        reason = Reason.QUEUE_FULL
        if over:
            reason, text = (
                Reason.OVER_SHARE,
                f"{what}, and client {observation.client_id!r} has more than its share of it",
            )
        self._end(victim, Status.REJECTED, reason, text, retry_after_ms=_backlog_ms(model))
        return victim is not newest

    def add(self, model: ModelState, request: Request) -> None:
        """A request begins to wait, for the first time or (as a retry, beyond the bounds) again."""
        queue = model.queue
        if not queue:
            self.models[model.name] = model
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

    def remove(self, model: ModelState, request: Request, *, served: bool) -> None:
        """A request waits no more; `served`: it goes to the model."""
        queue = model.queue
        if not served:
            request.frames = ()  # heaps may know it for longer
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
            stream.waiting.clear()  # which else would keep payloads until the client's next request
        if model.latest:
            self._forget(model, request)
        if not queue:
            del self.models[model.name]

    def _forget(self, model: ModelState, request: Request) -> None:
        """A request can be replaced no more."""
        place = (request.connection, request.observation.slot)
        if model.latest.get(place) is request:
            del model.latest[place]

    def _push(self, model: ModelState, request: Request) -> None:
        """Into the order that it waits in."""
        lane = self._lane(model, request) if model.affinity else None
        order = model.orders.get(lane)
        if order is None:
            order = model.orders[lane] = self.scheduler.order()
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

    def move(self, model: ModelState, replica_id: str) -> None:
        """Clients that kept to a replica that is gone keep to others from now on."""
        del model.orders[replica_id]
        for request in model.queue:
            if request.lane == replica_id and not request.attempt:
                self._push(model, request)

    def use(self, scheduler: Scheduler, models: Iterable[ModelState]) -> None:
        """Changes the strategy; what waits stays."""
        self.scheduler = scheduler
        for model in models:
            model.orders = {} if model.affinity else {None: scheduler.order()}
            for request in model.queue:
                if not request.attempt:
                    self._push(model, request)


def _backlog_ms(model: ModelState) -> float:
    """How long what waits for a model will take."""
    batch = model.most
    calls = 1 + len(model.queue) // batch
    ms = 1e3 * calls * model.service.mean(batch) / max(1, model.replicas.live)
    return min(MAX_RETRY_AFTER_MS, max(1.0, ms))


def _urgency(request: Request) -> tuple[float, int]:
    return request.key, request.sequence


def _oldest_sequence(model: ModelState) -> int:
    oldest = model.queue.oldest()
    assert oldest is not None, "only models with something that waits are asked"
    return oldest.sequence
