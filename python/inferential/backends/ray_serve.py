"""The Ray Serve backend: finds the models' applications and takes calls to their replicas, directly or through handles."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from inferential.backends import cluster, link
from inferential.backends.base import BackendEvents
from inferential.backends.cluster import Application, Signature
from inferential.backends.direct import DirectPath
from inferential.backends.handle import HandlePath
from inferential.config.schema import InferentialConfig
from inferential.errors import describe
from inferential.scheduling.request import Call, CallError

logger = logging.getLogger("inferential.ray")
T = TypeVar("T")

PUBLISH_INTERVAL_S = 2.0
_SLOW_START_S = 15.0  # after which an application that is still being deployed is worth a line in the log
STALE_AFTER_S = 60.0
"""A server's key that does not change for this long is removed: its process died."""


@dataclass(slots=True)
class _Watch:
    """What is known of one application's present deployment."""

    app: Application
    signature: Signature | None = None
    looking: bool = False
    """Whether its class is being looked at, or was."""
    looked: bool = False
    """Whether that is over: before it is not known how the class wants to be called, and whether it is servable."""
    attached: bool = False
    """Whether a replica of it has attached: it is servable."""
    since: float = field(default_factory=time.monotonic)
    told: tuple[str, bool] = ("", False)
    """The state that the log has told of, and whether it had words for it."""


