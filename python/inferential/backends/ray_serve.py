"""The Ray Serve backend: finds the models' applications and takes calls to their replicas, directly or through handles."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from inferential.backends import cluster
from inferential.backends.base import BackendEvents
from inferential.backends.cluster import Application, Signature
from inferential.backends.handle import HandlePath
from inferential.config.schema import InferentialConfig
from inferential.scheduling.request import Call, CallError

logger = logging.getLogger("inferential.ray")
T = TypeVar("T")

ATTACH_GRACE_S = 2.0
"""How long an application whose class is unknown may take to attach before it is called through its handle."""


@dataclass(slots=True)
class _Watch:
    """What is known of one application's present deployment."""

    app: Application
    seen_at: float
    signature: Signature | None = None
    looked: bool = False


class RayServeBackend:
    """See Backend. Replicas that are servable are reached directly, all others through their application's handle."""

    def __init__(self, config: InferentialConfig, models: Sequence[str]) -> None:
        self._config = config
        self._names = tuple(models)
        self._watches: dict[str, _Watch] = {}
        self._owns_ray = False
        self._started = False
        self._tasks: list[asyncio.Task[None]] = []
        # Ray's calls block, and may block for long when its control plane is in trouble: they get threads of their own.
        self._threads = concurrent.futures.ThreadPoolExecutor(3, thread_name_prefix="inferential-ray")

    async def start(self, events: BackendEvents) -> None:
        """See Backend. Waits until Ray itself is there.

        Raises:
            MissingDependencyError: Ray is not installed.
            ConfigError: there is no cluster at config.ray.address.
        """
        self._events = events
        self._handles = HandlePath(events)
        self._owns_ray = await self._in_thread(cluster.join_or_start, self._config.ray)
        self._started = True
        self._tasks.append(asyncio.get_running_loop().create_task(self._watch()))

    def dispatch(self, call: Call) -> None:
        """See Backend."""
        if call.replica.path == "handle":
            self._handles.dispatch(call)
        else:
            self._events.failed(call.id, CallError(f"replica {call.replica.id} is gone"))

    def abandon(self, call: Call) -> None:
        """See Backend."""
        self._handles.abandon(call)

    async def stop(self, timeout_s: float) -> None:
        """See Backend."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self._started:
            return
        await self._handles.stop()
        if self._owns_ray:
            leaving = self._in_thread(lambda: cluster.leave(stop_serve=True))
            try:
                await asyncio.wait_for(leaving, timeout_s)
            except asyncio.TimeoutError:
                logger.warning("embedded Ray did not stop within %.1f s; it dies with this process", timeout_s)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    # --- which applications there are ---

    async def _watch(self) -> None:
        """Looks at the applications again and again; what Ray's control plane does in between never stops a request."""
        failing = False
        while True:
            try:
                found = await self._in_thread(cluster.applications, self._names)
                failing = False
            except Exception as e:
                if not failing:
                    logger.warning("cannot ask Ray Serve for its applications (%s); going on with what is known", e)
                failing = True
            else:
                for name in self._names:
                    self._update(name, found.get(name))
            await asyncio.sleep(self._config.ray.poll_s)

    def _update(self, name: str, app: Application | None) -> None:
        if app is None or app.status == "DELETING":
            self._watches.pop(name, None)
            self._handles.withdraw(name, "not deployed")
            return
        watch = self._watches.get(name)
        if watch is None or watch.app.deployed_at != app.deployed_at:
            watch = self._watches[name] = _Watch(app, time.monotonic())
        watch.app = app
        if not (app.replicas or app.scaled_to_zero):
            self._handles.withdraw(name, "no running replica")
        elif watch.looked:
            self._handles.announce(app, watch.signature)
        elif app.status in ("RUNNING", "UNHEALTHY") or app.replicas:
            watch.looked = True
            task = asyncio.get_running_loop().create_task(self._look(watch))
            self._tasks.append(task)
            task.add_done_callback(self._tasks.remove)

    async def _look(self, watch: _Watch) -> None:
        signature = await self._in_thread(cluster.signature, watch.app)
        watch.signature = signature
        if self._watches.get(watch.app.name) is watch:
            self._handles.announce(watch.app, signature)
