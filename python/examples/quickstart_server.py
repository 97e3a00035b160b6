"""A server with one model that runs in its own process; it needs no Ray. Usage: quickstart_server.py [ADDRESS]"""

import asyncio
import sys

import numpy as np

from inferential import Server


def policy(obs: dict) -> dict:
    """Steers back to zero, four steps at a time."""
    return {"actions": np.outer([0.9, 0.8, 0.7, 0.6], -obs["state"]).astype(np.float32)}


address = sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5555"
asyncio.run(Server(bind=address, models={"manipulation-policy": policy}).run())
