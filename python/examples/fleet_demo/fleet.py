"""The robots: each a client of its own, all in this process. `python fleet.py --server tcp://...` runs a fleet against any server that
serves the models `balance` and `watch`. Four times a second it prints a line of JSON, a Report."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from physics import PLAN_STEPS, ROBOTS, STEP_MS, Robot

from inferential import AsyncConnection, AsyncModel, AsyncRate, Hold, Source

CAMERA_HZ = 5.0
PUSH_EVERY_S = 1.5
PUSH_SPEED = 0.25  # m/s and rad/s, at most
BLAMED_MS = 200.0  # a fall this soon after a missing or late reply is put down to it
READY_S = 60.0  # how long the models may take until they answer in time
READY_ANSWERS = 5  # in a row
SETTLE_S = 3.0  # how long replies may still come after the last period


@dataclass
class Tally:
    """What became of one model's requests."""

    asked: int = 0
    in_time: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    """Of the requests that were not answered in time: why."""
    words: dict[str, str] = field(default_factory=dict)
    """What came with each of these the first time."""
    round_trips_ms: deque[float] = field(default_factory=lambda: deque(maxlen=10_000))

    def miss(self, model: AsyncModel, *, late: bool = False) -> None:
        """The model's newest request was not answered in time."""
        status = model.last_status
        name = "LATE" if late else getattr(status, "name", str(status))
        self.statuses[name] += 1
        if not late:
            self.words.setdefault(name, model.last_error)

    def report(self) -> dict[str, Any]:
        """As numbers."""
        found: dict[str, Any] = {
            "asked": self.asked,
            "in_time": self.in_time,
            "statuses": dict(self.statuses),
            "words": self.words,
        }
        if self.round_trips_ms:
            p50, p95, p99 = np.percentile(np.array(self.round_trips_ms), (50, 95, 99))
            found |= {"p50_ms": float(p50), "p95_ms": float(p95), "p99_ms": float(p99)}
        return found


@dataclass
class Gauge:
    """One robot, for the display."""

    tilt_rad: float = 0.0
    position: float = 0.0
    upright: bool = True
    falls: int = 0
    source: str = ""


@dataclass
class Report:
    """The fleet, as of now."""

    elapsed_s: float
    done: bool
    models: dict[str, dict[str, Any]]
    robots: list[dict[str, Any]]
    falls: int
    falls_blamed: int
    """Falls within BLAMED_MS of a missing or late reply."""
    without_outcome: int
    """Requests sent that have not ended; to be 0 when done."""
    vision_error_deg: float | None
    """Mean absolute error of the tilt that the watcher measured."""


