"""Models in the server's own process: no Ray, for edge devices, tests and quick callables."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from inferential.backends.base import BackendEvents
from inferential.errors import ConfigError, describe
from inferential.model_call import Item, ModelCall, count
from inferential.scheduling.request import Call, CallError, CallResult, Replica
from inferential.types import by_fields

logger = logging.getLogger("inferential.local")

READY_WAIT_S = 0.5
DEFAULT_ASYNC_CONCURRENCY = 16


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model for `Server(models={name: ...})` with options; see `local`."""

    model: Any
    inline: bool = False
    max_batch_size: int | None = None
    concurrency: int | None = None

    def __reduce__(self) -> Any:
        return by_fields(self)


def local(model: Any, *, inline: Any = False, max_batch_size: Any = None, concurrency: Any = None) -> LocalModel:
    """Options for a model that runs in the server's process.

    Args:
        model: a callable, or an object as inferential.model_call describes it.
        inline: run it on the server's event loop: the quickest way for a callable of well under a millisecond; everything else
            waits while it runs. Otherwise it has threads of its own, and an async model a loop on a thread of its own.
        max_batch_size: of its infer_batch; where not given the model's attribute of that name, or 32.
        concurrency: calls that may run at the same time: threads of a sync model (1 where not given), tasks of an async one (16).
            The setting `max_inflight` of the model bounds them too.

    Raises:
        ConfigError: a number is none, or out of range.
    """
    return LocalModel(
        model,
        bool(inline),
        count("local model: max_batch_size", max_batch_size),
        count("local model: concurrency", concurrency),
    )


class _Runner(Protocol):
    """Where the calls of one model run. `dispatch` reports every call exactly once, unless it was abandoned before it ran."""

    def warm_up(self, done: Callable[[BaseException | None], None]) -> None: ...
    def dispatch(self, call: Call) -> None: ...
    def abandon(self, call: Call) -> None: ...
    async def stop(self, timeout_s: float) -> None: ...


def _items(call: Call) -> list[Item]:
    return [Item(r.observation, r.frames[1:], r.expiry) for r in call.requests]


class _Inline:
    """A sync model on the loop itself."""

    def __init__(self, model: ModelCall, events: BackendEvents) -> None:
        self._model = model
        self._events = events

    def warm_up(self, done: Callable[[BaseException | None], None]) -> None:
        coroutine = self._model.warm_up()
        try:
            coroutine.send(None)
        except StopIteration:
            done(None)
        except BaseException as e:
            done(e)
            if isinstance(e, KeyboardInterrupt):
                raise
        else:
            coroutine.close()
            done(ConfigError(f"model {self._model.name!r}: warm_up is async, infer is not; make both async or neither"))

    def dispatch(self, call: Call) -> None:
        try:
            result = self._model.run(_items(call))
        except BaseException as e:  # a fault in this package, not in the model
            logger.exception("call %d of model %r failed", call.id, call.model)
            self._events.failed(call.id, _fault(e))
            if isinstance(e, KeyboardInterrupt):
                raise
        else:
            self._events.completed(call.id, result)

    def abandon(self, call: Call) -> None:
        """It has run to its end already."""

    async def stop(self, timeout_s: float) -> None:
        """Nothing to free."""


_WARM_UP = -1  # among the ids of calls


class _Tasks:
    """An async model: tasks on a loop, the server's (inline) or one on a thread of its own."""

    def __init__(self, model: ModelCall, events: BackendEvents, loop: asyncio.AbstractEventLoop, inline: bool) -> None:
        self._model = model
        self._events = events
        self._server_loop = loop
        self._tasks: dict[int, asyncio.Task[None]] = {}  # touched on the model's loop only
        self._runner_thread: threading.Thread | None = None
        if inline:
            self._loop = loop
        else:
            self._loop = asyncio.new_event_loop()
            self._runner_thread = threading.Thread(target=self._run, name=f"model-{model.name}", daemon=True)
            self._runner_thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _on_loop(self, function: Callable[..., object], *args: Any) -> None:
        if self._runner_thread is None:
            function(*args)
        else:
            self._loop.call_soon_threadsafe(function, *args)

    def _report(self, function: Callable[..., object], *args: Any) -> None:
        if self._runner_thread is None:
            function(*args)
        else:
            _call_soon(self._server_loop, function, *args)

    def warm_up(self, done: Callable[[BaseException | None], None]) -> None:
        async def run() -> None:
            try:
                await self._model.warm_up()
            except asyncio.CancelledError:
                raise
            except BaseException as e:
                self._report(done, e)
            else:
                self._report(done, None)

        self._on_loop(self._start, _WARM_UP, run)

    def dispatch(self, call: Call) -> None:
        async def run() -> None:
            try:
                result = await self._model.run_async(_items(call))
            except asyncio.CancelledError:
                raise
            except BaseException as e:
                logger.exception("call %d of model %r failed", call.id, call.model)
                self._report(self._events.failed, call.id, _fault(e))
            else:
                self._report(self._events.completed, call.id, result)

        self._on_loop(self._start, call.id, run)

    def _start(self, key: int, run: Callable[[], Any]) -> None:
        task = self._tasks[key] = self._loop.create_task(run())
        task.add_done_callback(lambda task: self._ended(key, task))

    def _ended(self, key: int, task: asyncio.Task[None]) -> None:
        del self._tasks[key]
        # Told here, as a task that is cancelled before its first step runs none of its code.
        if task.cancelled() and key != _WARM_UP:
            self._report(self._events.failed, key, CallError("the call was cancelled", retryable=False))

    def abandon(self, call: Call) -> None:
        self._on_loop(self._cancel, call.id)

    def _cancel(self, key: int) -> None:
        task = self._tasks.get(key)
        if task is not None:
            task.cancel()

    def _cancel_all(self) -> None:
        for task in list(self._tasks.values()):
            task.cancel()
        if self._runner_thread is not None:
            self._loop.call_soon(self._loop.stop)  # after the tasks have seen their cancellation

    async def stop(self, timeout_s: float) -> None:
        self._on_loop(self._cancel_all)
        if self._runner_thread is not None:
            await asyncio.to_thread(self._runner_thread.join, timeout_s)


