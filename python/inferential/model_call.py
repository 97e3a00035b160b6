"""How a user's model object is called: what it gets, what it may return, and what happens when it fails.

The same rules hold wherever a model runs, in this process (backends/local) or in a Ray Serve replica (serving).
A model is

* an object with `infer(obs) -> result`, or `__call__` where it has no `infer`, sync or async;
* optionally with `infer_batch(list[obs]) -> list[result]`, sync or async;
* optionally with `warm_up()`, sync or async, called once before traffic.

`obs` is a dict of read-only numpy arrays and metadata strings; a result is a mapping of arrays (anything np.asarray
takes) and strings, or a bare array, which is named `actions`. Where `infer` takes a second argument it gets a Context,
`infer_batch` a list of them. Arrays that are returned are given away: the model must not write to them afterwards, as large ones
are sent from their own memory. (Which it may write to all the same: docs/deployments.md.)
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import numbers
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from inferential import wire
from inferential.errors import ConfigError, MissingDependencyError, ModelError, WireError, describe
from inferential.scheduling.request import INFINITY, CallResult, ItemError
from inferential.types import Body, Buffer, Observation

logger = logging.getLogger("inferential.model")

_ASYNC_WHERE_SYNC = "the model handed out a coroutine from a sync method: declare the method with `async def`"
# Whatever else a model raises is its failure: it must not take its loop, its replica or the server along.
_PASSED_ON = (KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)
DEFAULT_MAX_BATCH_SIZE = 32
LOG_INTERVAL_S = 10.0  # a model that fails on every call must not fill the disk


@dataclass(frozen=True, slots=True)
class Context:
    """What a model may want to know of a request beside its tensors: the second argument of `infer`."""

    client_id: str
    client_type: str
    model_id: str
    request_id: int
    """0 from a v1 client."""
    timestamp_ns: int
    """Wall clock of the client when it sent the observation."""
    tensor_timestamps_ns: Mapping[str, int]
    """When each tensor was measured, for those that say so."""
    deadline: float
    """On time.monotonic() of the process that runs the model, in seconds; infinite where there is none."""
    priority: int
    urgency: float
    steps_remaining: int | None
    step_ms: float
    slot: str

    @property
    def remaining_ms(self) -> float:
        """Time left until the deadline; negative once it has passed."""
        return (self.deadline - time.monotonic()) * 1e3

    def __reduce__(self) -> Any:
        # To another process, perhaps on another machine, goes the time that is left: monotonic clocks have nothing in common.
        values = [getattr(self, f.name) for f in fields(self)]
        return _unpickled, (self.deadline - time.monotonic(), values)


def _unpickled(remaining_s: float, values: list[Any]) -> Context:
    return replace(Context(*values), deadline=time.monotonic() + remaining_s)


@dataclass(slots=True)
class Item:
    """One request of a call, as it reaches the model's side."""

    observation: Observation
    frames: Sequence[Buffer]
    """The payload frames, without the envelope."""
    deadline: float = INFINITY
    """See Context.deadline."""

    def context(self) -> Context:
        """The model's second argument."""
        o = self.observation
        stamps = {t.key: t.timestamp_ns for t in o.tensors if t.timestamp_ns}
        return Context(
            o.client_id,
            o.client_type,
            o.model_id,
            o.request_id,
            o.timestamp_ns,
            stamps,
            self.deadline,
            o.priority,
            o.urgency,
            o.steps_remaining,
            o.step_ms,
            o.slot,
        )


class Prepared:
    """A call whose observations are decoded, on its way through `execute` and `finish`."""

    __slots__ = ("contexts", "inference_s", "items", "observations", "results")

    def __init__(self, items: Sequence[Item], observations: list[Any], contexts: list[Context] | None) -> None:
        self.items = items
        self.observations = observations
        """A dict for each item, or the ItemError that keeps it from the model."""
        self.contexts = contexts
        self.results: list[Any] = list(observations)
        self.inference_s = 0.0


