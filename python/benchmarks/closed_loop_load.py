"""Cart-poles in real time, each a client, all in this process: the robots of the demo (examples/fleet_demo/physics.py) in a loop that does
not wait for its answers.

Every 20 ms a robot observes, and plays the newest plan it has: an answer that took three periods begins two forces further on. It is
pushed now and then, as in the demo. A plan that runs out leaves the motor off. Prints one line of JSON: how many never fell.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
from bench import ROOT

sys.path.append(str(ROOT / "python" / "examples" / "fleet_demo"))

from fleet import PUSH_EVERY_S, PUSH_SPEED, READY_S
from physics import PLAN_STEPS, STEP_MS, CartPole

from inferential import AsyncConnection, AsyncRate, Reply


class Member:
    """One robot and its client."""

    def __init__(self, index: int, args: argparse.Namespace) -> None:
        self.asked = self.answered = self.late_periods = 0
        self.falls: list[float] = []
        """When, in seconds."""
        self.ages: Counter[int] = Counter()
        """Of the answers, in periods."""
        self._random = random.Random(index)
        self._wait = args.within_period
        self._robot = CartPole()
        self._robot.reset(seed=index)
        self._connection = AsyncConnection(
            server=args.server, client_id=f"cart-pole-{index}", client_type="cart-pole", request_timeout_ms=1000.0
        )
        self._model = self._connection.model(
            args.model, latency_budget_ms=args.budget_ms, priority=1, step_ms=STEP_MS, latest_only=True
        )

    async def get_ready(self) -> None:
        """Returns once the model has answered."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            await self._model.observe(state=self._robot.state(), force=np.zeros(1))
            if await self._model.get_result(timeout_ms=1000.0) is not None:
                return
        raise TimeoutError(f"no answer for {READY_S:.0f} s: {self._model.last_error}")

    async def live(self, begins: float, ends: float) -> None:
        """One period after the other. Time does not wait: periods that this process slept through are lived through on the plan."""
        await asyncio.sleep(begins - time.monotonic())
        robot, rate = self._robot, AsyncRate(1000.0 / STEP_MS)
        plan, plan_begins, period, force = np.zeros(PLAN_STEPS), -PLAN_STEPS, 0, 0.0  # none yet
        asked_in: dict[int, int] = {}
        upright_since = 0
        pushed_at = time.monotonic()

        def planned() -> float:
            step = period - plan_begins
            return float(plan[step]) if step < PLAN_STEPS else 0.0

        await rate.sleep()
        while time.monotonic() < ends:
            period_ends = time.monotonic() + STEP_MS / 1e3
            steps_left = max(0, PLAN_STEPS - 1 - (period - plan_begins))
            sent = await self._model.observe(state=robot.state(), force=np.array([force]), steps_remaining=steps_left)
            asked_in[sent.request_id] = period
            self.asked += 1
            reply = None
            if self._wait:
                left_ms = (period_ends - time.monotonic()) * 1e3 - 1.0
                reply = await self._model.get_result(timeout_ms=max(0.1, left_ms))
            missed_periods = await rate.sleep()
            self.late_periods += missed_periods
            fell = False
            for _ in range(1 + missed_periods):
                fell = fell or robot.step(force)
                period += 1
                force = planned()
            reply = await self._newest() or reply
            if reply is not None:
                asked = asked_in[reply.request_id]
                asked_in = {request: at for request, at in asked_in.items() if at > asked}
                self.answered += 1
                self.ages[period - asked] += 1
                if asked >= upright_since:
                    plan, plan_begins = reply["forces"], asked + 1
                    force = planned()
            now = time.monotonic()
            if fell:
                self.falls.append(now - begins)
                robot.reset(seed=self._random.randrange(2**31))
                upright_since, plan_begins, force = period, period - PLAN_STEPS, 0.0
            elif now - pushed_at > PUSH_EVERY_S:
                pushed_at = now
                push = np.array([0.0, self._random.uniform(-1, 1), 0.0, self._random.uniform(-1, 1)]) * PUSH_SPEED
                robot.set_state(robot.state() + push)

    async def _newest(self) -> Reply | None:
        newest = None
        while (reply := await self._model.get_result(timeout_ms=0)) is not None:
            newest = reply
        return newest

    async def close(self) -> int:
        """Waits for what is outstanding, a second at most; how many requests have ended in nothing."""
        deadline = time.monotonic() + 1.0
        while self._without_outcome() and time.monotonic() < deadline:
            await self._model.next_reply(timeout_ms=50)
        without = self._without_outcome()
        await self._connection.close()
        self._robot.close()
        return without

    def _without_outcome(self) -> int:
        stats = self._connection.stats
        return stats.sent - stats.ok - stats.not_ok


async def run(args: argparse.Namespace) -> dict[str, Any]:
    members = [Member(i, args) for i in range(args.robots)]
    await asyncio.gather(*(member.get_ready() for member in members))
    begins = time.monotonic() + 0.2
    phases = [begins + i * STEP_MS / 1e3 / args.robots for i in range(args.robots)]
    cpu = time.process_time()
    await asyncio.gather(*(m.live(p, p + args.seconds) for m, p in zip(members, phases, strict=True)))
    cpu = time.process_time() - cpu
    without = sum([await member.close() for member in members])
    asked, answered = sum(m.asked for m in members), sum(m.answered for m in members)
    ages = sorted(sum((m.ages for m in members), Counter()).elements())
    return {
        "upright": sum(not m.falls for m in members),
        "falls": sum(len(m.falls) for m in members),
        "fell_at_s": [round(at, 1) for at in sorted(at for m in members for at in m.falls)][:40],
        "asked": asked,
        "plans_per_robot_and_second": answered / args.robots / args.seconds,
        "plan_age_periods_p50": ages[len(ages) // 2] if ages else None,
        "plan_age_periods_p99": ages[len(ages) * 99 // 100] if ages else None,
        "unanswered": without,
        "periods_missed_by_the_robots": sum(m.late_periods for m in members),
        "robots_cpu": cpu / args.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True)
    parser.add_argument("--model", default="balance")
    parser.add_argument("--robots", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--budget-ms", type=float, default=60.0)
    parser.add_argument(
        "--within-period", action="store_true", help="give an answer up that is not there within the period"
    )
    print(json.dumps(asyncio.run(run(parser.parse_args()))), flush=True)


if __name__ == "__main__":
    main()
