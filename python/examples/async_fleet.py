"""Several robots in one process, each a connection of its own. Usage: async_fleet.py [ADDRESS [ROBOTS [SECONDS]]]"""

import asyncio
import sys

import numpy as np

from inferential import AsyncConnection, AsyncRate, Zero

address = sys.argv[1] if len(sys.argv) > 1 else "tcp://localhost:5555"
robots = int(sys.argv[2]) if len(sys.argv) > 2 else 8
seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 5.0
HZ = 20.0


async def robot(number: int) -> str:
    async with AsyncConnection(address, client_id=f"robot-{number:02}", client_type="rover") as conn:
        model = conn.model("manipulation-policy", step_ms=1000.0 / HZ, fallback=Zero())
        rate = AsyncRate(HZ)
        fresh = 0
        for _ in range(int(seconds * HZ)):
            await model.observe(state=np.full(7, number, np.float32))
            action = await model.act(timeout_ms=40.0)
            fresh += action.source.name == "FRESH"
            await rate.sleep()
        return f"robot-{number:02}: {fresh} of {int(seconds * HZ)} answers fresh"


async def main() -> None:
    for line in await asyncio.gather(*(robot(number) for number in range(robots))):
        print(line)


asyncio.run(main())
