"""A raw DEALER that speaks the wire by hand: what a client may send, and what it should never send."""

from __future__ import annotations

from typing import Any

import numpy as np
import zmq

from inferential import wire
from inferential.types import Kind, Observation

WAIT_MS = 20_000


class RawPeer:
    """One connection; replies are wire.Response."""

    def __init__(self, endpoint: str, routing_id: bytes | None = None, **options: int) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, WAIT_MS)
        if routing_id is not None:
            self.socket.setsockopt(zmq.ROUTING_ID, routing_id)
        for name, value in options.items():
            self.socket.setsockopt(getattr(zmq, name.upper()), value)
        self.socket.connect(endpoint)
        self.last_id = 0

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.context.destroy(linger=0)

    def send_frames(self, *frames: Any) -> None:
        self.socket.send_multipart(frames)

    def observe(
        self,
        model: str = "echo",
        *,
        v1: bool = False,
        tensors: dict[str, Any] | None = None,
        claims: tuple[int, ...] | None = None,
        **fields: Any,
    ) -> int:
        """Sends an observation, which says of its first tensor that its shape is `claims`; returns its request id (0 with v1)."""
        if not v1 and "request_id" not in fields:
            self.last_id += 1
            fields["request_id"] = self.last_id
        packed = wire.pack_tensors({"x": np.ones(3, np.float32)} if tensors is None else tensors, several_frames=not v1)
        if claims is not None:
            packed.tensors[0]["shape"] = claims
        fields = {"client_id": "robot", "client_type": "franka"} | fields
        o = Observation(model_id=model, **fields)
        self.send_frames(b"", wire.encode_observation(o, packed), *(packed.frames or [b""]))
        return o.request_id

    def control(self, kind: Kind, request_id: int) -> None:
        self.send_frames(b"", wire.encode_observation(Observation("robot", "", "", request_id, kind=kind)), b"")

    def receive(self) -> wire.Response:
        frames = self.socket.recv_multipart()
        assert frames[0] == b""
        assert len(frames) >= 3
        return wire.parse_response(frames[1], frames[2:])

    def ask(self, model: str = "echo", **fields: Any) -> wire.Response:
        """Sends and takes the reply to it."""
        sent = self.observe(model, **fields)
        reply = self.receive()
        assert reply.request_id == sent
        return reply

    def ping(self) -> dict[str, str]:
        """The answer's metadata. As the server takes a connection's messages in order, all before is taken."""
        self.last_id += 1
        self.control(Kind.PING, self.last_id)
        reply = self.receive()
        assert (reply.request_id, reply.status) == (self.last_id, 0)
        return dict(reply.metadata)

    def silent(self) -> bool:
        """Whether nothing came before the answer to a ping."""
        self.ping()
        return not self.socket.poll(0)


def actions(reply: wire.Response) -> Any:
    """The reply's arrays by name."""
    assert reply.status == 0, reply.error
    return {t.key: wire.tensor_array(t, reply.frames) for t in reply.tensors}
