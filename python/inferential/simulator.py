"""The engine on a virtual clock: synthetic fleets and replicas, strategies side by side (docs/simulator.md).

The decisions are made by the very engine that serves; what is simulated is what surrounds it: clients that send, a server's I/O
loop that handles one message at a time, and replicas that take `call_ms + item_ms x n` for a call. Same scenario, same bytes.
"""

from __future__ import annotations

import contextlib
import gc
import heapq
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import Field, model_validator

from inferential.config.load import read_data, validated
from inferential.config.schema import Count, InferentialConfig, Milliseconds, MillisecondsOrZero, Seconds, Settings
from inferential.engine import Engine
from inferential.errors import ConfigError
from inferential.scheduling.request import Call, CallResult, Replica, Request
from inferential.types import Body, Observation, Status

_BODY = Body(b"", ())
_FRAMES = (b"",)


class Fleet(Settings):
    """Clients that behave alike."""

    name: str = "fleet"
    model: str = "policy"
    clients: Count = 1
    hz: Annotated[float, Field(gt=0, le=1e6)] = 10.0
    arrivals: Literal["periodic", "poisson", "burst"] = "periodic"
    """periodic: every client on a grid of its own; poisson: independent; burst: periodic, the whole fleet at the same moment."""
    jitter_ms: MillisecondsOrZero = 1.0
    """Uniform, added to each arrival of `periodic` and `burst`."""
    budget_ms: Milliseconds = 50.0
    priority: Annotated[int, Field(ge=0, le=1000)] = 1
    urgency: Annotated[float, Field(ge=0, le=1)] = 0.0
    latest_only: bool = False
    follows_phase_shifts: bool = True
    """Whether clients send later when the server asks them to (the setting `scheduling.phase_shift`)."""
    scales: bool = True
    """Whether a scenario's loads multiply its number of clients."""


class Machine(Settings):
    """Replicas of one model that are alike; several of one model where its replicas are not."""

    model: str = "policy"
    replicas: Count = 1
    slots: Count = 1
    max_batch_size: Count = 64
    call_ms: MillisecondsOrZero = 10.0
    item_ms: MillisecondsOrZero = 0.5
    noise_ms: MillisecondsOrZero = 0.5
    """Mean of an exponential time added to each call."""
    overhead_ms: MillisecondsOrZero = 0.5
    """A call's way to the replica and back; it overlaps the call before where one is running."""
    overhead_item_ms: MillisecondsOrZero = 0.02
    """The same for each request of a call."""
    handover_ms: MillisecondsOrZero = 0.0
    """Mean of an exponential time between two calls of which one was there before the other ended."""


class Loop(Settings):
    """The server's I/O loop: one message at a time."""

    wire_ms: MillisecondsOrZero = 0.0
    """An observation's way to the server, and a reply's to the client, each."""
    receive_ms: MillisecondsOrZero = 0.08
    dispatch_ms: MillisecondsOrZero = 0.05
    reply_ms: MillisecondsOrZero = 0.06


class Variant(Settings):
    """One line of a comparison: a name, and the settings it changes (`scheduling.early_refusal: predictive`)."""

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)
    latest_only: bool | None = None
    """Overrides the fleets'."""


class Scenario(Settings):
    """What is simulated."""

    name: str = "scenario"
    recording: Annotated[Path | None, Field(strict=False)] = None
    """An MCAP file of `serve --record`: its arrivals take the place of `fleets`. Where they are not given here, its
    settings are those of `config`, and machines are learned from its calls. `loads` do not apply."""
    seed: int = 1
    duration_s: Seconds = 10.0
    warm_up_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2.0
    """At the beginning, not counted."""
    fleets: Annotated[list[Fleet], Field(min_length=1)] = Field(default_factory=lambda: [Fleet(clients=40)])
    machines: Annotated[list[Machine], Field(min_length=1)] = Field(default_factory=lambda: [Machine()])
    loop: Loop = Field(default_factory=Loop)
    config: InferentialConfig = Field(default_factory=InferentialConfig)
    variants: Annotated[list[Variant], Field(min_length=1)] = Field(default_factory=lambda: [Variant(name="default")])
    loads: Annotated[list[Annotated[float, Field(gt=0, le=1e6)]], Field(min_length=1)] = Field(
        default_factory=lambda: [1.0]
    )

    @model_validator(mode="after")
    def _check(self) -> Scenario:
        for what, names in (("fleets", [f.name for f in self.fleets]), ("variants", [v.name for v in self.variants])):
            for i, name in enumerate(names):
                if name in names[:i]:
                    raise ValueError(f"{what}: two are named {name!r}; give each a name of its own")
        if self.recording is None and self.warm_up_s >= self.duration_s:
            raise ValueError(
                f"warm_up_s is {self.warm_up_s:g}; it must be less than duration_s, which is {self.duration_s:g}: "
                "the warm-up is not counted"
            )
        return self


