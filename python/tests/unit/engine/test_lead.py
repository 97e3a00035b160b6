"""When the next call is sent to a replica that is busy: early enough, whatever calls took before and however they vary."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from inferential.config.schema import InferentialConfig
from inferential.engine import Engine
from inferential.scheduling.request import Call, CallResult, Replica, Request
from inferential.types import Observation
from tests.unit.engine.rig import BODY, Numbers


class BusyReplica:
    """One that always has something waiting for it: at the server, and some time before its turn there."""

    def __init__(self) -> None:
        self.engine = Engine(InferentialConfig(), ["m"], Numbers())
        self.engine.replica_up(Replica("r", "m", 1, path="direct"), 0.0)
        self.now = 0.0
        self.sent = 0
        self.underway: list[tuple[Call, float]] = []
        """Calls in order, and when each is ready."""
        self.free_at = 0.0

    def run(self, calls: int, call_s: Callable[[], float], way_s: float) -> tuple[float, float]:
        """Of the last half of `calls`: the share that was staged, and the mean time that the replica was idle before each, seconds."""
        staged: list[bool] = []
        idle: list[float] = []
        while len(staged) < calls:
            self._settle(way_s)
            call, ready = self.underway.pop(0)
            begin = max(ready, self.free_at)
            staged.append(call.followed)
            idle.append(begin - self.free_at)
            ahead = self.free_at - ready
            self.free_at = begin + call_s()
            answered = self.free_at + way_s
            while (wake := self.engine.next_wakeup()) is not None and wake < answered:
                self.now = max(self.now, wake)
                self.engine.advance(self.now)
                self._settle(way_s)
            self.now = answered
            result = CallResult([BODY] * len(call.requests), self.free_at - begin, ahead)
            self.engine.complete(call.id, result, answered)
        half = calls // 2
        return sum(staged[half:]) / half, sum(idle[half:]) / half

    def _settle(self, way_s: float) -> None:
        while self.engine.pending < 5:
            self.sent += 1
            observation = Observation("robot", "test", "m", request_id=self.sent, latency_budget_ms=5_000.0)
            self.engine.submit(Request(b"a", observation, [b""], 1, self.now), self.now)
        for call in self.engine.take_calls():
            self.underway.append((call, self.now + way_s))
        self.engine.take_outcomes()
        self.engine.take_abandoned()


def test_quicker_calls_after_slow_ones_are_staged_again() -> None:
    replica = BusyReplica()
    replica.run(400, lambda: 0.050, 0.007)
    staged, idle = replica.run(1000, lambda: 0.010, 0.0005)
    assert staged > 0.95
    assert idle < 0.0003


@pytest.mark.parametrize("spread_s", [0.0, 0.001, 0.003, 0.005])
def test_calls_that_vary_are_staged(spread_s: float) -> None:
    """Those that ended too early for the next one to be staged count too: else the lead would shrink, and ever more would be missed."""
    chance = random.Random(1)
    staged, idle = BusyReplica().run(2000, lambda: max(0.002, chance.gauss(0.020, spread_s)), 0.0005)
    unstaged_idle = 0.001  # a way there and a way back
    assert staged > 0.7
    assert idle < 0.45 * unstaged_idle
