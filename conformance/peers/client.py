"""The released Python client against this project's server: `client.py ADDRESS sync|async`."""

import asyncio
import json
import sys

import numpy as np
from inferential import AsyncConnection, Connection

DTYPES = ["float16", "float32", "float64", "uint8", "int32", "int64", "bool"]
ROUNDS = 100


def same(result, key, array):
    """Whether the result holds exactly that array."""
    if result is None or key not in result:
        return False
    found = result[key]
    return found.dtype == array.dtype and found.shape == array.shape and found.tobytes() == array.tobytes()


async def run(conn, wait):
    """The same steps for both clients; `wait` awaits what has to be awaited."""
    model = conn.model("inspector", latency_budget_ms=5000.0, priority=2)
    out = {"dtypes": {}}
    for name in DTYPES:
        array = (np.arange(15).reshape(3, 5) % 2 if name == "bool" else np.arange(15).reshape(3, 5)).astype(name)
        await wait(model.observe(x=array))
        out["dtypes"][name] = same(await wait(model.get_result(timeout_ms=10000)), "x", array)
    await wait(model.observe(urgency=0.75, steps_remaining=50, state=np.zeros(7, np.float32), task="fold the towel"))
    out["seen"] = (await wait(model.get_result(timeout_ms=10000))).get("seen")
    out["answered"] = 0
    for i in range(ROUNDS):
        array = np.full(3, i, np.float32)
        await wait(model.observe(x=array))
        out["answered"] += same(await wait(model.get_result(timeout_ms=10000)), "x", array)
    big = np.arange(1_000_000, dtype=np.int32)
    await wait(model.observe(big=big, small=np.float32([1])))
    out["big"] = same(await wait(model.get_result(timeout_ms=10000)), "big", big)
    other = conn.model("policy-v2")
    await wait(model.observe(x=np.float32([1])))
    await wait(other.observe(x=np.float32([2])))
    out["two_models"] = [
        same(await wait(other.get_result(timeout_ms=10000)), "x", np.float32([2])),
        same(await wait(model.get_result(timeout_ms=10000)), "x", np.float32([1])),
    ]
    odd = conn.model("odd")
    await wait(odd.observe(how="raise"))
    out["an_error_is_no_reply"] = await wait(odd.get_result(timeout_ms=500)) is None
    await wait(odd.observe(how="bare"))
    out["after_an_error"] = same(
        await wait(odd.get_result(timeout_ms=10000)), "actions", np.arange(6, dtype=np.float32).reshape(2, 3)
    )
    return out


async def main():
    address, kind = sys.argv[1:]
    if kind == "async":

        async def wait(found):
            return await found

        async with AsyncConnection(server=address, client_id="released-async", client_type="franka") as conn:
            out = await run(conn, wait)
    else:

        async def wait(found):
            return found

        conn = Connection(server=address, client_id="released-sync", client_type="franka")
        out = await run(conn, wait)
        conn.close()
    print(json.dumps(out))


asyncio.run(main())
