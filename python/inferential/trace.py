"""A recording as the simulator needs it: who sent what and when, what a call took, and what became of it all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from inferential import wire
from inferential._proto.inferential.recording.v1 import recording_pb2 as pb
from inferential.config.schema import InferentialConfig
from inferential.recording import open_recording, read_recording
from inferential.simulator import Arrival, Fleet, Machine, Tally
from inferential.types import Status


@dataclass(slots=True)
class Trace:
    """What a recording tells. Times are seconds since its first observation."""

    config: InferentialConfig
    fleets: list[Fleet] = field(default_factory=list)
    """One for each model; only names and numbers of clients are filled in."""
    machines: list[Machine] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    tallies: list[Tally] = field(default_factory=list)
    """What was recorded, fleet by fleet."""
    duration_s: float = 0.0

    def __iter__(self) -> Iterator[Arrival]:
        return iter(self.arrivals)


@dataclass(slots=True)
class _Replicas:
    """What is seen of a model's replicas."""

    live: dict[str, pb.Replica] = field(default_factory=dict)
    most: int = 0
    slots: int = 1
    max_batch_size: int = 1
    free_at: dict[str, float] = field(default_factory=dict)
    calls: list[tuple[int, float]] = field(default_factory=list)
    """(requests, seconds from when it could begin to its answer)"""

    def machine(self, model: str) -> Machine | None:
        """A line through what calls took; None without a call."""
        if not self.calls:
            return None
        sizes, seconds = np.array(self.calls).T
        if np.ptp(sizes) > 0:
            item, call = np.polyfit(sizes, seconds, 1).tolist()
            if item < 0 or call < 0:
                item, call = 0.0, float(np.median(seconds))
        else:
            item, call = 0.0, float(np.median(seconds))
        noise = float(np.mean(np.maximum(seconds - (call + item * sizes), 0.0)))
        return Machine(
            model=model,
            replicas=max(1, self.most),
            slots=self.slots,
            max_batch_size=self.max_batch_size,
            call_ms=call * 1e3,
            item_ms=item * 1e3,
            noise_ms=noise * 1e3,
            overhead_ms=0.0,  # it is part of what calls took
            overhead_item_ms=0.0,
        )


class _Reader:
    """Collects a trace (recording.Visitor)."""

    def __init__(self, config: InferentialConfig) -> None:
        self.trace = Trace(config)
        self._envelope = b""
        self._start: float | None = None
        self._fleets: dict[str, int] = {}
        self._clients: dict[tuple[int, bytes], int] = {}
        self._budgets: dict[tuple[bytes, int], float] = {}
        self._replicas: dict[str, _Replicas] = {}
        self._running: dict[int, tuple[str, str, float, int]] = {}

    def observation(self, envelope: bytes) -> None:
        self._envelope = envelope

    def input(self, message: pb.Input) -> None:
        kind, now = message.WhichOneof("kind"), message.now_s
        if kind == "submit":
            self._submitted(message.submit)
        elif kind == "replica_up":
            up = message.replica_up
            seen = self._replicas.setdefault(up.model, _Replicas())
            seen.live[up.id] = up
            seen.most = max(seen.most, len(seen.live))
            seen.slots = max(seen.slots, up.slots)
            seen.max_batch_size = max(seen.max_batch_size, up.max_batch_size)
        elif kind == "replica_down":
            down = message.replica_down
            if down.model in self._replicas:
                self._replicas[down.model].live.pop(down.replica, None)
        elif kind == "complete" and message.complete.call in self._running:
            model, replica, sent, size = self._running.pop(message.complete.call)
            seen = self._replicas[model]
            if seen.slots == 1:  # a call that waited behind another began when that ended
                sent = max(sent, seen.free_at.get(replica, 0.0))
                seen.free_at[replica] = now
            seen.calls.append((size, now - sent))

    def decision(self, message: pb.Decision) -> None:
        kind = message.WhichOneof("kind")
        if kind == "dispatch":
            d = message.dispatch
            self._running[d.call] = (d.model, d.replica, message.now_s, len(d.requests))
        elif kind == "outcome":
            self._ended(message.outcome)

    def _submitted(self, submit: pb.Submit) -> None:
        observation = wire.parse_observation(self._envelope, submit.frame_bytes)
        if self._start is None:
            self._start = submit.arrival_s
        at = submit.arrival_s - self._start
        trace, config = self.trace, self.trace.config
        model = observation.model_id
        fleet = self._fleets.get(model)
        if fleet is None:
            fleet = self._fleets[model] = len(self._fleets)
            trace.tallies.append(Tally())
        tally = trace.tallies[fleet]
        client = self._clients.setdefault((fleet, submit.connection), len(tally.by_client))
        if client == len(tally.by_client):
            tally.by_client.append(0)
        budget_ms = observation.latency_budget_ms
        if not budget_ms:
            known = config.clients.get(observation.client_id)
            budget_ms = (
                (known and known.latency_budget_ms)
                or config.models.of(model).latency_budget_ms
                or config.scheduling.default_latency_budget_ms
            )
        self._budgets[submit.connection, observation.request_id] = budget_ms
        tally.sent += 1
        observation = dataclasses.replace(
            observation, latency_budget_ms=budget_ms, timestamp_ns=int(at * 1e9), tensors=()
        )
        trace.arrivals.append((at, fleet, client, observation, submit.size_bytes))
        trace.duration_s = max(trace.duration_s, at)

    def _ended(self, outcome: pb.Outcome) -> None:
        key = outcome.request.connection, outcome.request.request_id
        fleet = self._fleets.get(outcome.model)
        if fleet is None or key not in self._budgets:
            return
        budget_ms = self._budgets[key]
        tally = self.trace.tallies[fleet]
        status = Status(outcome.status).name
        tally.statuses[status] = tally.statuses.get(status, 0) + 1
        if outcome.status == Status.OK:
            tally.latencies_ms.append(outcome.e2e_ms)
            if outcome.e2e_ms <= budget_ms:
                tally.in_time += 1
                tally.by_client[self._clients[fleet, outcome.request.connection]] += 1
            else:
                tally.late += 1

    def finish(self) -> Trace:
        """The trace, when everything was read."""
        trace = self.trace
        for model, fleet in self._fleets.items():
            trace.fleets.append(Fleet(name=model, model=model, clients=max(1, len(trace.tallies[fleet].by_client))))
        for model, seen in self._replicas.items():
            machine = seen.machine(model)
            if machine is not None:
                trace.machines.append(machine)
        # Submissions are recorded in order, but an arrival is when the message was read.
        trace.arrivals.sort(key=lambda a: a[:3])
        return trace


def read_trace(path: Path) -> Trace:
    """Reads a recording.

    Raises:
        RecordingError: see recording.open_recording.
    """
    recording = open_recording(path)
    reader = _Reader(recording.config())
    read_recording(recording, reader)
    return reader.finish()
