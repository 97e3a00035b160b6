"""A server that does as it is told: a ROUTER that speaks the real wire, for replies that no right server gives in a known order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import zmq
from inferential._proto.inferential.v1 import inferential_pb2 as pb

from adapters.base import DTYPES, Tensor


@dataclass(frozen=True)
class Received:
    """What a client sent."""

    identity: bytes
    observation: Any
    frames: list[bytes]

    @property
    def request_id(self) -> int:
        return int(self.observation.request_id)

    def data(self, key: str) -> bytes:
        """A tensor's bytes."""
        t = next(t for t in self.observation.tensors if t.key == key)
        return self.frames[t.frame][t.byte_offset : t.byte_offset + t.byte_length]


class StandIn:
    """Used by one thread. Receives only when told, so nothing is answered but by the case."""

    def __init__(self, port: int = 0, host: str = "127.0.0.1", bind: str = "") -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.rcvhwm = self._socket.sndhwm = 100_000
        self._socket.router_mandatory = True
        self._socket.router_handover = True
        # A port of the system's choosing is none that it gives to outgoing connections as long as it has others.
        self._socket.ipv6 = host.startswith("[")
        self._socket.bind(bind or f"tcp://{host}:{port or '*'}")
        self.address = self._socket.last_endpoint.decode()
        self.port = 0 if bind else int(self.address.rpartition(":")[2])

    def receive(self, timeout_s: float = 20.0) -> Received:
        """The next message."""
        assert self._socket.poll(int(timeout_s * 1e3)), f"no message from the client within {timeout_s} s"
        identity, empty, envelope, *frames = self._socket.recv_multipart()
        assert empty == b"", "the first frame of a message is empty"
        assert frames, "a message has at least one payload frame"
        return Received(identity, pb.Observation.FromString(envelope), frames)

    def receive_nothing(self, for_s: float) -> bool:
        """Whether nothing came for that long."""
        return not self._socket.poll(int(for_s * 1e3))

    def answer(self, to: Received, tensors: dict[str, Tensor] | None = None, **fields: Any) -> None:
        """A reply as a v2 server sends it; `fields` in addition to, or instead of, the usual ones."""
        o = to.observation
        m = pb.ModelResponse(
            response_id=f"stand-in-{o.request_id}",
            timestamp_ns=o.timestamp_ns + 1000,
            model_id=o.model_id,
            request_id=o.request_id,
            observation_timestamp_ns=o.timestamp_ns,
            protocol_version=2,
        )
        m.client.CopyFrom(o.client)
        metadata = fields.pop("metadata", {})
        timing = fields.pop("timing", {})
        for name, value in fields.items():
            setattr(m, name, value)
        m.metadata.update(metadata)
        for name, value in timing.items():
            setattr(m.timing, name, value)
        payload = b""
        for key, t in (tensors or {}).items():
            payload += b"\0" * (-len(payload) % 8)
            m.tensors.add(key=key, dtype=DTYPES[t.dtype][0], shape=t.shape, byte_offset=len(payload),
                          byte_length=len(t.data), encoding=1)  # fmt: skip
            payload += t.data
        self.send(to, m.SerializeToString(), [payload])

    def answer_v1(self, to: Received, tensors: dict[str, Tensor]) -> None:
        """A reply as a v1 server sends it: no ids, no status."""
        self.answer(to, tensors, request_id=0, observation_timestamp_ns=0, protocol_version=0)

    def send(self, to: Received, envelope: bytes, frames: list[bytes]) -> None:
        """Any two or more frames, after the empty one."""
        self._socket.send_multipart([to.identity, b"", envelope, *frames])

    def close(self) -> None:
        """Gone: the connections break."""
        self._context.destroy(linger=0)

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
