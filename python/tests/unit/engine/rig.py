"""An engine on a fake clock, with everything it said written down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from inferential.config.schema import InferentialConfig
from inferential.engine import Engine
from inferential.scheduling.request import Call, CallError, CallResult, ItemError, Outcome, Replica, Request
from inferential.scheduling.service_time import ServiceTime
from inferential.simulator import with_settings
from inferential.types import COMPILED, Body, Observation, Reason, Status

BODY = Body(b"", ())


class Numbers:
    """A metrics sink that remembers."""

    def __init__(self) -> None:
        self.points: list[tuple[str, float, str | None, str | None]] = []

    def record(self, name: str, value: float, model: str | None = None, client: str | None = None) -> None:
        self.points.append((name, value, model, client))

    def of(self, name: str) -> list[float]:
        return [value for n, value, _, _ in self.points if n == name]


class FixedTime(ServiceTime):
    """Learns nothing."""

    def learn(self, n: int, elapsed_s: float, *, from_idle: bool, inference_s: float, speed: float = 1.0) -> None:
        pass


class Rig:
    """Times are milliseconds here: `now` starts at 1000 ms."""

    def __init__(
        self, models: Sequence[str] = ("m",), *, replicas: Sequence[Replica] | None = None, **settings: Any
    ) -> None:
        changes = {name.replace("__", "."): value for name, value in settings.items()}
        known = {k.split(".", 1)[1]: v for k, v in changes.items() if k.startswith("model.")}
        changes = {k: v for k, v in changes.items() if not k.startswith("model.")}
        if known:
            changes["models.default"] = known
        self.config: InferentialConfig = with_settings(InferentialConfig(), changes)
        self.numbers = Numbers()
        self.engine = Engine(self.config, list(models), self.numbers)
        self.now = 1.0
        self.calls: list[Call] = []
        self.outcomes: list[Outcome] = []
        self.abandoned: list[Call] = []
        self.next_id = 0
        for replica in [Replica("r", m, 1) for m in models] if replicas is None else replicas:
            self.engine.replica_up(replica, self.now)

    @property
    def ms(self) -> float:
        return self.now * 1e3

    @ms.setter
    def ms(self, value: float) -> None:
        self.now = value / 1e3

    def fix(self, model: str = "m", *, call_ms: float, item_ms: float = 0.0) -> None:
        """The engine believes in these times, whatever it sees."""
        if COMPILED:
            pytest.skip("the compiled engine takes no other ServiceTime than its own")
        self.engine._models[model].service = FixedTime(call_ms / 1e3, item_ms / 1e3)

    def send(
        self,
        model: str = "m",
        *,
        client: str = "c",
        connection: bytes = b"",
        size: int = 100,
        v1: bool = False,
        **fields: Any,
    ) -> Request:
        """Submits an observation; effects are taken by the next `settle`."""
        self.next_id += 1
        fields.setdefault("request_id", 0 if v1 else self.next_id)
        if "budget" in fields:
            fields["latency_budget_ms"] = fields.pop("budget")
        observation = Observation(client, "test", model, **fields)
        request = Request(connection or client.encode(), observation, (b"",), size, self.now)
        self.engine.submit(request, self.now)
        return request

    def settle(self) -> list[Call]:
        """Takes all effects; the new calls."""
        calls = self.engine.take_calls()
        self.calls += calls
        self.outcomes += self.engine.take_outcomes()
        self.abandoned += self.engine.take_abandoned()
        assert not self.engine.unsettled
        return calls

    def wait(self, ms: float) -> list[Call]:
        """Lets time pass, with a wake-up whenever the engine asked for one; the calls made on the way."""
        made = self.settle()
        until = self.now + ms / 1e3
        for _ in range(10_000):
            wake = self.engine.next_wakeup()
            if wake is None or wake > until:
                break
            self.now = max(self.now, wake)
            self.engine.advance(self.now)
            made += self.settle()
        else:
            raise AssertionError("the engine asks to be woken again and again")
        self.now = until
        self.engine.advance(self.now)
        return made + self.settle()

    def finish(
        self, call: Call, after_ms: float = 0.0, *, inference_ms: float = 1.0, items: Sequence[Any] | None = None
    ) -> list[Call]:
        """Time passes, then a call is answered; the calls that follow from that."""
        before = self.wait(after_ms) if after_ms else []
        result = CallResult([BODY] * len(call.requests) if items is None else items, inference_ms / 1e3)
        self.engine.complete(call.id, result, self.now)
        return before + self.settle()

    def fail(self, call: Call, message: str = "boom", **flags: bool) -> list[Call]:
        self.engine.fail(call.id, CallError(message, **flags), self.now)
        return self.settle()

    def block(self, model: str = "m") -> Call:
        """Occupies a model with a request that is not answered until the test says so."""
        self.send(model, client=f"blocker-{model}", budget=4000.0)
        [call] = self.settle()
        return call

    def drain_order(self, blocker: Call, *, takes_ms: float = 0.1) -> list[Request]:
        """Ends the blocking call and answers whatever follows, one call after the other: the order in which requests went."""
        order: list[Request] = []
        pending = self.finish(blocker, takes_ms)
        while pending:
            call = pending.pop(0)
            order += call.requests
            pending += self.finish(call, takes_ms)
        return order

    def learn(
        self, model: str = "m", *, call_ms: float, item_ms: float = 0.0, calls: int = 10, sizes: Sequence[int] = (1,)
    ) -> None:
        """Lets the engine see calls of known duration."""
        for i in range(calls):
            size = sizes[i % len(sizes)]
            for _ in range(size):
                self.send(model, client="teacher", budget=4000.0)
            calls_made = self.settle() or self.wait(100.0)
            for call in calls_made:
                took = call_ms + item_ms * len(call.requests)
                self.finish(call, took, inference_ms=took)
            self.wait(2000.0)
        self.calls.clear()
        self.outcomes.clear()

    def outcome(self, request: Request) -> Outcome:
        """The one outcome of a request."""
        self.settle()
        [found] = [o for o in self.outcomes if o.request is request]
        return found

    def status(self, request: Request) -> Status | None:
        self.settle()
        found = [o.status for o in self.outcomes if o.request is request]
        assert len(found) <= 1, "a request ends once"
        return found[0] if found else None


__all__ = [
    "BODY",
    "Call",
    "CallError",
    "CallResult",
    "ItemError",
    "Numbers",
    "Outcome",
    "Reason",
    "Replica",
    "Request",
    "Rig",
    "Status",
]
