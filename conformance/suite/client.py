"""A client under test, as the cases use it: connections and models as objects, over a worker process."""

from __future__ import annotations

import struct
import time
from typing import Any

from adapters.base import DTYPES, Action, Decoded, Pong, Reply, Sent, Tensor
from adapters.worker import Worker

PATIENCE_MS = 20_000.0  # for what must come: the machine may be busy


def f32(*values: float) -> Tensor:
    """A one-dimensional FLOAT32 tensor."""
    return Tensor("FLOAT32", (len(values),), struct.pack(f"<{len(values)}f", *values))


def some(dtype: str, shape: tuple[int, ...], seed: int = 1) -> Tensor:
    """A tensor of bytes that differ from one another; BOOL ones are 0 and 1."""
    size = DTYPES[dtype][1]
    for n in shape:
        size *= n
    data = bytes((i * 167 + seed * 31 + (i >> 8)) % 256 for i in range(size))
    return Tensor(dtype, shape, bytes(b & 1 for b in data) if dtype == "BOOL" else data)


class Model:
    """A model handle."""

    def __init__(self, worker: Worker, number: int) -> None:
        self._worker = worker
        self._number = number

    def observe(
        self, tensors: dict[str, Tensor] | None = None, metadata: dict[str, str] | None = None, **options: Any
    ) -> Sent:
        found: Sent = self._worker.call("observe", self._number, tensors or {}, metadata or {}, options)
        return found

    def send(
        self, tensors: dict[str, Tensor] | None = None, metadata: dict[str, str] | None = None, **options: Any
    ) -> int:
        """observe that must get through; the request id."""
        sent = self.observe(tensors, metadata, **options)
        assert sent.status is None, f"not sent: {sent}"
        return sent.request_id

    def get_result(self, timeout_ms: float = PATIENCE_MS) -> Reply | None:
        found: Reply | None = self._worker.call("get_result", self._number, timeout_ms, limit_s=timeout_ms / 1e3)
        return found

    def next_reply(self, timeout_ms: float = PATIENCE_MS) -> Reply | None:
        found: Reply | None = self._worker.call("next_reply", self._number, timeout_ms, limit_s=timeout_ms / 1e3)
        return found

    def begin_next_reply(self, timeout_ms: float = PATIENCE_MS) -> None:
        self._worker.begin("next_reply", self._number, timeout_ms, limit_s=timeout_ms / 1e3)

    def reply(self) -> Reply:
        """next_reply that must come."""
        found = self.next_reply()
        assert found is not None, f"no reply within {PATIENCE_MS / 1e3:g} s"
        return found

    def ok(self) -> Reply:
        """next_reply that must come and be OK."""
        found = self.reply()
        assert found.status == 0, f"status {found.status}: {found.error}"
        return found

    def act(self, timeout_ms: float) -> Action:
        found: Action = self._worker.call("act", self._number, timeout_ms, limit_s=timeout_ms / 1e3)
        return found

    def cancel(self, request_id: int) -> bool:
        return bool(self._worker.call("cancel", self._number, request_id))

    def last_status(self) -> int | None:
        found: int | None = self._worker.call("last_status", self._number)
        return found

    def take_phase_shift_ms(self) -> float:
        return float(self._worker.call("take_phase_shift_ms", self._number))

    def pace(self, hz: float, ticks: int) -> int:
        return int(self._worker.call("pace", self._number, hz, ticks, limit_s=ticks / hz))

    def two_waiters(self, timeout_ms: float) -> list[str]:
        found: list[str] = self._worker.call("two_waiters", self._number, timeout_ms, limit_s=timeout_ms / 1e3)
        return found

    def begin_first_ok(self, limit_s: float) -> None:
        self._worker.begin("first_ok", self._number, limit_s, limit_s=limit_s + 10)

    def begin_pipeline(self, count: int, in_flight: int, limit_s: float) -> None:
        self._worker.begin("pipeline", self._number, count, in_flight, limit_s=limit_s)

    def end(self) -> Any:
        """The value of the call that a begin_ began."""
        return self._worker.end()


class Connection:
    """A connection of the client under test."""

    def __init__(self, worker: Worker, number: int) -> None:
        self._worker = worker
        self._number = number
        self.closed = False

    def model(self, model_id: str, **options: Any) -> Model:
        return Model(self._worker, self._worker.call("model", self._number, model_id, options))

    def ping(self, timeout_ms: float = PATIENCE_MS) -> Pong | None:
        found: Pong | None = self._worker.call("ping", self._number, timeout_ms, limit_s=timeout_ms / 1e3)
        return found

    def begin_ping(self, timeout_ms: float = PATIENCE_MS) -> None:
        self._worker.begin("ping", self._number, timeout_ms, limit_s=timeout_ms / 1e3)

    def end_ping(self) -> Pong | None:
        found: Pong | None = self._worker.end()
        return found

    def link_state(self) -> str:
        return str(self._worker.call("link_state", self._number))

    def wait_for_link(self, state: str, timeout_s: float = PATIENCE_MS / 1e3) -> float:
        """Asks until the link is in that state; how long that took in seconds."""
        begin = time.monotonic()
        while (now := self.link_state()) != state:
            waited = time.monotonic() - begin
            assert waited < timeout_s, f"the link is still {now} after {waited:.1f} s, not {state}"
            time.sleep(0.005)
        return time.monotonic() - begin

    def counters(self) -> dict[str, int]:
        found: dict[str, int] = self._worker.call("counters", self._number)
        return found

    def wait_for_counter(self, name: str, value: int, timeout_s: float = PATIENCE_MS / 1e3) -> None:
        """Asks until a counter has that value."""
        begin = time.monotonic()
        while (found := self.counters()[name]) != value:
            assert time.monotonic() - begin < timeout_s, f"{name} is {found}, not {value}"
            time.sleep(0.005)

    def close(self) -> None:
        self.closed = True
        self._worker.call("close", self._number)


class Client:
    """One kind of client in its process. Closes what a case leaves open."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.kind = worker.kind
        self._connections: list[Connection] = []
        self._count = 0

    def connect(self, address: str, client_id: str = "", client_type: str = "robot", **options: Any) -> Connection:
        self._count += 1
        name = client_id or f"{self.kind}-{self._count}"
        connection = Connection(self.worker, self.worker.call("connect", address, name, client_type, options))
        self._connections.append(connection)
        return connection

    def decode(self, envelope: bytes, frames: list[bytes]) -> Decoded | None:
        """What the client's decoder makes of a reply, None where it refuses it."""
        found: Decoded | None = self.worker.call("decode", envelope, frames)
        return found

    def close(self) -> None:
        for connection in self._connections:
            if not connection.closed and self.worker.alive:
                connection.close()
