"""The one interface behind which every client is tested.

An adapter translates; it adds no behaviour of its own: no retry, no waiting, no checking. All calls block. Values that cross
the interface are the plain ones below, so that they travel between processes.
"""

from __future__ import annotations

import abc
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

# The wire's element types: name -> (number, bytes of one element).
DTYPES = {
    "FLOAT16": (1, 2),
    "FLOAT32": (2, 4),
    "FLOAT64": (3, 8),
    "BFLOAT16": (4, 2),
    "UINT8": (5, 1),
    "INT32": (6, 4),
    "INT64": (7, 8),
    "BOOL": (8, 1),
    "UINT16": (101, 2),
    "INT8": (102, 1),
    "INT16": (103, 2),
    "UINT32": (104, 4),
    "UINT64": (105, 8),
    "FLOAT8_E4M3FN": (106, 1),
    "FLOAT8_E5M2": (107, 1),
}

NAMES = {number: name for name, (number, _) in DTYPES.items()}


@dataclass(frozen=True)
class Tensor:
    """Element type by its name above, shape, and the bytes as they travel: elements (encoding 1), or a JPEG (2) or PNG (3) file."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes
    encoding: int = 1


@dataclass(frozen=True)
class Sent:
    """What became of an observe: `status` None = a reply will end it, NOT_SENT's number = told here and nowhere else."""

    request_id: int
    status: int | None = None
    error: str = ""


@dataclass(frozen=True)
class Reply:
    """How a request ended, by the SDK's own account."""

    model_id: str
    request_id: int
    slot: str
    status: int
    reason: int = 0
    error: str = ""
    local: bool = False
    retry_after_ms: float = 0.0
    phase_shift_ms: float = 0.0
    age_ms: float = 0.0
    round_trip_ms: float = 0.0
    timestamp_ns: int = 0
    observation_timestamp_ns: int = 0
    queue_ms: float = 0.0
    inference_ms: float = 0.0
    server_ms: float = 0.0
    batch_size: int = 0
    replica: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Pong:
    """A PING's answer."""

    round_trip_ms: float
    server: str
    models: dict[str, bool]


@dataclass(frozen=True)
class Action:
    """What act returned; source is one of fresh, hold, decay, zero, callback, none; request_id that of its reply, 0 without one; status
    what it had waited for, None for nothing."""

    source: str
    tensors: dict[str, Tensor]
    age_ms: float
    steps_late: int
    request_id: int
    status: int | None


@dataclass(frozen=True)
class Decoded:
    """What an SDK's decoder read."""

    request_id: int
    status: int
    metadata: dict[str, str]
    tensors: dict[str, Tensor]


