"""Models that live cases ask, as Ray Serve deployments, and the control that opens their gates."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections import defaultdict
from typing import Any

import numpy as np
import ray
from inferential.serving import servable
from ray import serve

CONTROL = "conformance-control"


def describe(value: Any) -> Any:
    """What a model sees of one entry: a string, or an array's type, shape and bytes."""
    if isinstance(value, str):
        return value
    digest = hashlib.sha256(value.tobytes()).hexdigest()
    return {
        "dtype": value.dtype.name,
        "shape": list(value.shape),
        "sha256": digest,
        "read_only": not value.flags.writeable,
    }


class Inspector:
    """Sends every array back under its own name, and in the metadata `seen` what it saw, as JSON."""

    def infer(self, obs: dict[str, Any], context: Any) -> dict[str, Any]:
        seen = {
            "values": {key: describe(value) for key, value in obs.items()},
            "client_id": context.client_id,
            "client_type": context.client_type,
            "model_id": context.model_id,
            "request_id": context.request_id,
            "timestamp_ns": context.timestamp_ns,
            "tensor_timestamps_ns": dict(context.tensor_timestamps_ns),
            "priority": context.priority,
            "urgency": context.urgency,
            "steps_remaining": context.steps_remaining,
            "step_ms": context.step_ms,
            "slot": context.slot,
            "remaining_ms": context.remaining_ms,
        }
        arrays = {key: value for key, value in obs.items() if isinstance(value, np.ndarray)}
        return {**arrays, "seen": json.dumps(seen)}


class Gate:
    """Tells the control that it was entered, and answers when the control lets it."""

    def __init__(self) -> None:
        self._control = ray.get_actor(CONTROL)

    def infer(self, obs: dict[str, Any], context: Any) -> dict[str, Any]:
        label = obs.get("label", "")
        ray.get(self._control.enter.remote(context.model_id, label))
        return {"label": label}


class Odd:
    """Fails in the way that the metadata `how` names."""

    def infer(self, obs: dict[str, Any]) -> Any:
        how = obs.get("how", "")
        if how == "raise":
            raise ValueError("the arm is on fire")
        if how == "nothing":
            return None
        if how == "object":
            return {"actions": np.zeros(3, np.float32), "thing": object()}
        if how == "complex":
            return {"actions": np.zeros(3, np.complex64)}
        if how == "bare":
            return np.arange(6, dtype=np.float32).reshape(2, 3)
        if how == "list":
            return {"actions": [1.0, 2.0], "note": "from a list"}
        if how == "strings":
            return {"plan": "pick, place", "絵": "🦾"}
        return {}


class Doubler:
    """The policy that the shown programs ask."""

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        return {"actions": obs["state"] * 2}


@ray.remote(num_cpus=0, max_concurrency=1000)
class Control:
    """Gates by model: closed ones hold whoever enters. Notes who entered, in order."""

    def __init__(self) -> None:
        self._open: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._entered: dict[str, list[str]] = defaultdict(list)
        self._changed = asyncio.Condition()

    async def close(self, model: str) -> None:
        """From now on who enters waits; who waited before goes on. Forgets who entered."""
        self._open[model].set()
        self._open[model] = asyncio.Event()
        self._entered[model] = []

    async def open(self, model: str) -> None:
        """Lets everybody through."""
        self._open[model].set()

    async def enter(self, model: str, label: str) -> None:
        """Called by the model."""
        async with self._changed:
            self._entered[model].append(label)
            self._changed.notify_all()
        await self._open[model].wait()

    async def entered(self, model: str, at_least: int, timeout_s: float) -> list[str]:
        """Who entered since close(), when there are so many, or when the time is over."""
        async with self._changed:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(lambda: len(self._entered[model]) >= at_least), timeout_s)
            return list(self._entered[model])


def target(name: str, model: type, *, direct: bool) -> Any:
    """`model` as the Serve application `name`, to be reached directly or through its handle."""
    deployment = serve.deployment(
        servable(model) if direct else model,
        name=model.__name__,
        max_ongoing_requests=8,
        ray_actor_options={"num_cpus": 0.1},
    )
    return serve.RunTarget(deployment.bind(), name=name, route_prefix=None)
