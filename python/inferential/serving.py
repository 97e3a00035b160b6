"""What the author of a Ray Serve deployment imports.

from ray import serve
from inferential.serving import servable

@serve.deployment(num_replicas=2)
@servable
class Policy:
    def infer(self, obs: dict) -> dict: ...

serve.run(Policy.bind(), name="policy")
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import logging
import os
import time
import types
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from inferential.errors import ConfigError
from inferential.memory import keep_freed_memory

if TYPE_CHECKING:
    from inferential.replica import ModelThread

logger = logging.getLogger("inferential.replica")

C = TypeVar("C", bound=type)

_MOST_ONGOING = 16_384  # who sets more means "no bound"; a place for each of so many calls costs a megabyte


def servable(cls: C) -> C:
    """Lets servers exchange tensors with a Serve deployment directly; put it below `@serve.deployment`.

    The class has `infer(self, obs)` or `infer(self, obs, context)`, sync or async (see inferential.model_call), and
    may have

    * `infer_batch(self, batch)`: a list of observations in, a list of results out, an Exception in place of one that
      failed; `max_batch_size` (an attribute, 32) bounds the list;
    * `warm_up(self)`: called before traffic. Where neither it nor the model is async: in the thread that runs the calls (the first, where
      several may run), as GPU libraries keep things for each thread.

    Not more calls run at the same time than the deployment's `max_ongoing_requests` says; a sync model that is not
    thread-safe sets that to 1. Everything else is as in any deployment, and calls through Serve handles still work.

    Raises:
        ConfigError: it is no class, or has no method to call.
    """
    if not inspect.isclass(cls):
        raise ConfigError(f"@servable goes on a class below @serve.deployment, not on {cls!r}")
    if not any(callable(getattr(cls, name, None)) for name in ("infer", "infer_batch")) and "__call__" not in dir(cls):
        raise ConfigError(f"@servable class {cls.__name__} has neither infer, infer_batch nor __call__")
    namespace = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__inferential_servable__": True,
    }
    made: Any = types.new_class(cls.__name__, (_Servable, cls), exec_body=lambda body: body.update(namespace))
    return cast(C, made)


class _Servable:
    """Attaches an instance to the servers when it is made by a Serve replica; anywhere else it does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[misc] # Serve awaits what it gives
        made: Any = super().__init__(*args, **kwargs)
        if _replica_context() is None:
            return made  # noqa: PLE0101 (Serve awaits what a coroutine __init__ gives)
        if inspect.isawaitable(made) or inspect.iscoroutinefunction(getattr(self, "warm_up", None)):
            return self._inferential_made(made)  # noqa: PLE0101
        thread, warming = self._inferential_warm_up()
        if thread is not None:
            warming.result()
        self._inferential_attach(thread)
        return None

    async def _inferential_made(self, made: Any) -> None:
        if inspect.isawaitable(made):
            await made
        thread, warming = self._inferential_warm_up()
        if thread is not None:
            await asyncio.wrap_future(warming)
        elif inspect.isawaitable(warming):
            await warming
        self._inferential_attach(thread)

    def _inferential_warm_up(self) -> tuple[ModelThread | None, Any]:
        """Begins with it, where there is one: a thread and what to wait for; no thread where model or warm_up is async."""
        from inferential.model_call import ModelCall
        from inferential.replica import ModelThread

        warm_up = getattr(self, "warm_up", None)
        if warm_up is None:
            return None, None
        if inspect.iscoroutinefunction(warm_up) or ModelCall(self, _replica_context().app_name).is_async:
            return None, warm_up()
        thread = ModelThread("inferential-model-0")
        return thread, thread.submit(partial(_run_sync, warm_up))

    def _inferential_attach(self, thread: ModelThread | None) -> None:
        import ray

        from inferential.model_call import ModelCall
        from inferential.replica import Identity, ReplicaLinks

        context = _replica_context()
        model = ModelCall(self, context.app_name)
        identity = Identity(
            f"{context.deployment}#{context.replica_tag}", context.app_name, ray.get_runtime_context().get_node_id()
        )
        links = ReplicaLinks(
            model,
            identity,
            max_batch_size=model.max_batch_size,
            max_ongoing=_max_ongoing_requests,
            loop=asyncio.get_running_loop(),
            thread=thread,
        )
        self._inferential_links = links
        # This process is the replica's. Looking through all that Ray and the model have loaded for cycles would stop it for 100 ms.
        gc.freeze()
        keep_freed_memory()
        _normal_priority()
        links.start(lambda: _is_the_model(self))

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve: what it would know by itself if requests came through its handles."""
        theirs = getattr(super(), "record_autoscaling_stats", None)
        stats: dict[str, float] = dict(theirs()) if theirs is not None else {}
        links = self.__dict__.get("_inferential_links")
        ongoing = links.ongoing() if links is not None else None
        if ongoing is not None:
            stats.setdefault("running_requests", ongoing)
        return stats

    def __del__(self) -> Any:
        """Called by Serve before the replica exits, and awaited: the replica drains."""
        links = self.__dict__.get("_inferential_links")
        if links is not None and not links.closed and _on_a_loop():
            return self._inferential_leave(links)
        theirs = getattr(super(), "__del__", None)
        return theirs() if theirs is not None else None

    async def _inferential_leave(self, links: Any) -> None:
        await links.drain(_drain_timeout_s())
        theirs = getattr(super(), "__del__", None)
        if theirs is not None:
            result = theirs()
            if inspect.isawaitable(result):
                await result


def _run_sync(warm_up: Callable[[], Any]) -> None:
    made = warm_up()
    if inspect.isawaitable(made):
        if inspect.iscoroutine(made):
            made.close()
        raise ConfigError("warm_up handed out a coroutine from a sync method: declare the method with `async def`")


def _normal_priority() -> None:
    """Ends the low priority (niceness 15) that Ray gives its workers: whoever answers robots must not run behind all else (ADR 6).

    Only once the model is loaded, which may take its time. Where that is not allowed the log says what to do, and where the user has
    chosen a niceness it stands.
    """
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    if niceness <= 0 or "RAY_worker_niceness" in os.environ:
        return
    try:
        threads = [int(name) for name in os.listdir("/proc/self/task")]  # Linux: each has a niceness of its own
    except OSError:
        threads = [0]  # elsewhere: the process
    try:
        for thread in threads:
            with contextlib.suppress(ProcessLookupError):  # it ended
                if os.getpriority(os.PRIO_PROCESS, thread) > 0:
                    os.setpriority(os.PRIO_PROCESS, thread, 0)
    except PermissionError:
        logger.warning(
            "this replica runs at niceness %d, behind all else on its machine, which delays its answers; "
            "start Ray's nodes with RAY_worker_niceness=0",
            niceness,
        )


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _replica_context() -> Any:
    """Serve's context of this replica, None outside of one."""
    try:
        from ray import serve

        return serve.get_replica_context()
    except Exception:  # no Ray, or not in a replica
        return None


def _setting(name: str, default: float) -> Any:
    """A setting of this deployment, as it is now."""
    return getattr(getattr(_replica_context(), "_deployment_config", None), name, default)


def _max_ongoing_requests() -> int:
    return min(int(_setting("max_ongoing_requests", 5)), _MOST_ONGOING)


def _drain_timeout_s() -> float:
    # Serve counts from before its own wait for requests through handles; what is left of it is ours.
    left_s: float = _setting("graceful_shutdown_timeout_s", 20.0) - _setting("graceful_shutdown_wait_loop_s", 2.0) - 1.0
    return max(0.5, left_s)


def _is_the_model(instance: Any) -> bool:
    """Whether this object is what an application's ingress deployment runs; waits until that is known."""
    from inferential.backends import cluster

    while True:
        context = _replica_context()
        if context.servable_object is not None:
            break
        time.sleep(0.02)
    if context.servable_object is not instance:
        return False  # part of another model
    while True:
        try:
            return cluster.ingress_deployment(context.app_name) in ("", context.deployment)
        except Exception as e:
            logger.warning("cannot ask for the ingress of %s: %s", context.app_name, e)
            time.sleep(0.5)
