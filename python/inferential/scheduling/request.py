"""What the engine works on: requests in, calls to replicas and outcomes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inferential.types import MAX_PRIORITY, Body, Buffer, Observation, Reason, Status, by_fields

if TYPE_CHECKING:
    from inferential.tracking.clients import Stream

INFINITY = float("inf")


@dataclass(slots=True, eq=False)
class Request:
    """An accepted observation on its way through the engine. Times are monotonic seconds."""

    connection: bytes
    """Key of the connection the answer goes to."""
    observation: Observation
    frames: Sequence[Buffer]
    """The message as received: the envelope, then its payload frames (a direct replica gets exactly these)."""
    size_bytes: int
    arrival: float
    # set by the engine
    expiry: float = INFINITY
    dry_at: float | None = None
    key: float = 0.0
    dispatched_at: float = 0.0
    attempt: int = 0
    tried: tuple[str, ...] = ()
    """Replicas on which it failed."""
    done: bool = False
    """Whether its one outcome has been decided."""
    sequence: int = 0
    """Order of arrival in this engine; breaks ties."""
    queued: bool = False
    """Whether it waits in a queue."""
    call: Call | None = None
    """The call it runs in."""
    lane: str | None = None
    """The replica it waits for, where clients keep to one."""
    stream: Stream | None = None
    """What is known of its client at this model."""

    @property
    def level(self) -> int:
        """Its priority as it counts: 0 (best) to MAX_PRIORITY."""
        return min(self.observation.priority, MAX_PRIORITY)


def in_order(request: Request) -> bool:
    """Whether a request waits in an order. One that waits again, as a retry, does not: what is left of it there is not to revive."""
    return request.queued and not request.attempt


@dataclass(frozen=True, slots=True)
class Replica:
    """One place where calls of a model can run."""

    id: str
    model: str
    slots: int
    """Calls it takes at the same time (its credits for this server)."""
    max_batch_size: int = 1
    path: str = "local"
    """direct, handle or local."""

    def __reduce__(self) -> Any:
        return by_fields(self)


@dataclass(slots=True, eq=False)
class Call:
    """Requests that run together on one replica."""

    id: int
    model: str
    replica: Replica
    requests: list[Request]
    started_at: float
    deadline: float
    """When the engine gives the call up (monotonic seconds)."""
    # the engine's own
    open: bool = field(default=True, repr=False)
    """Whether the engine still counts on an answer."""
    unanswered: int = field(default=0, repr=False)
    """Requests in it without an outcome."""
    staged: bool = field(default=False, repr=False)
    """Whether it waits at its replica behind another call."""
    behind: Call | None = field(default=None, repr=False)
    """The call it waits behind."""
    followed: bool = field(default=False, repr=False)
    """Whether it was staged, so that it followed another call without a gap."""
    lead_s: float | None = field(default=None, repr=False)
    """Staged: how long before its predecessor was predicted to end it was sent. None where it had no need to wait for that."""
    begins_at: float = field(default=0.0, repr=False)
    """When the replica begins with it: known once it is not staged, predicted before."""
    ends_at: float = field(default=INFINITY, repr=False)
    """When it is predicted to end."""
    yields: bool = field(default=False, repr=False)
    """Whether another call can follow it where it runs: running, and nothing staged behind it."""


@dataclass(frozen=True, slots=True)
class ItemError:
    """One request of a call failed, the others did not."""

    message: str
    retryable: bool = False
    expired: bool = False
    """Its deadline passed before the model began with it: EXPIRED rather than MODEL_ERROR."""


@dataclass(slots=True)  # one for each call: not frozen, see inferential.types
class CallResult:
    """What a replica answered: one item for each request of the call, in order."""

    items: Sequence[Body | ItemError]
    inference_s: float
    """The model's execution alone."""
    ahead_s: float | None = None
    """How long the call was ready at its replica before the one ahead of it ended; negative: so long after that. None: nobody says."""


@dataclass(frozen=True, slots=True)
class CallError:
    """A call failed as a whole."""

    message: str
    retryable: bool = True
    """Whether another replica may do better (it died, or the link to it did)."""
    unavailable: bool = False
    """UNAVAILABLE rather than MODEL_ERROR, where no retry follows."""


@dataclass(slots=True, eq=False)
class Outcome:
    """The one terminal outcome of a request."""

    request: Request
    status: Status
    reason: Reason = Reason.NONE
    error: str = ""
    retry_after_ms: float = 0.0
    phase_shift_ms: float = 0.0
    body: Body | None = None
    queue_ms: float = 0.0
    inference_ms: float = 0.0
    batch_size: int = 0
    replica: str = ""
