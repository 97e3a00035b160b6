"""The released server, for this project's clients: `server.py PORT`. Prints a line when it is about to serve."""

import asyncio
import sys

import numpy as np
from inferential import LocalDispatcher, Server


def echo(obs):
    """Every array and string back."""
    return {key: value for key, value in obs.items() if isinstance(value, (np.ndarray, str))}


def negate(obs):
    """Tells the second model from the first."""
    return {"actions": -obs["x"]}


server = Server(bind=f"tcp://127.0.0.1:{sys.argv[1]}", dispatcher=LocalDispatcher({"echo": echo, "negate": negate}))
print("serving", flush=True)
asyncio.run(server.run())
