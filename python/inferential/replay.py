"""Feeds a recording to the engine again and compares what it decides (docs/recording.md)."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from inferential import wire
from inferential._proto.inferential.recording.v1 import recording_pb2 as pb
from inferential.engine import Engine
from inferential.recording import (
    Recording,
    RecordingError,
    dispatch_decision,
    open_recording,
    outcome_decision,
    read_recording,
)
from inferential.scheduling.request import CallError, CallResult, ItemError, Replica, Request
from inferential.types import Body

_DONE = Body(b"", ())
SHOWN_DIFFERENCES = 10


@dataclass(slots=True)
class Replay:
    """How a recording's decisions and those of its replay compare."""

    inputs: int = 0
    decisions: int = 0
    different: int = 0
    differences: list[str] = field(default_factory=list)
    """The first few: what was recorded and what came now."""

    @property
    def same(self) -> bool:
        """Whether every decision came again, and no other."""
        return self.different == 0


class _Silent:
    def record(self, name: str, value: float, model: str | None = None, client: str | None = None) -> None:
        """Nobody listens to a replay."""


class _Player:
    def __init__(self, recording: Recording) -> None:
        config = recording.config()
        self._engine = Engine(config, recording.models, _Silent())
        self._envelope = b""
        self._expected: list[pb.Decision] = []
        self._made: list[pb.Decision] = []
        self.result = Replay()

    def observation(self, envelope: bytes) -> None:
        self._envelope = envelope

    def decision(self, message: pb.Decision) -> None:
        self._expected.append(message)

    def input(self, message: pb.Input) -> None:
        self.result.inputs += 1
        now = message.now_s
        if message.WhichOneof("kind") != "settle":
            self._feed(message, now)
            return
        # What the last settling led to was recorded before this one.
        self._compare()
        engine = self._engine
        self._made.extend(dispatch_decision(c, now) for c in engine.take_calls())
        self._made.extend(outcome_decision(o, now) for o in engine.take_outcomes())
        self._made.extend(pb.Decision(now_s=now, abandon=c.id) for c in engine.take_abandoned())

    def finish(self) -> Replay:
        self._compare()
        return self.result

    def _compare(self) -> None:
        # Outcomes, calls and abandoned calls are taken one list after the other, in an order that is the driver's.
        expected = Counter(_key(d) for d in self._expected)
        made = Counter(_key(d) for d in self._made)
        self.result.decisions += len(self._expected)
        for key in (expected - made).elements():
            self._differ(f"recorded, not made again: {key}")
        for key in (made - expected).elements():
            self._differ(f"made now, not recorded: {key}")
        self._expected.clear()
        self._made.clear()

    def _differ(self, text: str) -> None:
        self.result.different += 1
        if len(self.result.differences) < SHOWN_DIFFERENCES:
            self.result.differences.append(text)

    def _feed(self, message: pb.Input, now: float) -> None:
        engine = self._engine
        kind = message.WhichOneof("kind")
        if kind == "submit":
            engine.submit(self._request(message.submit), now)
        elif kind == "complete":
            done = message.complete
            items = [ItemError(i.error, i.retryable) if i.error else _DONE for i in done.items]
            ahead_s = done.ahead_s if done.HasField("ahead_s") else None
            engine.complete(done.call, CallResult(items, done.inference_s, ahead_s), now)
        elif kind == "advance":
            engine.advance(now)
        elif kind == "fail":
            f = message.fail
            engine.fail(f.call, CallError(f.message, f.retryable, f.unavailable), now)
        elif kind == "replica_up":
            r = message.replica_up
            engine.replica_up(Replica(r.id, r.model, r.slots, r.max_batch_size, r.path), now)
        elif kind == "replica_down":
            d = message.replica_down
            engine.replica_down(d.model, d.replica, d.reason, now, drained=d.drained)
        elif kind == "cancel":
            engine.cancel(message.cancel.connection, message.cancel.request_id, now)
        elif kind == "disconnect":
            engine.disconnect(message.disconnect, now)
        elif kind == "use_scheduler":
            u = message.use_scheduler
            engine.use_scheduler(u.name, now, **json.loads(u.options_json))
        elif kind == "drain":
            engine.drain(now)
        elif kind == "abort":
            engine.abort(now)
        else:
            raise RecordingError(f"an input of a kind this version does not know (time {now:.6f})")

    def _request(self, submit: pb.Submit) -> Request:
        observation = wire.parse_observation(self._envelope, submit.frame_bytes)
        return Request(submit.connection, observation, (self._envelope,), submit.size_bytes, submit.arrival_s)


def _key(decision: pb.Decision) -> str:
    """A decision without the times at which the driver happened to take it."""
    kind = decision.WhichOneof("kind")
    if kind == "dispatch":
        d = decision.dispatch
        requests = [(r.connection.hex(), r.request_id) for r in d.requests]
        return f"dispatch {d.call} of {d.model} to {d.replica}: {requests}"
    if kind == "outcome":
        o = decision.outcome
        return (
            f"outcome of {(o.request.connection.hex(), o.request.request_id)} of {o.client} at {o.model}: "
            f"status {o.status} reason {o.reason} batch {o.batch_size} {o.error}"
        )
    return f"abandon {decision.abandon}"


def replay(path: Path) -> Replay:
    """Makes a recording's decisions again and compares them.

    Raises:
        RecordingError: the file can't be replayed; the message says why.
    """
    recording = open_recording(path)
    player = _Player(recording)
    read_recording(recording, player)
    return player.finish()
