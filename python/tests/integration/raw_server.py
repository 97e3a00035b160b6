"""A server's socket without a server behind it: a ROUTER in a thread that answers as it is told, for the client's tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import zmq

from inferential import Connection, wire
from inferential.types import Kind, Observation, Reason, Status, Timing

WAIT_S = 20.0  # for what should take milliseconds, on a machine that may be busy

Answer = Callable[["RawServer", "Received"], None]


class Received:
    """One observation and where it came from."""

    def __init__(self, parts: list[bytes]) -> None:
        self.routing_id = parts[0]
        self.frames = parts[3:]
        self.observation: Observation = wire.parse_observation(parts[2], [len(p) for p in self.frames])
        self.tensors: dict[str, Any] = {
            s.key: wire.tensor_array(s, self.frames) for s in self.observation.tensors if s.encoding == 1
        }


def wait_until_ready(connection: Connection, *models: str) -> None:
    """Until the real server at the other end says that these models can take requests."""
    deadline = time.monotonic() + WAIT_S
    while True:
        found = connection.ping(WAIT_S * 1e3)
        if found is not None and all(found.models.get(model) for model in models):
            return
        assert time.monotonic() < deadline, found


def echo(server: RawServer, received: Received) -> None:
    """Returns the tensors."""
    if received.observation.kind is Kind.OBSERVE:
        server.reply(received, tensors=received.tensors, metadata=received.observation.metadata)
    elif received.observation.kind is Kind.PING:
        server.reply(
            received, metadata={"model:policy": "ready", "model:other": "not ready", "server": "9.9", "protocol": "2"}
        )


def echo_v1(server: RawServer, received: Received) -> None:
    """As a 1.x server: reads the first payload frame only, knows no ids."""
    if received.observation.kind is Kind.OBSERVE:
        server.reply(received, tensors=received.tensors, v1=True)


def silent(server: RawServer, received: Received) -> None:
    """Answers nothing."""


class RawServer:
    """Binds port 0 at first and the same port again after stop()."""

    def __init__(self, answer: Answer = echo) -> None:
        self.answer = answer
        self.received: list[Received] = []
        self.port = 0
        self._news = threading.Condition()
        self._running = False
        self.start()

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.set(zmq.ROUTER_HANDOVER, 1)
        self._socket.set(zmq.SNDHWM, 0)  # what does not fit a ROUTER drops
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                self._socket.bind(f"tcp://127.0.0.1:{self.port or '*'}")
                break
            except zmq.ZMQError:  # the port of the last one is not free yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        self.port = int(self._socket.get(zmq.LAST_ENDPOINT).rsplit(b":", 1)[1])
        self._running = True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._running:
            self._running = False
            self._thread.join(WAIT_S)
            self._socket.close(0)
            self._context.term()

    def _run(self) -> None:
        while self._running:
            if not self._socket.poll(20):
                continue
            received = Received(self._socket.recv_multipart())
            with self._news:
                self.received.append(received)
                self._news.notify_all()
            self.answer(self, received)

    def reply(
        self,
        to: Received,
        *,
        tensors: Mapping[str, Any] | None = None,
        v1: bool = False,
        request_id: int | None = None,
        status: Status = Status.OK,
        reason: Reason = Reason.NONE,
        error: str = "",
        retry_after_ms: float = 0.0,
        phase_shift_ms: float = 0.0,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Only from within an answer: the socket belongs to its thread."""
        o = to.observation
        self._socket.send_multipart(
            [
                to.routing_id,
                *wire.encode_response(
                    client_id=o.client_id,
                    client_type=o.client_type,
                    model_id=o.model_id,
                    response_id="r",
                    timestamp_ns=time.time_ns(),
                    request_id=0 if v1 else request_id if request_id is not None else o.request_id,
                    observation_timestamp_ns=o.timestamp_ns,
                    body=wire.encode_body(tensors, several_frames=not v1) if tensors else None,
                    status=status,
                    reason=reason,
                    error=error,
                    retry_after_ms=retry_after_ms,
                    phase_shift_ms=phase_shift_ms,
                    timing=Timing(0.1, 0.2, 0.5, 1, "raw"),
                    metadata=metadata,
                ),
            ]
        )

    def send_raw(self, to: Received, frames: list[bytes]) -> None:
        self._socket.send_multipart([to.routing_id, *frames])

    def wait_for(self, count: int) -> list[Received]:
        """The first `count` observations, once they are here."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.received) >= count, WAIT_S), f"{len(self.received)} of {count}"
            return self.received[:count]