class Member:
    """One robot of the fleet: its world, its client, its two loops."""

    def __init__(self, index: int, kind: str, server: str, fleet: Fleet) -> None:
        self.gauge = Gauge()
        self._index = index
        self._fleet = fleet
        self._robot: Robot = ROBOTS[kind]()
        self._connection = AsyncConnection(server=server, client_id=f"{kind}-{index}", client_type=kind)
        self._balance: AsyncModel = self._connection.model(
            "balance",
            latency_budget_ms=STEP_MS,
            priority=0,
            step_ms=STEP_MS,
            # Without a fresh answer the last plan is played on, to its end.
            fallback=Hold(max_ms=(PLAN_STEPS - 1) * STEP_MS, template={"forces": np.zeros(PLAN_STEPS)}),
        )
        self._watch: AsyncModel = self._connection.model("watch", latency_budget_ms=150.0, priority=5, latest_only=True)
        self._random = random.Random(index)
        self._robot.reset(seed=index)
        self._robot.frame()  # the first one takes long

    async def balance(self) -> None:
        """One period after the other: observe, wait for the forces, step the world.

        The force of a period is decided during the period before it, as on a real machine: an answer has 20 ms to be in time.
        """
        robot, tally, gauge = self._robot, self._fleet.balance, self.gauge
        rate = AsyncRate(1000.0 / STEP_MS)
        force, steps_left, missed_at, pushed_at = 0.0, 0, float("-inf"), time.monotonic()
        await rate.sleep()
        while self._fleet.running:
            period_ends = time.monotonic() + STEP_MS / 1e3
            await self._balance.observe(state=robot.state(), force=np.array([force]), steps_remaining=steps_left)
            action = await self._balance.act(timeout_ms=max(0.1, (period_ends - time.monotonic()) * 1e3 - 1.0))
            in_time = action.source is Source.FRESH and action.steps_late == 0
            tally.asked += 1
            tally.in_time += in_time
            if action.reply is not None and action.source is Source.FRESH:
                tally.round_trips_ms.append(action.reply.round_trip_ms)
            if not in_time:
                missed_at = time.monotonic()
                tally.miss(self._balance, late=action.source is Source.FRESH)
            missed_periods = await rate.sleep()

            # Time does not wait: periods this process slept through are lived through now, on the plan.
            plan, fell = action.tensors["forces"], False
            for step in range(action.steps_late, action.steps_late + 1 + missed_periods):
                fell = robot.step(force) or fell
                force = float(plan[min(step, PLAN_STEPS - 1)])
            steps_left = max(0, PLAN_STEPS - 1 - step)
            if missed_periods:
                missed_at = time.monotonic()
            state = robot.state()
            gauge.position, gauge.tilt_rad, gauge.source = float(state[0]), float(state[2]), action.source.value
            now = time.monotonic()
            if fell:
                gauge.falls += 1
                self._fleet.falls += 1
                self._fleet.falls_blamed += (now - missed_at) * 1e3 <= BLAMED_MS
                robot.reset(seed=self._random.randrange(2**31))
                force = 0.0
            elif now - pushed_at > PUSH_EVERY_S:
                pushed_at = now
                push = np.array([0.0, self._random.uniform(-1, 1), 0.0, self._random.uniform(-1, 1)]) * PUSH_SPEED
                robot.set_state(state + push)

    async def watch(self) -> None:
        """Shows the watcher what a camera sees, and compares its answer with the truth."""
        tally = self._fleet.watch
        await asyncio.sleep(self._index / (CAMERA_HZ * self._fleet.size))  # the cameras take turns
        rate = AsyncRate(CAMERA_HZ)
        while self._fleet.running:
            await rate.sleep()
            tilt_rad, frame = self._robot.state()[2], self._robot.frame()
            tally.asked += 1
            await self._watch.observe(frame=frame)
            reply = await self._watch.get_result(timeout_ms=190.0)
            if reply is None:
                tally.miss(self._watch)
                continue
            tally.in_time += reply.round_trip_ms <= 150.0
            tally.round_trips_ms.append(reply.round_trip_ms)
            error = abs(float(reply["tilt"][0]) - tilt_rad)
            if np.isfinite(error):
                self._fleet.vision_errors_rad.append(error)

    async def get_ready(self) -> None:
        """Returns once both models have answered in time. Until then the robot is held."""
        deadline = time.monotonic() + READY_S
        answered = 0
        while answered < READY_ANSWERS:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"robot {self._index} had no answers in time for {READY_S:.0f} s: "
                    f"{self._balance.last_error or self._watch.last_error or 'too slow'}"
                )
            await self._balance.observe(state=self._robot.state(), force=np.zeros(1))
            await self._watch.observe(frame=self._robot.frame())
            action = await self._balance.act(timeout_ms=1000.0)
            seen = await self._watch.get_result(timeout_ms=1000.0)
            in_time = action.source is Source.FRESH and action.steps_late == 0 and seen is not None
            answered = answered + 1 if in_time else 0
            await asyncio.sleep(STEP_MS / 1e3)

    async def settle(self) -> None:
        """Waits until what was sent has ended, not beyond SETTLE_S."""
        deadline = time.monotonic() + SETTLE_S
        while self.without_outcome() and time.monotonic() < deadline:
            for model in (self._balance, self._watch):
                await model.next_reply(timeout_ms=50)

    def without_outcome(self) -> int:
        """Requests that were sent and have not ended."""
        stats = self._connection.stats
        return stats.sent - stats.ok - stats.not_ok - stats.timed_out - stats.link_lost

    async def close(self) -> None:
        """Frees the client and the world."""
        await self._connection.close()
        self._robot.close()


class Fleet:
    """All robots, and what is counted over them."""

    def __init__(self, size: int, kind: str, server: str) -> None:
        self.size = size
        self.running = True
        self.balance = Tally()
        self.watch = Tally()
        self.falls = 0
        self.falls_blamed = 0
        self.vision_errors_rad: deque[float] = deque(maxlen=10_000)
        self._members = [Member(i, kind, server, self) for i in range(size)]

    async def run(self, seconds: float) -> None:
        """Lives for `seconds`, then reports one last time."""
        await asyncio.gather(*(member.get_ready() for member in self._members))
        started = time.monotonic()
        loops = [asyncio.ensure_future(loop()) for member in self._members for loop in (member.balance, member.watch)]
        try:
            while (elapsed := time.monotonic() - started) < seconds:
                done, _ = await asyncio.wait(loops, timeout=min(0.25, seconds - elapsed))
                for loop in done:
                    loop.result()  # a loop that ended before its time has failed
                self._print(started, done=False)
            self.running = False
            await asyncio.gather(*loops)
            await asyncio.gather(*(member.settle() for member in self._members))
            self._print(started, done=True)
        finally:
            for member in self._members:
                await member.close()

    def _print(self, started: float, *, done: bool) -> None:
        errors = self.vision_errors_rad
        report = Report(
            elapsed_s=time.monotonic() - started,
            done=done,
            models={"balance": self.balance.report(), "watch": self.watch.report()},
            robots=[asdict(member.gauge) for member in self._members],
            falls=self.falls,
            falls_blamed=self.falls_blamed,
            without_outcome=sum(member.without_outcome() for member in self._members),
            vision_error_deg=float(np.degrees(np.mean(errors))) if errors else None,
        )
        print(json.dumps(asdict(report)), flush=True)


def main() -> None:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="tcp://localhost:5555")
    parser.add_argument("--robots", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--kind", choices=list(ROBOTS), default="cart-pole")
    args = parser.parse_args()

    async def live() -> None:
        await Fleet(args.robots, args.kind, args.server).run(args.seconds)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(live())


if __name__ == "__main__":
    main()