def count(what: str, value: Any) -> int | None:
    """The value as an int, where it is a whole number of 1 or more that messages can carry, or None.

    Raises:
        ConfigError: it is anything else; names it by `what`.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 1 <= int(value) < 2**32:
        raise ConfigError(f"{what} is {value!r}, must be a whole number from 1 to {2**32 - 1}")
    return int(value)


class ModelCall:
    """One model object, and how to call it.

    `run` and `run_async` do all three steps: `prepare` decodes, `execute` runs the model, `finish` encodes. A replica
    that overlaps them calls them one by one. All are as thread-safe as the model.

    Attributes:
        is_async: whether the model must run on an event loop.
        batched: whether it takes batches.
        max_batch_size: how many requests a call of it may have; 1 where it takes no batches.
    """

    def __init__(self, model: Any, name: str) -> None:
        """Looks at the model.

        Raises:
            ConfigError: it is no model.
        """
        if inspect.isclass(model):
            raise ConfigError(f"model {name!r} is the class {model.__name__}; give an instance of it")
        if hasattr(model, "bind") and hasattr(model, "func_or_class"):
            raise ConfigError(
                f"model {name!r} is a Ray Serve deployment without arguments; give the application, {model.name}.bind()"
            )
        infer = getattr(model, "infer", None)
        if infer is None and callable(model):
            infer = model
        infer_batch = getattr(model, "infer_batch", None)
        for method, what in ((infer, "infer"), (infer_batch, "infer_batch")):
            if method is not None and not callable(method):
                raise ConfigError(f"model {name!r}: its attribute {what} is {type(method).__name__}, not a method")
        if infer is None and infer_batch is None:
            raise ConfigError(
                f"model {name!r} is a {type(model).__name__} with neither infer, infer_batch nor __call__"
            )
        self.name = name
        self._model = model
        self._infer: Callable[..., Any] | None = infer
        self._infer_batch: Callable[..., Any] | None = infer_batch
        self._infer_context = infer is not None and takes_context(infer)
        self._batch_context = infer_batch is not None and takes_context(infer_batch)
        self._wants_context = self._infer_context or self._batch_context
        self.batched = infer_batch is not None
        own = getattr(model, "max_batch_size", None) if self.batched else 1
        self.max_batch_size: int = count(f"model {name!r}: max_batch_size", own) or DEFAULT_MAX_BATCH_SIZE
        self._plain = infer is not None and not self._infer_context
        self.is_async = any(is_async(m) for m in (infer, infer_batch) if m is not None)
        self._logged_at = -INFINITY

    async def warm_up(self) -> None:
        """Calls the model's warm_up, where it has one; what that raises is raised."""
        method = getattr(self._model, "warm_up", None)
        if method is not None:
            try:
                result = method()
                if inspect.isawaitable(result):
                    await result
            except SystemExit as e:
                raise ModelError(describe(e)) from e

    def run(self, items: Sequence[Item]) -> CallResult:
        """Runs a call of a sync model to its end in this thread. Never raises an Exception: failures are items."""
        if len(items) == 1 and self._plain:
            return self._run_plain(items[0])
        prepared = self.prepare(items)
        self.execute_sync(prepared)
        return self.finish(prepared)

    def _run_plain(self, item: Item) -> CallResult:
        """`run` for the usual case, without its detours: one item, and a model that takes one argument."""
        infer = self._infer
        assert infer is not None
        inference_s = 0.0
        body: Body | ItemError
        observation: dict[str, Any] = {}
        try:
            observation = wire.observation_arrays(item.observation, item.frames)
            started = time.perf_counter()
            try:
                result = infer(observation)
            finally:
                inference_s = time.perf_counter() - started
            if type(result) is not dict:
                if inspect.iscoroutine(result):
                    result.close()
                    raise ModelError(_ASYNC_WHERE_SYNC)
                if isinstance(result, BaseException):
                    raise result
            body = wire.encode_body(result, several_frames=item.observation.request_id != 0)
        except (WireError, MissingDependencyError) as e:
            body = ItemError(str(e))
        except _PASSED_ON:
            raise
        except BaseException as e:
            body = self._failed(e, observation)
        return CallResult((body,), inference_s)

    async def run_async(self, items: Sequence[Item]) -> CallResult:
        """Runs a call of an async or sync model to its end on this loop."""
        prepared = self.prepare(items)
        await self.execute(prepared)
        return self.finish(prepared)

    def prepare(self, items: Sequence[Item]) -> Prepared:
        """Decodes the observations. One that cannot be decoded fails alone."""
        observations: list[Any] = []
        for item in items:
            try:
                observations.append(wire.observation_arrays(item.observation, item.frames))
            except (WireError, MissingDependencyError) as e:
                observations.append(ItemError(str(e)))
            except Exception as e:  # a fault in this package; the others of the call have no part in it
                observations.append(self._failed(e))
        return Prepared(items, observations, [item.context() for item in items] if self._wants_context else None)

    async def execute(self, prepared: Prepared) -> None:
        """Runs the model; what it returned, or an ItemError, is in `prepared.results` afterwards."""
        started = time.perf_counter()
        todo = [i for i, o in enumerate(prepared.observations) if type(o) is dict]
        if todo and self._infer_batch is not None and (len(todo) > 1 or self._infer is None):
            await self._run_batch(prepared, todo)
        else:
            for i in todo:
                await self._run_single(prepared, i)
        prepared.inference_s = time.perf_counter() - started

    def execute_sync(self, prepared: Prepared) -> None:
        """The same in this thread, without a loop, for a sync model."""
        running = self.execute(prepared)
        try:
            running.send(None)  # a coroutine that awaits nothing ends here
        except StopIteration:
            return
        running.close()
        prepared.results = [ItemError(_ASYNC_WHERE_SYNC)] * len(prepared.items)

    def finish(self, prepared: Prepared) -> CallResult:
        """Encodes the results. One that is no result fails alone."""
        bodies: list[Body | ItemError] = []
        for item, result in zip(prepared.items, prepared.results, strict=True):
            if type(result) is ItemError:
                bodies.append(result)
                continue
            try:
                bodies.append(wire.encode_body(result, several_frames=item.observation.request_id != 0))
            except ModelError as e:
                bodies.append(ItemError(describe(e)))
        return CallResult(bodies, prepared.inference_s)

    async def _run_single(self, prepared: Prepared, i: int) -> None:
        infer = self._infer
        if infer is None:
            await self._run_batch(prepared, [i])
            return
        try:
            if self._infer_context:
                assert prepared.contexts is not None
                result = infer(prepared.observations[i], prepared.contexts[i])
            else:
                result = infer(prepared.observations[i])
            if type(result) is not dict and inspect.isawaitable(result):
                result = await result
        except _PASSED_ON:
            raise
        except BaseException as e:
            result = self._failed(e, prepared.observations[i])
        prepared.results[i] = self._failed(result) if isinstance(result, BaseException) else result

    async def _run_batch(self, prepared: Prepared, indices: list[int]) -> None:
        """One call of infer_batch; where it fails, the items are tried by shape, then one by one, so only bad ones fail."""
        infer_batch = self._infer_batch
        assert infer_batch is not None
        # Copies: where the call fails, those that the model has changed in it are not what the next one gets.
        batch = [dict(prepared.observations[i]) for i in indices]
        failure: BaseException
        try:
            if self._batch_context:
                assert prepared.contexts is not None
                results = infer_batch(batch, [prepared.contexts[i] for i in indices])
            else:
                results = infer_batch(batch)
            if inspect.isawaitable(results):
                results = await results
            if isinstance(results, (Mapping, str, bytes)):
                raise ModelError(
                    f"infer_batch returned a {type(results).__name__}; it must return a list with a result for each observation"
                )
            results = list(results)
            if len(results) != len(batch):
                raise ModelError(f"infer_batch returned {len(results)} results for {len(batch)} observations")
        except _PASSED_ON:
            raise
        except BaseException as e:
            failure = e
        else:
            for i, result in zip(indices, results, strict=True):
                prepared.results[i] = self._failed(result) if isinstance(result, BaseException) else result
            return
        if len(indices) == 1:
            prepared.results[indices[0]] = self._failed(failure)
            return
        by_shape: dict[Any, list[int]] = {}
        for i in indices:
            by_shape.setdefault(_shapes(prepared.observations[i]), []).append(i)
        if len(by_shape) > 1:
            for group in by_shape.values():
                await self._run_batch(prepared, group)
        else:
            for i in indices:
                await self._run_single(prepared, i)

    def _failed(self, error: BaseException, observation: Mapping[str, Any] | None = None) -> ItemError:
        now = time.monotonic()
        if now - self._logged_at >= LOG_INTERVAL_S:
            self._logged_at = now
            logger.warning("model %r failed (shown once per %.0f s)", self.name, LOG_INTERVAL_S, exc_info=error)
        text = describe(error)
        if isinstance(error, KeyError) and observation and error.args and error.args[0] not in observation:
            text += f"; the observation holds {', '.join(map(repr, observation))}"
        return ItemError(text)


def _shapes(observation: Mapping[str, Any]) -> tuple[Any, ...]:
    """What must be equal for observations to stack."""
    return tuple(sorted((k, v.dtype.str, v.shape) for k, v in observation.items() if isinstance(v, np.ndarray)))


def is_async(method: Any) -> bool:
    """Whether to call it gives a coroutine."""
    return inspect.iscoroutinefunction(method) or inspect.iscoroutinefunction(getattr(method, "__call__", None))  # noqa: B004


def takes_context(method: Callable[..., Any]) -> bool:
    """Whether there is a second positional argument: a required one, or one named `context`."""
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 1 and (positional[1].default is positional[1].empty or positional[1].name == "context")
