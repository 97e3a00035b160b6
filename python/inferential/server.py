"""The server: puts transport, assembler, engine, backends and metrics together on one event loop; starts, drains, stops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import operator
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from inferential._version import __version__
from inferential.backends.base import Backend
from inferential.backends.cluster import is_application
from inferential.backends.local import LocalBackend
from inferential.config.load import check_config, check_name
from inferential.config.schema import InferentialConfig
from inferential.driver import Driver
from inferential.engine import Engine
from inferential.errors import ConfigError
from inferential.memory import keep_freed_memory
from inferential.metrics.collector import Handler, MetricsCollector
from inferential.metrics.prometheus import PrometheusExport

if TYPE_CHECKING:
    from inferential.recording import Recorder, RecordingEngine

logger = logging.getLogger("inferential.server")

BACKEND_STOP_S = 5.0
LAST_REPLIES_S = 0.2
DELIVERY_S = 0.25  # for replies that wait for slow clients when everything else is done
T = TypeVar("T")


class Server:
    """Takes observations from clients, has them answered by models, in the order that their deadlines ask for.

    One event loop does everything but the models' own work. Methods marked so may be called from any thread, all others only
    on the loop that runs the server.
    """

    def __init__(
        self,
        config: InferentialConfig | None = None,
        *,
        models: Sequence[str] | Mapping[str, Any] | None = None,
        bind: str | None = None,
        inline: bool = False,
        record: str | Path | None = None,
        record_payloads: bool = False,
    ) -> None:
        """Checks the settings; nothing is started.

        Args:
            config: all settings; the defaults where not given. It is copied.
            models: names of Ray Serve applications; or name -> what it is: a callable or object that runs in this process (see
                inferential.local for its options), a bound Ray Serve application (`Policy.bind()`) that the server deploys once
                it has started, or None for one that somebody else deploys. Not given: the models that `config.models.known`
                names, from Ray Serve.
            bind: overrides `config.transport.bind`.
            inline: run local models on the event loop: for quick callables.
            record: an MCAP file to write every observation, decision and reply to (docs/recording.md).
            record_payloads: the tensors' bytes too.

        Raises:
            ConfigError: a setting or a model is wrong.
        """
        if config is not None and not isinstance(config, InferentialConfig):
            raise ConfigError(
                f"config is a {type(config).__name__}; it must be an InferentialConfig. inferential.config.load has "
                "load_config(path) for a file and parse_config(mapping) for a dict"
            )
        config = InferentialConfig() if config is None else config.model_copy(deep=True)
        if bind is not None:
            if not isinstance(bind, str):
                raise ConfigError(f"bind is {bind!r}; it must be an endpoint, as in 'tcp://127.0.0.1:5555'")
            config.transport.bind = bind
        models = _by_name(list(config.models.known) if models is None else models)
        check_config(config)
        self._config = config
        for name in set(config.models.known) - set(models):
            logger.warning("models.known.%s: this server has no such model; it has %s", name, ", ".join(models))
        self._closing: asyncio.Task[None] | None = None
        self._export: PrometheusExport | None = None
        if config.metrics.prometheus_port is not None:
            self._export = PrometheusExport(client_label=config.metrics.prometheus_client_label)
        self.metrics = MetricsCollector(config.metrics.ring_size, self._export)
        self._models = tuple(models)
        self._backends: dict[str, Backend] = {}
        self._make_backends(models, bool(inline))
        self._engine: Engine | RecordingEngine = Engine(config, self._models, self.metrics)
        self._recorder: Recorder | None = None
        if record is not None:
            from inferential.recording import Recorder, RecordingEngine

            self._recorder = Recorder(
                Path(record), config_json=config.model_dump_json(), models=self._models, payloads=record_payloads
            )
            self._engine = RecordingEngine(self._engine, self._recorder)
        self._driver = Driver(config, self._engine, self._backends, self.metrics, self._recorder)

    def _make_backends(self, models: Mapping[str, Any], inline: bool) -> None:
        remote = {name: model for name, model in models.items() if model is None or is_application(model)}
        local = {name: model for name, model in models.items() if name not in remote}
        if local:
            backend: Backend = LocalBackend(local, inline=inline)
            self._backends.update(dict.fromkeys(local, backend))
        if remote:
            if not self._config.ray.enabled:
                raise ConfigError(
                    f"ray.enabled is false, but {', '.join(map(repr, remote))} would be Ray Serve applications; "
                    "give local callables with Server(models={name: callable})"
                )
            # Imported here so that a server of local models needs no Ray.
            from inferential.backends.ray_serve import RayServeBackend

            backend = RayServeBackend(self._config, remote)
            self._backends.update(dict.fromkeys(remote, backend))

    # --- for users ---

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that clients may ask for."""
        return self._models

    @property
    def config(self) -> InferentialConfig:
        """The settings in force; changing them has no effect on a server that exists."""
        return self._config

    @property
    def endpoint(self) -> str:
        """Where clients reach the server, with the real port; empty before it is started."""
        return self._driver.transport.endpoint

    @property
    def prometheus_port(self) -> int | None:
        """The port on which Prometheus finds the metrics; None where there is none."""
        return self._export.port if self._export is not None else None

    def on_metric(self, handler: Handler) -> Handler:
        """Decorator: has `handler(name, value, labels)` called for every point of every metric.

        It runs on a thread of its own and can neither delay nor break the server. Any thread.
        """
        return self.metrics.on_metric(handler)

    def use_scheduler(self, name: str, **options: Any) -> None:
        """Changes the strategy now; what is queued stays queued. Any thread.

        Raises:
            ConfigError: unknown name or option; the old strategy goes on.
        """

        def change() -> None:
            self._engine.use_scheduler(name, time.monotonic(), **options)
            self._driver.flush()

        self._on_loop(change)

    def explain(self, client_id: str, request_id: int) -> list[dict[str, Any]]:
        """What was decided about a recent request and why, in order; empty where it is not known (any more). Any thread."""
        number = operator.index(request_id)  # numpy's integers too
        return self._on_loop(lambda: self._engine.explain(str(client_id), number))

    def health(self) -> dict[str, Any]:
        """How the server, its models and their replicas are doing, as plain data (docs/operations.md). Any thread."""
        return self._on_loop(self._health)

    def _health(self) -> dict[str, Any]:
        return {
            "state": self._driver.state,
            "endpoint": self.endpoint,
            "version": __version__,
            "clients": self._driver.transport.active_clients,
            "pending": self._engine.pending,
            "models": {
                name: {**model, "trouble": self._driver.troubles.get(name, "")}
                for name, model in self._engine.health().items()
            },
        }

    def _on_loop(self, function: Callable[[], T]) -> T:
        """Runs something on the server's loop and returns its result, wherever it is called."""
        if self._driver.state in ("new", "stopped"):
            return function()
        with contextlib.suppress(RuntimeError):
            if asyncio.get_running_loop() is self._loop:
                return function()

        async def call() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    # --- life cycle ---

    async def run(self, started: Callable[[], None] | None = None) -> None:
        """Serves until `request_stop`, SIGINT or SIGTERM (handled where this is the main thread), then drains and returns.

        Starts the server unless it is started, and calls `started` once it serves. A signal before that gives the start up, a
        second one later ends the grace period. Raises what `start` raises.

        The process is taken to be the server's own: objects that are there before a replica comes up are kept out of garbage
        collections until it returns (`gc.freeze`), as with Ray loaded looking through them would stop the server for 50 to 200 ms, and
        memory that was freed is kept for the messages to come (inferential.memory).
        """
        loop = asyncio.get_running_loop()
        starting = loop.create_task(self.start()) if self._driver.state == "new" else None

        def signalled(name: str) -> None:
            if starting is not None and not starting.done():
                logger.info("%s while starting: giving up", name)
                starting.cancel()
            else:
                self._signalled(name)

        signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()

        def handle_signals() -> None:
            for number in signals:
                loop.add_signal_handler(number, signalled, signal.Signals(number).name)

        handle_signals()
        try:
            if starting is not None:
                await asyncio.wait([starting])
                if starting.cancelled():
                    return
                starting.result()
                handle_signals()  # Ray puts a handler of SIGTERM in their place, which ends in an abort
            if started is not None:
                started()
            self._driver.owns_process = True
            gc.freeze()
            keep_freed_memory()
            await self._stopping.wait()
        finally:
            if starting is not None and not starting.done():  # whoever awaits this was cancelled
                starting.cancel()
                await asyncio.wait([starting])
            try:
                await self.stop()
            finally:
                gc.unfreeze()
                for number in signals:
                    loop.remove_signal_handler(number)

    def _signalled(self, name: str) -> None:
        if self._stopping.is_set():
            logger.warning("%s again: not waiting any longer", name)
            self._driver.drained.set()
        else:
            logger.info("%s: draining, for %g s at most", name, self._config.lifecycle.grace_period_s)
            self._stopping.set()

    def request_stop(self) -> None:
        """Makes `run` drain and return. Any thread; does not wait."""
        if self._driver.state not in ("new", "stopped"):
            with contextlib.suppress(RuntimeError):  # the loop is closed: there is nothing left to stop
                self._loop.call_soon_threadsafe(self._stopping.set)

    async def start(self) -> None:
        """Binds the socket and begins to serve on this loop. A server is started once.

        Raises:
            ConfigError: it cannot bind, a backend cannot start, or processors cannot be kept awake as the settings ask.
        """
        if self._driver.state != "new":
            raise ConfigError("a server is started once; make a new one")
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        try:
            self._driver.attach(self._loop)
            if self._export is not None:
                settings = self._config.metrics
                self._export.serve(settings.prometheus_port or 0, settings.prometheus_bind)
            for backend in dict.fromkeys(self._backends.values()):
                await backend.start(self._driver)
            # Last: joining Ray takes seconds, in which clients that found the port would only hear UNAVAILABLE.
            self._driver.transport.open(self._loop)
        except BaseException:
            self._config.lifecycle.grace_period_s = 0.0
            await self.stop()
            raise
        logger.info("serving %s on %s", ", ".join(self._models), self.endpoint)

    async def stop(self) -> None:
        """Drains for the grace period at most, answers what is left SHUTTING_DOWN, and closes everything.

        Whoever calls it while it is under way waits for the same end. Cancelled, it ends the grace period, closes everything all the
        same, and then raises CancelledError: clients must get their answers, and threads and sockets must not stay.
        """
        if self._driver.state == "new":
            return
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        cancelled = False
        while not self._closing.done():
            try:
                await asyncio.wait([self._closing])
            except asyncio.CancelledError:
                cancelled = True
                self._driver.drained.set()
        self._closing.result()
        if cancelled:
            raise asyncio.CancelledError

    async def _close(self) -> None:
        self._driver.state = "draining"
        self._stopping.set()
        self._engine.drain(time.monotonic())
        self._driver.flush()
        if self._engine.pending and self._config.lifecycle.grace_period_s:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._driver.drained.wait(), self._config.lifecycle.grace_period_s)
        self._driver.transport.stop_receiving()
        self._engine.abort(time.monotonic())
        self._driver.flush()
        await self._driver.transport.deliver(DELIVERY_S)
        if self._driver.transport.active_clients:
            # A client that gets its last replies and the end of the connection together loses what it has not read yet.
            await asyncio.sleep(LAST_REPLIES_S)
        self._driver.close()
        self._driver.transport.close()
        await asyncio.gather(
            *(backend.stop(BACKEND_STOP_S) for backend in dict.fromkeys(self._backends.values())),
            return_exceptions=True,
        )
        if self._export is not None:
            await asyncio.to_thread(self._export.close)
        if self._recorder is not None:
            await asyncio.to_thread(self._recorder.close)
        self.metrics.close()
        logger.info("stopped")

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @contextlib.contextmanager
    def run_in_thread(self) -> Iterator[Server]:
        """Serves on a thread with a loop of its own while the block runs: for tests, notebooks and programs without asyncio.

        Raises:
            ConfigError: see `start`.
        """
        started = threading.Event()
        failure: list[BaseException] = []

        async def serve() -> None:
            await self.start()
            started.set()
            await self._stopping.wait()
            await self.stop()

        def main() -> None:
            try:
                asyncio.run(serve())
            except BaseException as e:
                failure.append(e)
            finally:
                started.set()

        thread = threading.Thread(target=main, name="inferential-server", daemon=True)
        thread.start()
        started.wait()
        if failure:
            thread.join()
            raise failure[0]
        try:
            yield self
        finally:
            self.request_stop()
            thread.join()
        if failure:
            raise failure[0]


def _by_name(models: Any) -> dict[str, Any]:
    """The models as name -> what runs in this process, None for a Ray Serve application.

    Raises:
        ConfigError: there are none, or one has no proper name.
    """
    if isinstance(models, str):
        models = [models]
    if isinstance(models, bytes) or not isinstance(models, Iterable):
        raise ConfigError(
            f"models is {models!r}; it must be a list of names of Ray Serve applications, or a dict of name -> callable"
        )
    names = list(models)
    if not names:
        raise ConfigError("models: none given; name at least one, in Server(models=...) or the setting models.known")
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(f"models: {name!r} is no name; local models are given as a dict of name -> callable")
        check_name("models", name)
    return dict(models) if isinstance(models, Mapping) else dict.fromkeys(names)
