"""All state of one model: its queue, orders, replicas, slots, and what was learned of it."""

from __future__ import annotations

from operator import attrgetter

from inferential.config.schema import InferentialConfig
from inferential.scheduling.base import Order, Scheduler
from inferential.scheduling.batching import tight_budget
from inferential.scheduling.heap import LazyHeap
from inferential.scheduling.levels import Levels
from inferential.scheduling.phase import Phases
from inferential.scheduling.queue import Load, RequestQueue
from inferential.scheduling.replicas import Replicas, ReplicaState
from inferential.scheduling.request import INFINITY, Call, Request
from inferential.scheduling.service_time import ServiceTime
from inferential.tracking.clients import MAX_CLIENTS, Stream, Streams
from inferential.tracking.forecast import ArrivalRate, Forecast
from inferential.tracking.health import Health

STAGING_PATH = "direct"
"""How replicas are reached that hold a call ready behind another one."""


class Slots:
    """Calls that may run at the same time."""

    __slots__ = ("limit", "models", "running")

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.running = 0
        self.models: list[ModelState] = []
        """Whose calls these are."""

    @property
    def free(self) -> bool:
        """Whether one more may begin."""
        return self.running < self.limit


class ModelState:
    """See the module. Settings are read once, here: attribute access through validated settings is slow."""

    __slots__ = (
        "affinity",
        "budget_s",
        "clients_waiting",
        "contended_until",
        "device",
        "ends",
        "forecast",
        "health",
        "heaviest",
        "index",
        "latest",
        "latest_only",
        "levels",
        "max_batch_size",
        "most",
        "name",
        "orders",
        "phases",
        "queue",
        "rate",
        "relax_at",
        "replicas",
        "retries",
        "service",
        "slots",
        "stages",
        "streams",
        "tight_budget",
        "turn",
        "wake",
    )

    def __init__(
        self,
        name: str,
        index: int,
        config: InferentialConfig,
        scheduler: Scheduler,
        slots: Slots,
        device: Slots,
        load: Load,
    ) -> None:
        settings = config.models.of(name)
        self.name = name
        self.index = index
        self.queue = RequestQueue(load)
        self.affinity = settings.affinity == "client"
        self.orders: dict[str | None, Order] = {} if self.affinity else {None: scheduler.order()}
        """By replica where clients keep to one, else one for all."""
        self.retries: list[Request] = []
        """Failed once, to run on another replica; smallest key first, ahead of the orders."""
        self.latest: dict[tuple[bytes, str], Request] = {}
        """The queued request of a connection and slot that a newer one replaces."""
        self.replicas = Replicas()
        self.slots = slots
        self.device = device
        slots.models.append(self)
        device.models.append(self)
        self.ends: LazyHeap[Call] = LazyHeap(attrgetter("yields"))
        """Calls that nothing is staged behind yet, by predicted end."""
        self.service = ServiceTime(settings.call_ms / 1e3, settings.item_ms / 1e3)
        self.streams = Streams()
        self.rate = ArrivalRate()
        self.forecast = Forecast()
        self.tight_budget = tight_budget()
        self.levels = Levels()
        self.phases = Phases() if config.scheduling.phase_shift == "spread" else None
        self.health = Health()
        budget_ms = settings.latency_budget_ms or config.scheduling.default_latency_budget_ms
        self.budget_s = budget_ms / 1e3
        self.latest_only = settings.latest_only
        self.max_batch_size = settings.max_batch_size
        self.most = 1
        """Largest batch that any replica takes."""
        self.stages = False
        """Whether any replica takes calls to be staged."""
        self.contended_until = -INFINITY
        self.wake = INFINITY
        """When this model wants to be looked at again."""
        self.clients_waiting = 0
        self.heaviest: Stream | None = None
        """The client with the most waiting requests, as of its last one."""
        self.relax_at = -INFINITY
        """From when on refusals at an idle model are held against its predictions."""
        self.turn = 0
        """When it was served last, in calls; for strategies in which models take turns."""

    def batch_size_of(self, replica: ReplicaState) -> int:
        """The largest batch that a replica takes."""
        most = replica.replica.max_batch_size
        return most if self.max_batch_size is None else min(most, self.max_batch_size)

    def replicas_changed(self) -> None:
        """After one came, changed or went."""
        self.most = max((self.batch_size_of(r) for r in self.replicas if not r.draining), default=1)
        self.stages = any(r.replica.path == STAGING_PATH for r in self.replicas)

    def order_of(self, request: Request) -> Order:
        """The order that a request waits in."""
        if not self.affinity:
            return self.orders[None]
        assert request.stream is not None, "set at arrival"
        return self.orders[request.stream.replica]

    def speed(self, replica: ReplicaState) -> float:
        """How a replica's times compare with the model's."""
        # With one replica the model's own line says all; its ratio would only add noise.
        return replica.speed if len(self.replicas) > 1 else 1.0

    def arrivals_per_replica(self, now: float) -> float:
        """Arrivals a second that one replica would have to serve."""
        return self.rate.at(now) / max(1, self.replicas.live)

    def over_share(self, stream: Stream) -> bool:
        """Whether a client has at least twice its fair part of what waits here."""
        queued = stream.queued
        return queued > 1 and queued * self.clients_waiting >= 2.0 * len(self.queue) * max(1.0, stream.weight)

    def forget(self, now: float, before: float) -> None:
        """Forgets clients not seen since `before`."""
        if self.phases is not None:
            self.phases.forget(now)
        self._forgotten(self.streams.evict(before))

    def forget_excess(self) -> None:
        """A client was seen: who makes up a name for each message must not use up the memory."""
        if len(self.streams) > MAX_CLIENTS:
            self._forgotten(self.streams.excess(MAX_CLIENTS))

    def _forgotten(self, gone: list[Stream]) -> None:
        for stream in gone:
            kept = None if stream.replica is None else self.replicas.get(stream.replica)
            if kept is not None:
                kept.assigned = max(0, kept.assigned - 1)  # it may be a later one of that name
            if self.heaviest is stream:
                self.heaviest = None

    def next_end(self) -> Call | None:
        """The call predicted to end first, of those that nothing is staged behind."""
        ends = self.ends
        while True:
            entry = ends.top()
            if entry is None:
                return None
            # A call that began later than predicted was pushed again with its new end.
            if entry[0] == entry[2].ends_at:
                return entry[2]
            ends.pop()
