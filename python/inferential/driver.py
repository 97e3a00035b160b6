"""The driver: takes what sockets and backends report to the engine, and does what the engine decides.

Everything belongs to the event loop's thread. Nothing here waits, and nothing polls.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import zmq

from inferential import wire
from inferential._version import __version__
from inferential.alarm import Alarm
from inferential.assembler import ClockOffset, assemble
from inferential.backends.base import Backend
from inferential.config.schema import InferentialConfig
from inferential.cpu_latency import CpuLatency
from inferential.engine import Engine
from inferential.errors import WireError
from inferential.metrics.collector import MetricsCollector
from inferential.scheduling.request import CallError, CallResult, Outcome, Replica
from inferential.transport import Peer, Transport
from inferential.types import PROTOCOL_VERSION, Kind, Observation, Status, Timing

if TYPE_CHECKING:
    from inferential.recording import Recorder, RecordingEngine

logger = logging.getLogger("inferential.server")

ANSWERS_TOGETHER_S = 0.0002  # calls that end at once may follow one another for so long before their replies are sent
MAX_ID_DIGITS = 20  # of a uint64


class Driver:
    """Hears from the transport (TransportEvents) and the backends (BackendEvents); after each burst of news it hands calls to backends and
    replies to the transport, and sets the alarm for what comes next.
    """

    def __init__(
        self,
        config: InferentialConfig,
        engine: Engine | RecordingEngine,
        backends: dict[str, Backend],
        metrics: MetricsCollector,
        recorder: Recorder | None,
    ) -> None:
        """
        Args:
            config: all settings.
            engine: decides.
            backends: the way to each model.
            metrics: where numbers go.
            recorder: is told of every reply; None: nobody is.
        """
        self._engine = engine
        self._metrics = metrics
        self._recorder = recorder
        self._max_message_bytes = config.transport.max_message_bytes
        self._backends = backends
        self._distinct = tuple(dict.fromkeys(backends.values()))
        self.transport = Transport(config.transport, self)
        self.state = "new"
        """new, running, draining or stopped."""
        self.owns_process = False
        """Whether what is loaded may be kept out of garbage collections (Server.run)."""
        self._flushing = False
        self._flush_due = False
        self._wakeup: Alarm | None = None
        self._max_wakeup_latency_us = config.cpu.max_wakeup_latency_us
        self._cpu_latency: CpuLatency | None = None
        self._clients = 0
        self._sharing: dict[str, int] = {}  # client id -> connections that have it
        self._shared_logged: set[str] = set()
        self.troubles: dict[str, str] = {}
        """Why a model has no replica, as far as its backend knows."""
        self._response_ids = map(f"{os.urandom(4).hex()}-{{:x}}".format, itertools.count(1))

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on it runs on this loop, the one that is running.

        Raises:
            ConfigError: the processors cannot be kept awake.
        """
        self.loop = loop
        self.drained = asyncio.Event()
        """Set when nothing is left to be answered, while it drains."""
        self.state = "running"
        if self._max_wakeup_latency_us is not None:
            self._cpu_latency = CpuLatency(self._max_wakeup_latency_us, loop, lambda: bool(self._engine.pending))

    def close(self) -> None:
        """Nothing is done any more."""
        self.state = "stopped"
        if self._wakeup is not None:
            self._wakeup.close()
        if self._cpu_latency is not None:
            self._cpu_latency.close()
            self._cpu_latency = None

    # --- messages (transport events) ---

    def received(self, peer: Peer, frames: list[zmq.Frame] | None, now: float) -> None:
        """See TransportEvents."""
        if frames is None:
            self._metrics.record("observation_errors", 1.0, None, peer.client_id)
            return
        clock = peer.clock
        if clock is None:
            clock = peer.clock = ClockOffset()
        record = self._metrics.record
        try:
            assembly = assemble(frames, clock, now, max_message_bytes=self._max_message_bytes)
        except WireError as e:
            record("observation_errors", 1.0, None, peer.client_id)
            if e.request_id:
                self._refuse(peer, e, now)
            return
        observation = assembly.observation
        client = observation.client_id
        if peer.client_id is None:
            self._introduced(peer, client)
        if observation.kind is Kind.OBSERVE:
            if assembly.staleness_ms is not None:
                record("observation_staleness_ms", assembly.staleness_ms, None, client)
            if assembly.spread_ms is not None:
                record("tensor_spread_ms", assembly.spread_ms, None, client)
            if observation.model_id in self._backends:  # what clients make up is no label
                record("payload_size_bytes", float(assembly.payload_bytes), observation.model_id, client)
                if self._cpu_latency is not None:
                    self._cpu_latency.used(now)
            self._engine.submit(assembly.request(peer.routing_id, frames, now), now)
        elif observation.kind is Kind.PING:
            self._answer_ping(peer, observation, now)
        else:
            self._engine.cancel(peer.routing_id, observation.request_id, now)

    def burst_ended(self) -> None:
        """See TransportEvents."""
        self.flush()

    def disconnected(self, peer: Peer, reason: str) -> None:
        """See TransportEvents."""
        self._metrics.record("client_disconnected", 1.0, None, peer.client_id)
        if peer.client_id is not None:
            left = self._sharing.pop(peer.client_id, 1) - 1
            if left > 0:
                self._sharing[peer.client_id] = left
        logger.debug("client %s: %s", peer.client_id, reason)
        self._engine.disconnect(peer.routing_id, time.monotonic())
        self._flush_soon()

    def send_failed(self, peer: Peer, reason: str) -> None:
        """See TransportEvents."""
        self._metrics.record("send_errors", 1.0, None, peer.client_id)
        logger.debug("a reply to client %s was not sent: %s", peer.client_id, reason)

    def _introduced(self, peer: Peer, client_id: str) -> None:
        peer.client_id = client_id
        sharing = self._sharing[client_id] = self._sharing.get(client_id, 0) + 1
        if sharing > 1 and client_id not in self._shared_logged and len(self._shared_logged) < 10_000:
            self._shared_logged.add(client_id)
            logger.warning("several connections use the client id %r; both work, but they share one cadence", client_id)

    def _refuse(self, peer: Peer, e: WireError, now: float) -> None:
        self.transport.send(
            peer,
            wire.encode_response(
                client_id=peer.client_id or "",
                client_type="",
                model_id="",
                response_id=next(self._response_ids),
                timestamp_ns=time.time_ns(),
                request_id=e.request_id,
                observation_timestamp_ns=0,
                status=Status.INVALID_OBSERVATION,
                error=str(e),
                timing=Timing(server_ms=(time.monotonic() - now) * 1e3),
            ),
        )

    def _answer_ping(self, peer: Peer, observation: Observation, now: float) -> None:
        metadata = {"server": __version__, "protocol": str(PROTOCOL_VERSION)}
        for name in self._backends:
            ready = self.state == "running" and self._engine.ready(name)
            metadata[f"model:{name}"] = "ready" if ready else "not ready"
        asked = observation.metadata.get("explain")
        if asked is not None:
            request_id, _, client_id = asked.partition(" ")
            is_id = request_id.isdecimal() and len(request_id) <= MAX_ID_DIGITS
            metadata["explain"] = json.dumps(self._engine.explain(client_id, int(request_id)) if is_id else [])
        self.transport.send(
            peer,
            wire.encode_response(
                client_id=observation.client_id,
                client_type=observation.client_type,
                model_id="",
                response_id=next(self._response_ids),
                timestamp_ns=time.time_ns(),
                request_id=observation.request_id,
                observation_timestamp_ns=observation.timestamp_ns,
                metadata=metadata,
                timing=Timing(server_ms=(time.monotonic() - now) * 1e3),
            ),
        )

    # --- replicas (backend events) ---

    def replica_up(self, replica: Replica) -> None:
        """See BackendEvents."""
        self._engine.replica_up(replica, time.monotonic())
        if self.owns_process:
            gc.freeze()  # whatever was imported for it
        self.flush()

    def replica_down(self, model: str, replica_id: str, reason: str, *, drained: bool = False) -> None:
        """See BackendEvents."""
        self._engine.replica_down(model, replica_id, reason, time.monotonic(), drained=drained)
        self.flush()

    def completed(self, call_id: int, result: CallResult) -> None:
        """See BackendEvents."""
        self._engine.complete(call_id, result, time.monotonic())
        self.flush()

    def completed_all(self, results: Sequence[tuple[int, CallResult]]) -> None:
        """See BackendEvents."""
        now = time.monotonic()
        for call_id, result in results:
            self._engine.complete(call_id, result, now)
        self.flush()

    def failed(self, call_id: int, error: CallError) -> None:
        """See BackendEvents."""
        self._engine.fail(call_id, error, time.monotonic())
        self.flush()

    def trouble(self, model: str, why: str) -> None:
        """See BackendEvents."""
        if why:
            self.troubles[model] = why
        else:
            self.troubles.pop(model, None)

    def waiting(self, model: str) -> int:
        """See BackendEvents."""
        return self._engine.waiting(model)

    # --- what the engine decided ---

    def flush(self) -> None:
        """Does what the engine decided, until it has nothing more to say."""
        if self._flushing:  # a call that ended at once, in the loop below
            return
        if self.state == "stopped":
            return
        self._flushing = True
        engine, transport = self._engine, self.transport
        outcomes: deque[Outcome] = deque()
        try:
            answer_by = time.monotonic() + ANSWERS_TOGETHER_S
            calls = engine.take_calls()
            while True:
                if calls:
                    try:
                        for call in calls:
                            self._backends[call.model].dispatch(call)
                    finally:
                        for backend in self._distinct:
                            backend.flushed()
                outcomes += engine.take_outcomes()
                calls = engine.take_calls()
                if outcomes:
                    now = time.monotonic()
                    if calls and now < answer_by:
                        # Calls before answers: a batch's thirty replies would keep the next one from a replica that is idle. And the
                        # replies of a quick inline model, whose calls have ended already, wake ZMQ's thread and the client once.
                        continue
                    self._answer_all(outcomes, now)
                    answer_by = time.monotonic() + ANSWERS_TOGETHER_S
                # Calls that ended at once, and connections found gone, leave the engine with more to say.
                if not calls and not engine.unsettled:
                    break
            for call in engine.take_abandoned():
                self._backends[call.model].abandon(call)
        except Exception:
            # Whatever it was (an order of the user's, perhaps): who has an outcome hears of it.
            outcomes += engine.outcomes_so_far()
            self._answer_all(outcomes, time.monotonic())
            raise
        finally:
            self._flushing = False
            transport.check_readable()
            self._schedule_wakeup()
        if transport.active_clients != self._clients:
            self._clients = transport.active_clients
            self._metrics.record("active_clients", float(self._clients))
        self._metrics.flush()
        if self.state == "draining" and not engine.pending:
            self.drained.set()

    def _answer_all(self, outcomes: deque[Outcome], now: float) -> None:
        wall_ns = time.time_ns()
        while outcomes:
            self._answer(outcomes.popleft(), wall_ns, now)

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flush_due = False
        self.flush()

    def _answer(self, outcome: Outcome, wall_ns: int, now: float) -> None:
        request = outcome.request
        o = request.observation
        peer = self.transport.peer(request.connection)
        if peer is None:
            self._metrics.record("send_errors", 1.0, None, o.client_id)
            return
        if not o.request_id and outcome.status is not Status.OK:
            return  # a v1 client would take it for a success
        server_ms = (now - request.arrival) * 1e3
        error = outcome.error
        if outcome.status is Status.UNAVAILABLE and o.model_id in self.troubles:
            error = f"{error}: {self.troubles[o.model_id]}"
        frames = wire.encode_response(
            client_id=o.client_id,
            client_type=o.client_type,
            model_id=o.model_id,
            response_id=next(self._response_ids),
            timestamp_ns=wall_ns,
            request_id=o.request_id,
            observation_timestamp_ns=o.timestamp_ns,
            body=outcome.body,
            status=outcome.status,
            reason=outcome.reason,
            error=error,
            retry_after_ms=outcome.retry_after_ms,
            phase_shift_ms=outcome.phase_shift_ms,
            timing=Timing(outcome.queue_ms, outcome.inference_ms, server_ms, outcome.batch_size, outcome.replica),
        )
        self.transport.send(peer, frames)
        if self._recorder is not None:
            self._recorder.reply(now, o.model_id, frames)

    def _schedule_wakeup(self) -> None:
        at = self._engine.next_wakeup()
        if at is None:
            return  # an alarm that is set may ring for nothing, once
        wakeup = self._wakeup
        if wakeup is None:
            wakeup = self._wakeup = Alarm(self.loop, self._woken)
        # One that rings first looks again: cheaper than to set it for each request.
        if wakeup.at is None or at < wakeup.at:
            wakeup.set(at)

    def _woken(self) -> None:
        self._engine.advance(time.monotonic())
        self.flush()
