"""The handle path: calls of plain Serve deployments through Ray Serve's own handles."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from inferential import wire
from inferential.backends.base import BackendEvents
from inferential.backends.cluster import Application, Signature
from inferential.errors import InferentialError, ModelError, describe
from inferential.model_call import Item
from inferential.scheduling.request import Call, CallError, CallResult, ItemError, Replica
from inferential.types import Encoding

logger = logging.getLogger("inferential.ray")

# Larger observations go through Ray's object store: a gRPC message of Serve may have 4 MB where nobody raised its limit.
BY_REFERENCE_BYTES = 2 * 1024 * 1024


def _open(app: Application) -> Any:
    """A Serve handle whose router runs on this loop, where this Ray can do that."""
    from ray.serve.handle import DeploymentHandle

    # Not serve.get_deployment_handle: what that gives out is shared by the process, and may belong to another loop.
    handle = DeploymentHandle(app.deployment, app.name)
    try:
        handle._init(_run_router_in_separate_loop=False)
    except Exception as e:  # another version of Ray, or the handle is in use already
        logger.debug("the router of %s stays in a loop of its own: %s", app.name, e)
    return handle


def _method(handle: Any, name: str, *, by_reference: bool) -> Any:
    try:
        return handle.options(method_name=name, _by_reference=by_reference)
    except TypeError:
        return handle.options(method_name=name)


class _Model:
    """One application behind a handle. Options are evaluated once: the handles are kept."""

    def __init__(self, app: Application, signature: Signature | None) -> None:
        self.app = app
        self.handle = _open(app)
        self.describe(app, signature)

    def describe(self, app: Application, signature: Signature | None) -> None:
        """The application as it is now; one handle serves all its deployments."""
        self.app = app
        self.known = signature is not None
        self.takes_context = signature is not None and signature.takes_context
        self.is_async = signature is not None and signature.is_async
        self.use(signature.method if signature is not None else "infer")

    def use(self, method: str) -> None:
        self.method = method
        self._small = _method(self.handle, method, by_reference=False)
        self._large = _method(self.handle, method, by_reference=True)

    def call(self, size_bytes: int, *arguments: Any) -> Any:
        return (self._large if size_bytes > BY_REFERENCE_BYTES else self._small).remote(*arguments)


class HandlePath:
    """Announces one replica per application, which stands for all of Serve's, and calls it. Lives on the server's loop.

    Serve's router chooses the replica. It polls with growing pauses when all are full, so no more calls are in flight than
    the replicas take at once.
    """

    def __init__(self, events: BackendEvents) -> None:
        self._events = events
        self._models: dict[str, _Model] = {}
        self._announced: dict[str, Replica] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._stopping = False

    def serves(self, model: str) -> bool:
        """Whether this path is open for a model."""
        return model in self._announced

    def announce(self, app: Application, signature: Signature | None) -> None:
        """Opens the path to an application, or follows the number of its replicas."""
        model = self._models.get(app.name)
        if model is None or model.app.deployment != app.deployment:
            self._close(app.name)
            self._models[app.name] = _Model(app, signature)
        elif model.app.deployed_at != app.deployed_at:
            model.describe(app, signature)
        slots = max(app.replicas, 1) * app.max_ongoing_requests
        replica = Replica(f"{app.name}/handle", app.name, slots, 1, "handle")
        if self._announced.get(app.name) != replica:
            self._announced[app.name] = replica
            self._events.replica_up(replica)

    def withdraw(self, name: str, reason: str) -> None:
        """Closes the path; calls that run still finish, or fail by themselves."""
        replica = self._announced.pop(name, None)
        if replica is not None:
            self._events.replica_down(name, replica.id, reason, drained=True)

    def dispatch(self, call: Call) -> None:
        """See Backend."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._run(call))
        self._tasks[call.id] = task
        # Not asyncio.wait_for: what that waits for runs in a task of its own, which begins and ends a turn of the loop later.
        overdue = loop.call_later(call.deadline - time.monotonic(), self._overdue, call)
        task.add_done_callback(lambda task: self._ended(call.id, task, overdue))

    def _overdue(self, call: Call) -> None:
        task = self._tasks.pop(call.id, None)
        if task is not None:
            task.cancel()
            self._events.failed(call.id, CallError(f"model {call.model!r} gave no answer in time through its handle"))

    def _ended(self, call_id: int, task: asyncio.Task[None], overdue: asyncio.TimerHandle) -> None:
        overdue.cancel()
        if self._tasks.pop(call_id, None) is not None and task.cancelled() and not self._stopping:
            self._events.failed(call_id, CallError("the call was cancelled", retryable=False))

    def abandon(self, call: Call) -> None:
        """See Backend. Serve can stop an async model; one that is sync keeps its place in a replica until it is done."""
        task = self._tasks.get(call.id)
        model = self._models.get(call.model)
        if task is not None and model is not None and model.is_async:
            task.cancel()

    async def stop(self) -> None:
        """Ends all calls; nobody is told."""
        self._stopping = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for name in list(self._models):
            self._close(name)
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _close(self, name: str) -> None:
        model = self._models.pop(name, None)
        if model is not None:
            closing = asyncio.get_running_loop().create_task(model.handle.shutdown_async())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _run(self, call: Call) -> None:
        model = self._models.get(call.model)
        if model is None:
            self._events.failed(call.id, CallError(f"model {call.model!r} is not deployed", True, True))
            return
        items: list[Any] = []
        inference_s = 0.0
        try:
            # Announced with a batch size of 1; a call of several is several calls of Serve.
            for request in call.requests:
                item = Item(request.observation, request.frames[1:], request.expiry)
                body, seconds = await self._call(model, item, request.size_bytes)
                items.append(body)
                inference_s += seconds
        except Exception as e:
            self._events.failed(call.id, _lost(call.model, e))
        else:
            self._events.completed(call.id, CallResult(items, inference_s))

    async def _call(self, model: _Model, item: Item, size_bytes: int) -> tuple[Any, float]:
        """The result of one request, and the time from handing it to Serve until its answer: Serve's overhead is in it."""
        try:
            if any(t.encoding is not Encoding.RAW for t in item.observation.tensors):
                observation = await asyncio.to_thread(wire.observation_arrays, item.observation, item.frames)
            else:
                observation = wire.observation_arrays(item.observation, item.frames)
        except InferentialError as e:
            return ItemError(str(e)), 0.0
        started = time.perf_counter()
        try:
            result = await self._result(model, item, size_bytes, observation)
            seconds = time.perf_counter() - started
            return wire.encode_body(result, several_frames=item.observation.request_id != 0), seconds
        except ModelError as e:
            return ItemError(str(e)), time.perf_counter() - started

    async def _result(self, model: _Model, item: Item, size_bytes: int, observation: Any) -> Any:
        """What the model returned.

        Raises:
            ModelError: what the model raised.
        """
        while True:
            method, takes_context = model.method, model.takes_context
            arguments = (observation, item.context()) if takes_context else (observation,)
            try:
                return await model.call(size_bytes, *arguments)
            except Exception as e:
                cause = getattr(e, "cause", None) or e
                # A class that could not be looked at: learn from its answer how it wants to be called.
                if not model.known and method == "infer" and "call a method 'infer' that does not exist" in str(e):
                    model.use("__call__")
                elif not model.known and not takes_context and "missing 1 required positional argument" in str(cause):
                    model.takes_context = True
                elif (model.method, model.takes_context) == (method, takes_context):
                    if _is_model_error(e):
                        raise ModelError(describe(cause)) from None
                    raise


def _is_model_error(error: BaseException) -> bool:
    """Whether the model itself raised it, rather than Ray or Serve on the way."""
    from ray.exceptions import RayError, RayTaskError
    from ray.serve.exceptions import RayServeException

    if isinstance(error, RayTaskError):
        return not isinstance(getattr(error, "cause", None), RayServeException)
    return not isinstance(error, (RayError, RayServeException, asyncio.CancelledError, ConnectionError))


def _lost(model: str, error: BaseException) -> CallError:
    what = describe(error).splitlines()[0]
    return CallError(f"the call of model {model!r} got lost in Ray Serve ({what})", retryable=True, unavailable=True)
