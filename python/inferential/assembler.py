"""Frames to a validated request: decodes and checks everything before anything else sees it.

Also estimates how far each client's clock is off, so that ages mean something.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from inferential import wire
from inferential.errors import WireError
from inferential.scheduling.request import Request
from inferential.types import MAX_TENSORS, Buffer, Encoding, Observation, TensorSpec

CLOCK_WINDOW_S = 60.0


class ClockOffset:
    """How far a client's wall clock is behind this machine's, in ns: the smallest difference lately seen.

    The quickest message had the least delay, so the minimum of arrival minus sending over a window is the offset plus that least
    delay. It is kept over one to two windows, so that drifting clocks are followed.
    """

    __slots__ = ("_current", "_previous", "_turn")

    def __init__(self) -> None:
        self._current: int | None = None
        self._previous: int | None = None
        self._turn = 0.0

    def observe(self, difference_ns: int, now: float) -> int:
        """Takes in arrival minus sending of one message; returns the estimate."""
        if self._current is None or now >= self._turn:
            self._previous = self._current
            self._current = difference_ns
            self._turn = now + CLOCK_WINDOW_S
        elif difference_ns < self._current:
            self._current = difference_ns
        previous = self._previous
        return self._current if previous is None or self._current < previous else previous


class Assembly:
    """A validated message, and what was measured on the way."""

    __slots__ = ("observation", "payload_bytes", "size_bytes", "spread_ms", "staleness_ms")

    def __init__(self, observation: Observation, payload_bytes: int, size_bytes: int) -> None:
        self.observation = observation
        self.payload_bytes = payload_bytes
        self.size_bytes = size_bytes
        """Of the whole message."""
        self.staleness_ms: float | None = None
        """Age of the oldest data on arrival; None where the client does not tell the time."""
        self.spread_ms: float | None = None
        """Oldest to newest timestamp among the tensors; None with fewer than two."""

    def request(self, connection: bytes, frames: Sequence[Buffer], now: float) -> Request:
        """The request for the engine."""
        return Request(connection, self.observation, frames, self.size_bytes, now)


def assemble(
    frames: Sequence[Buffer], clock: ClockOffset, now: float, *, max_message_bytes: int, wall_ns: int | None = None
) -> Assembly:
    """Decodes and checks a message (docs/protocol.md, sections 2 and 3).

    Args:
        frames: the envelope and the payload frames, each bytes or what is as long as it has bytes (zmq.Frame).
        clock: of the connection it came from.
        now: monotonic seconds.
        max_message_bytes: for all frames together, and for an image once it is decoded.
        wall_ns: this machine's wall clock on arrival; read where not given.

    Raises:
        WireError: what is wrong, with the field's name, and the request_id where it could be read.
    """
    envelope = bytes(frames[0])
    sizes = [len(f) for f in frames[1:]]
    size = sum(sizes)
    observation = wire.parse_observation(envelope, sizes)
    if len(sizes) > MAX_TENSORS:
        raise WireError("message", f"has more than {MAX_TENSORS} payload frames", observation.request_id)
    if size + len(envelope) > max_message_bytes:
        raise WireError(
            "message",
            f"has {size + len(envelope)} bytes in its frames together, at most {max_message_bytes} are allowed",
            observation.request_id,
        )
    result = Assembly(observation, size, size + len(envelope))
    tensors = observation.tensors
    oldest = newest = 0
    for t in tensors:
        stamp = t.timestamp_ns
        if stamp:
            if not oldest or stamp < oldest:
                oldest = stamp
            newest = max(newest, stamp)
        if t.encoding is not Encoding.RAW:
            _check_image(t, observation.request_id, frames[1:], max_message_bytes)
    if newest and len(tensors) > 1:
        result.spread_ms = (newest - oldest) / 1e6
    sent = observation.timestamp_ns
    if sent:
        arrived = time.time_ns() if wall_ns is None else wall_ns
        offset = clock.observe(arrived - sent, now)
        age_ns = arrived - offset - (min(oldest, sent) if oldest else sent)
        result.staleness_ms = max(0.0, age_ns / 1e6)
    return result


def _check_image(spec: TensorSpec, request_id: int, frames: Sequence[Buffer], max_bytes: int) -> None:
    """What can be known of an image without decoding it; a small file may claim to be a huge image."""
    decoded = math.prod(spec.shape)
    if decoded > max_bytes:
        raise WireError(
            f"tensor {spec.key!r}",
            f"shape {list(spec.shape)} decodes to {decoded} bytes, at most {max_bytes} are allowed",
            request_id,
        )
    wire.check_image(spec, frames, request_id)