class _Threads:
    """A sync model: threads that take calls from a queue. Daemons, so that one that hangs keeps no process alive."""

    def __init__(self, model: ModelCall, events: BackendEvents, loop: asyncio.AbstractEventLoop, threads: int) -> None:
        self._model = model
        self._events = events
        self._loop = loop
        self._queue: queue.SimpleQueue[Call | Callable[[], None] | None] = queue.SimpleQueue()
        self._queued: set[int] = set()  # calls that are still wanted
        self._threads = [
            threading.Thread(target=self._run, name=f"model-{model.name}-{i}", daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            if not isinstance(job, Call):
                job()
                continue
            try:
                self._queued.remove(job.id)
            except KeyError:
                error = CallError("the call was cancelled", retryable=False)
                _call_soon(self._loop, self._events.failed, job.id, error)
                continue
            try:
                result: CallResult = self._model.run(_items(job))
            except BaseException as e:  # a SystemExit in a model must not take its thread away
                logger.exception("call %d of model %r failed", job.id, job.model)
                _call_soon(self._loop, self._events.failed, job.id, _fault(e))
            else:
                _call_soon(self._loop, self._events.completed, job.id, result)

    def warm_up(self, done: Callable[[BaseException | None], None]) -> None:
        def run() -> None:
            try:
                asyncio.run(self._model.warm_up())
            except BaseException as e:
                _call_soon(self._loop, done, e)
            else:
                _call_soon(self._loop, done, None)

        self._queue.put(run)

    def dispatch(self, call: Call) -> None:
        self._queued.add(call.id)
        self._queue.put(call)

    def abandon(self, call: Call) -> None:
        # What runs cannot be stopped; what still waits for its thread is not begun.
        self._queued.discard(call.id)

    async def stop(self, timeout_s: float) -> None:
        for _ in self._threads:
            self._queue.put(None)
        end = self._loop.time() + timeout_s
        for thread in self._threads:
            await asyncio.to_thread(thread.join, max(0.0, end - self._loop.time()))
            if thread.is_alive():
                logger.warning("model %r still runs a call; its thread is left behind", self._model.name)


class LocalBackend:
    """See backends.base.Backend. Every model is one replica, `<name>/local`, with a slot for each concurrent call."""

    def __init__(self, models: Mapping[str, Any], *, inline: Any = False) -> None:
        """
        Args:
            models: name -> LocalModel, or what `local` takes.
            inline: for those that are no LocalModel.

        Raises:
            ConfigError: one is no model.
        """
        self._models: dict[str, tuple[ModelCall, LocalModel]] = {}
        for name, model in models.items():
            declared = model if isinstance(model, LocalModel) else LocalModel(model, bool(inline))
            self._models[name] = ModelCall(declared.model, name), declared
        self._runners: dict[str, _Runner] = {}

    async def start(self, events: BackendEvents) -> None:
        """Makes the threads and warms the models up; each is reported up when it is warm.

        Waits a moment for those that are warm at once, so that a server of such models is ready when it has started.
        """
        loop = asyncio.get_running_loop()
        warm: list[asyncio.Future[None]] = []
        for name, (model, declared) in self._models.items():
            concurrency = declared.concurrency or (DEFAULT_ASYNC_CONCURRENCY if model.is_async else 1)
            runner: _Runner
            if model.is_async:
                runner = _Tasks(model, events, loop, declared.inline)
            elif declared.inline:
                runner, concurrency = _Inline(model, events), 1
            else:
                runner = _Threads(model, events, loop, concurrency)
            self._runners[name] = runner
            batch = (declared.max_batch_size if model.batched else None) or model.max_batch_size
            replica = Replica(f"{name}/local", name, concurrency, batch, "local")
            warm.append(loop.create_future())
            runner.warm_up(_warmed_up(events, replica, warm[-1]))
        await asyncio.wait(warm, timeout=READY_WAIT_S)

    def dispatch(self, call: Call) -> None:
        """See Backend."""
        self._runners[call.model].dispatch(call)

    def flushed(self) -> None:
        """See Backend."""

    def abandon(self, call: Call) -> None:
        """See Backend."""
        self._runners[call.model].abandon(call)

    async def stop(self, timeout_s: float) -> None:
        """See Backend. A thread whose model hangs is left behind; it ends with the process."""
        await asyncio.gather(*(runner.stop(timeout_s) for runner in self._runners.values()))


def _warmed_up(
    events: BackendEvents, replica: Replica, ended: asyncio.Future[None]
) -> Callable[[BaseException | None], None]:
    def done(error: BaseException | None) -> None:
        if not ended.done():
            ended.set_result(None)
        if error is None:
            events.replica_up(replica)
        else:
            logger.error("model %r: warm_up failed, it stays unavailable", replica.model, exc_info=error)

    return done


def _fault(e: BaseException) -> CallError:
    return CallError(describe(e), retryable=False)


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: Any) -> None:
    """From a thread. A result that comes when the server is gone is nobody's."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        logger.debug("a call ended after the server did")