@dataclass(slots=True)
class Tally:
    """What became of the requests of one fleet, those that arrived after the warm-up."""

    sent: int = 0
    in_time: int = 0
    late: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)
    by_client: list[int] = field(default_factory=list)
    """In time, of each client."""

    def add(self, other: Tally) -> None:
        """Joins another fleet's."""
        self.sent += other.sent
        self.in_time += other.in_time
        self.late += other.late
        for status, count in other.statuses.items():
            self.statuses[status] = self.statuses.get(status, 0) + count
        self.latencies_ms += other.latencies_ms
        self.by_client += other.by_client

    def summary(self, seconds: float) -> dict[str, Any]:
        """Shares, goodput per second, latencies of what was answered in ms, Jain's index over clients."""
        p50, p99 = np.percentile(self.latencies_ms, (50, 99)).tolist() if self.latencies_ms else (0.0, 0.0)
        return {
            "sent": self.sent,
            "in_time": self.in_time / self.sent if self.sent else 0.0,
            "goodput": self.in_time / seconds,
            "p50_ms": p50,
            "p99_ms": p99,
            "jain": jain(self.by_client),
            "statuses": dict(sorted(self.statuses.items())),
        }


def jain(values: Iterable[float]) -> float:
    """Jain's fairness index: 1 where all get the same, 1/n where one gets everything."""
    shares = list(values)
    squares = sum(v * v for v in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


class _Silent:
    def record(self, name: str, value: float, model: str | None = None, client: str | None = None) -> None:
        """Simulations count outcomes, not metrics."""


class _ReplicaClock:
    """When a simulated replica is free."""

    __slots__ = ("free_at", "machine", "random")

    def __init__(self, machine: Machine, seed: str) -> None:
        self.machine = machine
        self.free_at = [0.0] * machine.slots
        self.random = random.Random(seed)

    def run(self, sent: float, size: int) -> tuple[float, float, float]:
        """A call of `size` requests that was sent then: when its answer is back, the model's own time, and how long the call was there
        before its turn."""
        m = self.machine
        there = (m.overhead_ms + m.overhead_item_ms * size) / 2e3
        slot = min(range(m.slots), key=self.free_at.__getitem__)
        begin = sent + there
        free_at = self.free_at[slot]
        ahead = free_at - begin
        if begin < free_at:
            begin = free_at
            if m.handover_ms:
                begin += self.random.expovariate(1e3 / m.handover_ms)
        runs = (m.call_ms + m.item_ms * size) / 1e3
        if m.noise_ms:
            runs += self.random.expovariate(1e3 / m.noise_ms)
        self.free_at[slot] = begin + runs
        return begin + runs + there, runs, ahead


Arrival: TypeAlias = "tuple[float, int, int, Observation, int]"
"""(time, index of the fleet, client, observation, bytes); the observation's timestamp is that time."""


def _observations(
    fleet: Fleet, index: int, clients: int, seed: str, until: float, shifts: dict[int, float], *, latest_only: bool
) -> Iterator[Arrival]:
    """What a fleet sends, in order of time."""
    numbers = [0] * clients
    for at, client in _times(fleet, clients, seed, until, shifts):
        number = numbers[client] = numbers[client] + 1
        observation = Observation(
            f"{fleet.name}-{client}",
            fleet.name,
            fleet.model,
            request_id=number,
            timestamp_ns=int(at * 1e9),
            urgency=fleet.urgency,
            priority=fleet.priority,
            latency_budget_ms=fleet.budget_ms,
            latest_only=latest_only,
        )
        yield at, index, client, observation, 128


def _times(
    fleet: Fleet, clients: int, seed: str, until: float, shifts: dict[int, float]
) -> Iterator[tuple[float, int]]:
    """(time, client) in order of time. What is in `shifts` (seconds, by client) when a client would send delays it, and is taken."""
    rng = random.Random(seed)
    period = 1.0 / fleet.hz
    jitter = fleet.jitter_ms / 1e3
    heap: list[tuple[float, int, float]] = []
    for client in range(clients):
        if fleet.arrivals == "poisson":
            grid = rng.expovariate(fleet.hz)
            heap.append((grid, client, grid))
        else:
            grid = rng.random() * period if fleet.arrivals == "periodic" else period
            heap.append((grid + rng.random() * jitter, client, grid))
    heapq.heapify(heap)
    while heap:
        at, client, grid = heap[0]
        if at >= until:
            return
        if shifts and client in shifts:
            shift = shifts.pop(client) % period
            heapq.heapreplace(heap, (at + shift, client, grid + shift))
            continue
        yield at, client
        if fleet.arrivals == "poisson":
            grid = at + rng.expovariate(fleet.hz)
            heapq.heapreplace(heap, (grid, client, grid))
        else:
            grid += period
            heapq.heapreplace(heap, (grid + rng.random() * jitter, client, grid))


class _Simulation:
    """One run: a discrete-event loop around one engine."""

    def __init__(
        self, scenario: Scenario, variant: Variant, load: float, recorded: Sequence[Arrival] | None = None
    ) -> None:
        self._scenario = scenario
        self._recorded = recorded
        config = with_settings(scenario.config, variant.settings)
        models = sorted({f.model for f in scenario.fleets} | {m.model for m in scenario.machines})
        self._engine = Engine(config, models, _Silent())
        self._latest_only = variant.latest_only
        self._load = load
        self._replicas: dict[str, _ReplicaClock] = {}
        self._loop_free = 0.0
        self._loop = scenario.loop
        self._events: list[tuple[float, int, Call | None, CallResult | None]] = []
        """(time, number, call that is answered or None for a timer, its result)"""
        self._numbers = itertools.count()
        self._timer_at: float | None = None
        self._tallies = [Tally() for _ in scenario.fleets]
        self._origin: dict[bytes, tuple[int, int]] = {}
        self._shifts: list[dict[int, float]] = [{} for _ in scenario.fleets]
        """What clients were asked to delay their next observation by, fleet by fleet; seconds."""

    def run(self) -> list[Tally]:
        """Runs it to the end; the tally of each fleet."""
        scenario, engine = self._scenario, self._engine
        numbers: dict[str, itertools.count[int]] = {}
        for machine in scenario.machines:
            for _ in range(machine.replicas):
                name = f"{machine.model}#{next(numbers.setdefault(machine.model, itertools.count()))}"
                self._replicas[name] = _ReplicaClock(machine, f"{scenario.seed}/{name}")
                engine.replica_up(Replica(name, machine.model, machine.slots, machine.max_batch_size, "direct"), 0.0)
        if self._recorded is not None:
            for tally, fleet in zip(self._tallies, scenario.fleets, strict=True):
                tally.by_client = [0] * fleet.clients
            return self._play(self._recorded)
        streams = []
        for index, fleet in enumerate(scenario.fleets):
            clients = max(1, round(fleet.clients * self._load)) if fleet.scales else fleet.clients
            self._tallies[index].by_client = [0] * clients
            latest = fleet.latest_only if self._latest_only is None else self._latest_only
            seed = f"{scenario.seed}/{index}"
            shifts = self._shifts[index]
            streams.append(_observations(fleet, index, clients, seed, scenario.duration_s, shifts, latest_only=latest))
        return self._play(heapq.merge(*streams) if len(streams) > 1 else streams[0])

    def _play(self, arrivals: Iterable[Arrival]) -> list[Tally]:
        receive_s = self._loop.receive_ms / 1e3
        wire_s = self._loop.wire_ms / 1e3
        events = self._events
        for arrival in arrivals:
            at = arrival[0] + wire_s
            while events and events[0][0] <= at:
                self._event()
            now = self._loop_free if self._loop_free > at else at
            self._loop_free = now + receive_s
            self._submit(arrival, now)
            self._effects(self._loop_free)
        while events:
            self._event()
        assert self._engine.pending == 0, "a request was left without an outcome"
        return self._tallies

    def _submit(self, arrival: Arrival, now: float) -> None:
        sent, index, client, observation, size_bytes = arrival
        connection = b"%d/%d" % (index, client)
        self._origin[connection] = (index, client)
        if sent >= self._scenario.warm_up_s:
            self._tallies[index].sent += 1
        self._engine.submit(Request(connection, observation, _FRAMES, size_bytes, now), now)

    def _event(self) -> None:
        at, _, call, result = heapq.heappop(self._events)
        now = max(at, self._loop_free)
        if call is None:
            if self._timer_at != at:
                return
            self._timer_at = None
            self._engine.advance(now)
        else:
            assert result is not None, "an answer has a result"
            self._engine.complete(call.id, result, now)
        self._effects(now)

    def _effects(self, now: float) -> None:
        engine, loop = self._engine, self._loop
        for call in engine.take_calls():
            now += loop.dispatch_ms / 1e3
            size = len(call.requests)
            back, runs, ahead = self._replicas[call.replica.id].run(now, size)
            heapq.heappush(self._events, (back, next(self._numbers), call, CallResult([_BODY] * size, runs, ahead)))
        reply_s = loop.reply_ms / 1e3
        warm_up_s = self._scenario.warm_up_s
        for outcome in engine.take_outcomes():
            now += reply_s
            request = outcome.request
            observation = request.observation
            sent = observation.timestamp_ns / 1e9
            index, client = self._origin[request.connection]
            if outcome.phase_shift_ms and self._scenario.fleets[index].follows_phase_shifts:
                self._shifts[index][client] = outcome.phase_shift_ms / 1e3
            if sent < warm_up_s:
                continue
            tally = self._tallies[index]
            status = outcome.status.name if outcome.reason == 0 else f"{outcome.status.name}/{outcome.reason.name}"
            tally.statuses[status] = tally.statuses.get(status, 0) + 1
            if outcome.status is Status.OK:
                took_ms = (now - sent) * 1e3 + self._loop.wire_ms
                tally.latencies_ms.append(took_ms)
                if took_ms <= observation.latency_budget_ms:
                    tally.in_time += 1
                    tally.by_client[client] += 1
                else:
                    tally.late += 1
        engine.take_abandoned()
        self._loop_free = max(self._loop_free, now)
        wake = engine.next_wakeup()
        if wake is not None and (self._timer_at is None or wake < self._timer_at):
            self._timer_at = wake
            heapq.heappush(self._events, (wake, next(self._numbers), None, None))


def with_settings(config: InferentialConfig, changes: dict[str, Any]) -> InferentialConfig:
    """A copy with some settings changed, named by their dotted path.

    Raises:
        ConfigError: an unknown setting, or a value it may not have.
    """
    tree = config.model_dump()
    for path, value in changes.items():
        *parents, leaf = path.split(".")
        place = tree
        for parent in parents:
            found = place.get(parent)
            if not isinstance(found, dict):
                raise ConfigError(f"{path}: there is no setting {parent!r}; known here are {', '.join(place)}")
            place = found
        place[leaf] = value
    return validated(InferentialConfig, tree)


def simulate(scenario: Scenario) -> list[dict[str, Any]]:
    """Every variant at every load: plain data, one entry for each, fleets inside."""
    rows: list[dict[str, Any]] = []
    recorded: Sequence[Arrival] | None = None
    if scenario.recording is not None:
        from inferential.trace import read_trace

        trace = read_trace(scenario.recording)
        if not trace.arrivals:
            raise ConfigError(f"{scenario.recording}: there are no observations in it")
        given = scenario.model_fields_set
        recorded = trace.arrivals
        scenario = scenario.model_copy(
            update={
                "fleets": trace.fleets,
                "machines": scenario.machines if "machines" in given else trace.machines,
                "config": scenario.config if "config" in given else trace.config,
                "duration_s": max(trace.duration_s, 1e-3),
                "warm_up_s": 0.0,
                "loads": [1.0],
            }
        )
        rows.append(_row(scenario, "as recorded", 1.0, trace.tallies))
    for load, variant in itertools.product(scenario.loads, scenario.variants):
        with _no_cycles():
            tallies = _Simulation(scenario, variant, load, recorded).run()
        rows.append(_row(scenario, variant.name, load, tallies))
    return rows


@contextlib.contextmanager
def _no_cycles() -> Iterator[None]:
    """Requests leave no reference cycles behind; to look for some among 100,000 clients would take a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _row(scenario: Scenario, variant: str, load: float, tallies: Sequence[Tally]) -> dict[str, Any]:
    seconds = scenario.duration_s - scenario.warm_up_s
    total = Tally()
    for tally in tallies:
        total.add(tally)
    fleets = {f.name: t.summary(seconds) for f, t in zip(scenario.fleets, tallies, strict=True)}
    return {"variant": variant, "load": load, **total.summary(seconds), "fleets": fleets}


def load_scenario(path: Path) -> Scenario:
    """Reads a scenario from a YAML or JSON file.

    Raises:
        ConfigError: the file does not read, or a setting is wrong.
    """
    data = read_data(path)
    try:
        return validated(Scenario, data)
    except ConfigError as e:
        raise ConfigError(f"{path}: {e}") from None