class CallError(Exception):
    """The SDK refused the call itself.

    Attributes:
        code: `argument` (the program is wrong), `closed`, `concurrent` (a second waiter), or `other`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


class Adapter(abc.ABC):
    """A client. Connections and models are named by the integers that `connect` and `model` return."""

    @abc.abstractmethod
    def version(self) -> str:
        """The SDK's version."""

    @abc.abstractmethod
    def connect(self, address: str, client_id: str, client_type: str, options: dict[str, Any]) -> int:
        """A connection. Options by the names of docs/protocol.md: connect_timeout_ms, request_timeout_ms, hold_off; absent =
        the SDK's default."""

    @abc.abstractmethod
    def model(self, connection: int, model_id: str, options: dict[str, Any]) -> int:
        """A model handle. Options: latency_budget_ms, priority, step_ms, fallback; absent = the SDK's default. A fallback is
        (kind, ms, template): kind `hold`, `zero`, `decay` or `callback`; template a dict of Tensor or None. The callback returns one tensor
        `actions`, FLOAT32 [1], holding 1 if it was given a last reply, else 0."""

    @abc.abstractmethod
    def observe(
        self,
        model: int,
        tensors: dict[str, Tensor],
        metadata: dict[str, str],
        options: dict[str, Any],
    ) -> Sent:
        """Sends. Options: urgency, steps_remaining, priority, latency_budget_ms, step_ms, latest_only, slot; absent = not given.

        Raises:
            CallError: a program's mistake.
        """

    @abc.abstractmethod
    def get_result(self, model: int, timeout_ms: float) -> Reply | None: ...

    @abc.abstractmethod
    def next_reply(self, model: int, timeout_ms: float) -> Reply | None: ...

    @abc.abstractmethod
    def last_status(self, model: int) -> int | None:
        """How the last get_result ended."""

    @abc.abstractmethod
    def take_phase_shift_ms(self, model: int) -> float: ...

    @abc.abstractmethod
    def pace(self, model: int, hz: float, ticks: int) -> int:
        """So many sleeps of a Rate that follows the model's hints; how many ticks were missed."""

    @abc.abstractmethod
    def decode(self, envelope: bytes, frames: list[bytes]) -> Decoded | None:
        """What the SDK's decoder makes of a reply, None where it refuses it."""

    @abc.abstractmethod
    def act(self, model: int, timeout_ms: float) -> Action: ...

    @abc.abstractmethod
    def cancel(self, model: int, request_id: int) -> bool: ...

    @abc.abstractmethod
    def ping(self, connection: int, timeout_ms: float) -> Pong | None: ...

    @abc.abstractmethod
    def link_state(self, connection: int) -> str:
        """connecting, up, down or closed."""

    @abc.abstractmethod
    def counters(self, connection: int) -> dict[str, int]:
        """docs/protocol.md, section 6.9."""

    @abc.abstractmethod
    def close(self, connection: int) -> None: ...

    @abc.abstractmethod
    def two_waiters(self, model: int, timeout_ms: float) -> list[str]:
        """get_result twice at the same time. How each ended, sorted: `reply`, `none`, or a CallError's code."""

    def first_ok(self, model: int, limit_s: float) -> dict[str, Any]:
        """Observes again and again until the server answers OK. When that was (`time.monotonic()`, the same clock for all
        processes), and how the tries before ended."""
        statuses: Counter[int] = Counter()
        begin = time.monotonic()
        while time.monotonic() - begin < limit_s:
            sent = self.observe(model, {}, {}, {"latency_budget_ms": 10_000.0})
            reply = None if sent.status is not None else self.next_reply(model, 10_000.0)
            if reply is not None and reply.status == 0:
                return {"at_s": time.monotonic(), "before": dict(statuses)}
            statuses[reply.status if reply is not None else sent.status or -1] += 1
            time.sleep(0.005)
        return {"error": f"no OK within {limit_s} s: {dict(statuses)}"}

    def pipeline(self, model: int, count: int, in_flight: int) -> dict[str, Any]:
        """`count` observations, up to `in_flight` outstanding, with next_reply. Written once: it uses only the calls above."""
        statuses: Counter[int] = Counter()
        answered: set[int] = set()
        sent: set[int] = set()
        wrong = 0
        outstanding = 0
        number = 0
        while number < count or outstanding:
            while number < count and outstanding < in_flight:
                data = number.to_bytes(4, "little")
                got = self.observe(model, {"n": Tensor("INT32", (1,), data)}, {}, {"latency_budget_ms": 60_000.0})
                if got.status is not None:
                    return {"error": f"request {got.request_id} was not sent: {got.status} {got.error}"}
                sent.add(got.request_id)
                number += 1
                outstanding += 1
            reply = self.next_reply(model, 30_000.0)
            if reply is None:
                return {"error": f"no reply within 30 s, {outstanding} outstanding, {len(answered)} answered"}
            outstanding -= 1
            statuses[reply.status] += 1
            if reply.request_id in answered or reply.request_id not in sent:
                wrong += 1
            answered.add(reply.request_id)
            got_number = int.from_bytes(reply.tensors["n"].data, "little") if "n" in reply.tensors else -1
            # ids of a fresh connection count from 1, numbers from 0
            if reply.request_id - min(sent) != got_number:
                wrong += 1
        return {"answered": len(answered), "wrong": wrong, "statuses": dict(statuses)}
