"""What both ends of the direct path share: messages, proofs, and how frames go into and out of a socket.

The only importer of the generated code of proto/inferential/backend.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import zmq

from inferential._proto.inferential.backend.v1 import backend_pb2 as pb
from inferential.types import COPIED_BYTES, Buffer

__all__ = [
    "VERSION",
    "Endpoint",
    "nonce",
    "pb",
    "proof",
    "put_payload",
    "readable",
    "receive",
    "same",
    "send",
    "size_bytes",
    "take_payload",
]

VERSION = 1
NONCE_BYTES = 32
INLINE_BYTES = 4096  # payloads up to this size are cheaper in the header than as frames of their own
SERVERS = "server/"
"""Prefix of the keys under which servers tell replicas where they are."""

# Plain numbers: pyzmq's flags are enums, which are slow to combine and to convert.
_FLAGS = int(zmq.NOBLOCK)
_FLAGS_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server's backend socket is, as it stands in Ray's key-value store, which only the cluster's members can read."""

    server: str
    node: str
    """Ray's id of the server's node."""
    local: str
    """Endpoint for replicas on the same node (loopback)."""
    remote: str
    """Endpoint for replicas on other nodes, empty where the cluster has none."""
    models: list[str]
    secret: str
    beat: int = 0
    """Grows while the server lives."""

    def to_json(self) -> bytes:
        """As stored."""
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def from_json(data: bytes) -> Endpoint:
        """As read; fields of later versions are ignored.

        Raises:
            ValueError: it is no endpoint.
        """
        try:
            found = json.loads(data)
            return Endpoint(**{name: found[name] for name in _ENDPOINT_FIELDS if name in found})
        except (KeyError, TypeError) as e:
            raise ValueError(f"no endpoint: {e}") from None


_ENDPOINT_FIELDS = tuple(f.name for f in fields(Endpoint))


def nonce() -> bytes:
    """Fresh random bytes."""
    return os.urandom(NONCE_BYTES)


def proof(secret: str, *parts: bytes | str) -> bytes:
    """Shows knowledge of the secret: HMAC-SHA256 over the parts, each with its length before it."""
    mac = hmac.new(bytes.fromhex(secret), digestmod=hashlib.sha256)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        mac.update(len(data).to_bytes(8, "big"))
        mac.update(data)
    return mac.digest()


def same(a: bytes, b: bytes) -> bool:
    """Whether two proofs are equal, in constant time."""
    return hmac.compare_digest(a, b)


def size_bytes(frame: Buffer) -> int:
    """Bytes of a frame."""
    # Asking a zmq.Frame for an attribute that it has not is slow.
    return len(frame) if type(frame) is bytes or type(frame) is zmq.Frame else memoryview(frame).nbytes


def put_payload(item: Any, frames: Sequence[Buffer], rest: list[Buffer]) -> None:
    """Puts an item's payload frames into its header where they are small, else into `rest`, which follows."""
    if len(frames) == 1:
        frame = frames[0]
        if size_bytes(frame) <= INLINE_BYTES:
            item.payload.append(bytes(frame))
        else:
            item.frames = 1
            rest.append(frame)
    elif sum(map(size_bytes, frames)) <= INLINE_BYTES:
        item.payload.extend(map(bytes, frames))
    else:
        item.frames = len(frames)
        rest += frames


def take_payload(item: Any, rest: Sequence[Buffer], at: int) -> tuple[Sequence[Buffer], int]:
    """The payload frames of an item, and where those of the next one begin in `rest`."""
    count = item.frames
    if not count:
        return list(item.payload), at
    end = at + count
    return rest[at:end], end


def send(socket: Any, header: bytes, frames: Sequence[Buffer], to: bytes | None = None) -> None:
    """Sends a message without waiting; large frames go from their own memory.

    Raises:
        zmq.Again: the peer's queue is full.
        zmq.ZMQError: the peer is gone (EHOSTUNREACH).
    """
    put = super(zmq.Socket, socket).send  # without what pyzmq puts around it for options that are not used here
    if to is not None:
        put(to, _FLAGS_MORE)
    if not frames:
        put(header, _FLAGS)
        return
    put(header, _FLAGS_MORE)
    last = len(frames) - 1
    broken: zmq.Again | None = None
    for i, frame in enumerate(frames):
        copy = type(frame) is not zmq.Frame and size_bytes(frame) < COPIED_BYTES
        try:
            put(frame, _FLAGS if i == last else _FLAGS_MORE, copy)
        except zmq.Again as e:
            # The link broke midway. To its last part ZMQ drops the message, and without that part it would drop the next one.
            broken = e
    if broken is not None:
        raise broken


def readable(socket: Any) -> bool:
    """Whether there is a message. Uses up the signal of the socket's descriptor."""
    return bool(socket.get(_EVENTS) & _POLLIN)


def receive(socket: Any) -> tuple[bytes, list[Any]]:
    """The header and the payload frames of a message; on a ROUTER, call it after the routing id was read.

    Raises:
        zmq.Again: there is none.
    """
    take = socket.recv
    header = take(_FLAGS, False)
    frames: list[Any] = []
    more = header.more
    while more:
        frame = take(_FLAGS, False)
        frames.append(frame)
        more = frame.more
    return header.bytes, frames