class RayServeBackend:
    """See Backend. Replicas that are servable are reached directly, all others through their application's handle."""

    def __init__(self, config: InferentialConfig, models: Mapping[str, Any]) -> None:
        """
        Args:
            config: all settings.
            models: name -> bound application to deploy, or None where it is somebody else's to deploy.
        """
        self._config = config
        self._names = tuple(models)
        self._deploys = {name: application for name, application in models.items() if application is not None}
        self._watches: dict[str, _Watch] = {}
        self._owns_ray = False
        self._started = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls: set[asyncio.Future[Any]] = set()
        self._steps: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle = 0  # threads that wait for a step
        self._leaving = threading.Event()
        self._left = threading.Event()
        self._direct: DirectPath | None = None

    async def start(self, events: BackendEvents) -> None:
        """See Backend. Waits until Ray itself is there.

        Raises:
            MissingDependencyError: Ray is not installed.
            ConfigError: there is no cluster at config.ray.address.
        """
        self._events = events
        self._handles = HandlePath(events)
        # What Ray starts here the kernel kills with the thread that started it, not with the process.
        self._owns_ray = await self._in_thread(cluster.join_or_start, self._config.ray, stays_until=self._left)
        self._started = True
        if self._config.ray.direct_path:
            direct = DirectPath(self._config, self._names, events)
            direct.open()
            self._direct = direct
            self._spawn(self._publish(self._direct))
        self._spawn(self._watch())
        for name, application in self._deploys.items():
            self._spawn(self._deploy(name, application))

    def dispatch(self, call: Call) -> None:
        """See Backend."""
        if call.replica.path == "handle":
            self._handles.dispatch(call)
        elif self._direct is not None:
            self._direct.dispatch(call)
        else:
            self._events.failed(call.id, CallError(f"replica {call.replica.id} is gone"))

    def flushed(self) -> None:
        """See Backend."""
        if self._direct is not None:
            self._direct.flushed()

    def abandon(self, call: Call) -> None:
        """See Backend."""
        if call.replica.path == "handle":
            self._handles.abandon(call)
        elif self._direct is not None:
            self._direct.abandon(call)

    async def stop(self, timeout_s: float) -> None:
        """See Backend."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._leaving.set()
        if self._started:
            await self._handles.stop()
        if self._direct is not None:
            self._direct.close()
        await self._leave(timeout_s)
        self._left.set()
        for _ in range(self._idle + 1):  # and for the one that stayed
            self._steps.put(None)

    async def _leave(self, timeout_s: float) -> None:
        try:
            if self._direct is not None and not self._owns_ray:
                forgotten = self._in_thread(cluster.delete, link.SERVERS + self._direct.server)
                await asyncio.wait_for(forgotten, min(timeout_s, 1.0))
            # Ray's shutdown, here or when the interpreter ends, crashes the process under a thread inside one of its calls.
            if self._calls:
                await asyncio.wait(self._calls, timeout=timeout_s)
            if self._owns_ray:
                await asyncio.wait_for(self._in_thread(cluster.leave), timeout_s)
        except asyncio.TimeoutError:
            logger.warning("Ray did not answer within %.1f s while stopping", timeout_s)
        except Exception as e:
            logger.warning("while leaving Ray: %s", e)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _in_thread(
        self, function: Callable[..., T], *arguments: Any, stays_until: threading.Event | None = None
    ) -> T:
        """Runs what blocks in a thread; one that blocks for good, with Ray's control plane gone, keeps no process from its end.

        With `stays_until` the thread lives on until that is set.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[T] = loop.create_future()
        self._calls.add(ended)
        ended.add_done_callback(self._calls.discard)

        def end(result: T | None, error: BaseException | None) -> None:
            if stays_until is None:
                self._idle += 1
            if error is None:
                ended.set_result(result)  # type: ignore[arg-type]
            elif isinstance(error, Exception) and not isinstance(error, StopIteration):
                ended.set_exception(error)
            else:  # what would end the loop, or what no future takes
                ended.set_exception(RuntimeError(describe(error)))

        def step() -> None:
            result, error = None, None
            try:
                result = function(*arguments)
            except BaseException as e:
                error = e
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(end, result, error)
            if stays_until is not None:
                stays_until.wait()

        # Starting a thread holds the loop up for half a millisecond: those that are idle are used again.
        self._steps.put(step)
        if self._idle:
            self._idle -= 1
        else:
            threading.Thread(target=self._work, name="inferential-ray", daemon=True).start()
        return await asyncio.shield(ended)  # who waits may be cancelled; the call goes on, and stop() waits for it

    def _work(self) -> None:
        while not self._left.is_set() and (step := self._steps.get()) is not None:
            step()

    # --- where replicas find this server ---

    async def _publish(self, direct: DirectPath) -> None:
        seen: dict[str, tuple[bytes, float]] = {}
        while True:
            try:
                node = await self._in_thread(cluster.this_node)
                if not node.alone:
                    direct.bind_node(node.ip)
                await self._in_thread(cluster.put, link.SERVERS + direct.server, direct.endpoint(node.id).to_json())
                await self._in_thread(_remove_stale, seen, direct.server)
            except Exception as e:
                logger.warning("cannot tell replicas where this server is (%s); those that are attached stay so", e)
            await asyncio.sleep(PUBLISH_INTERVAL_S)

    # --- which applications there are ---

    async def _deploy(self, name: str, application: Any) -> None:
        try:
            await self._in_thread(cluster.deploy, name, application, self._leaving)
        except Exception as e:
            logger.error("application %r could not be deployed: %s", name, e)

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
            self._events.trouble(name, "there is no Ray Serve application of that name")
            return
        watch = self._watches.get(name)
        if watch is None or watch.app.deployed_at != app.deployed_at:
            watch = self._watches[name] = _Watch(app)
        watch.app = app
        self._tell(watch)
        direct = self._direct is not None and self._direct.serves(name)
        if direct:
            watch.attached = True
        if direct or not (app.replicas or app.may_be_zero):
            self._handles.withdraw(name, "its replicas are reached directly" if direct else "no running replica")
        elif watch.looked:
            # Where a servable application may be scaled to zero, its handle bridges the time until a replica attaches.
            servable = self._direct is not None and (watch.attached or (watch.signature and watch.signature.servable))
            if not servable or app.may_be_zero:
                self._handles.announce(app, watch.signature)
        elif app.status == "RUNNING" and not watch.looking:
            watch.looking = True
            self._spawn(self._look(watch))

    def _tell(self, watch: _Watch) -> None:
        """Says why an application does not come up, where it takes long or has failed."""
        app = watch.app
        if app.status == "RUNNING" or app.replicas:
            self._events.trouble(app.name, "")
            return
        why = f"Ray Serve says {app.status}" + (f": {app.message}" if app.message else "")
        self._events.trouble(app.name, why)
        failed = app.status not in ("NOT_STARTED", "DEPLOYING")
        state = (app.status, bool(app.message))
        if state != watch.told and (failed or time.monotonic() - watch.since > _SLOW_START_S):
            watch.told = state
            logger.warning("model %r has no replica yet; %s", app.name, why)

    async def _look(self, watch: _Watch) -> None:
        watch.signature = await self._in_thread(cluster.signature, watch.app, self._leaving)
        watch.looked = True
        if self._watches.get(watch.app.name) is watch:
            self._update(watch.app.name, watch.app)


def _remove_stale(seen: dict[str, tuple[bytes, float]], own: str) -> None:
    """Removes what servers left that died. By this process's clock and what changes, so that no clocks need to agree."""
    now = time.monotonic()
    for key in cluster.keys(link.SERVERS):
        value = cluster.get(key)
        if value is None or key == link.SERVERS + own:
            continue
        before = seen.get(key)
        if before is None or before[0] != value:
            seen[key] = (value, now)
        elif now - before[1] > STALE_AFTER_S:
            cluster.delete(key)
            del seen[key]
