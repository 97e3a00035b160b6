"""What no right client sends, as bytes on the live server's socket: it answers, or counts, or hangs up, and nobody else notices."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import zmq
from inferential import encode_png
from inferential._proto.inferential.v1 import inferential_pb2 as pb

from adapters.base import Tensor
from conftest import CONFIG
from suite.client import Client, f32, some
from suite.cluster import Gate
from suite.server import Server, wait_until_ready
from suite.vectors import Vector, load

INVALID_OBSERVATION = 1
MALFORMED = [v for v in load() if (v.message, v.verdict) == ("Observation", "malformed")]
V1 = [v for v in load() if v.name.startswith("v1/obs-")]
PATIENCE_S = 20.0


class Peer:
    """A bare DEALER."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(address)

    def send(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def receive(self) -> Any:
        """The next reply."""
        assert self._socket.poll(int(PATIENCE_S * 1e3)), "no reply"
        empty, envelope, *frames = self._socket.recv_multipart()
        assert empty == b""
        assert frames
        return pb.ModelResponse.FromString(envelope)

    def ping(self, request_id: int) -> None:
        """Sends a PING; the server reads in order, so its answer tells that everything before was read."""
        m = pb.Observation(request_id=request_id, kind=pb.KIND_PING)
        m.client.id = "hostile"
        self.send(b"", m.SerializeToString(), b"")

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def peer(server: Server) -> Iterator[Peer]:
    found = Peer(server.address)
    yield found
    found.close()


@pytest.mark.parametrize("vector", MALFORMED, ids=lambda v: v.name.removeprefix("v2/"))
def test_malformed_observation(vector: Vector, peer: Peer, server: Server) -> None:
    before = server.ask("count observation_errors")
    # The vectors ask the model `policy`, which this server has not; but what is wrong with them comes first.
    model = pb.Observation(model_id="inspector") if vector.field not in ("envelope", "model_id") else pb.Observation()
    kind_only = vector.name.endswith(("empty-envelope", "ping-without-request-id", "cancel-without-request-id"))
    extra = b"" if kind_only else model.SerializeToString()
    peer.send(b"", vector.envelope + extra, *vector.payload)
    answered = vector.request_id and vector.frames  # without a payload frame it is no message at all, and is counted
    if answered:
        r = peer.receive()
        assert (r.request_id, r.status) == (vector.request_id, INVALID_OBSERVATION), r
        assert vector.key in r.error
        assert vector.field in r.error
        assert r.protocol_version == 2
    peer.ping(1000)
    assert peer.receive().request_id == 1000, "nothing else was answered, and the connection works"
    if not answered:
        assert server.ask("count observation_errors") == before + 1


def test_no_frames_at_all(peer: Peer, server: Server) -> None:
    before = server.ask("count observation_errors")
    for frames in ((b"",), (b"", b""), (b"x", b"y", b"z"), (b"",) * 5):
        peer.send(*frames)
    peer.ping(1)
    assert peer.receive().request_id == 1
    assert server.ask("count observation_errors") == before + 4


def test_a_request_id_that_is_outstanding(peer: Peer, server: Server, gate: Gate) -> None:
    before = server.ask("count observation_errors")
    m = pb.Observation(request_id=6, model_id="gate", latency_budget_ms=60_000)
    m.client.id = "hostile"
    for _ in range(3):
        peer.send(b"", m.SerializeToString(), b"")
    peer.ping(1000)
    assert peer.receive().request_id == 1000, "the outstanding one will be answered, the others are not"
    assert server.ask("count observation_errors") == before + 2
    gate.open()
    r = peer.receive()
    assert (r.request_id, r.status) == (6, 0)
    assert gate.entered(1) == [""]


def test_cancel_of_nothing_is_not_answered(peer: Peer) -> None:
    m = pb.Observation(request_id=77, kind=pb.KIND_CANCEL)
    m.client.id = "hostile"
    peer.send(b"", m.SerializeToString(), b"")
    peer.ping(1000)
    assert peer.receive().request_id == 1000


@pytest.mark.parametrize("vector", V1, ids=lambda v: v.name)
def test_v1_message(vector: Vector, peer: Peer) -> None:
    model = pb.Observation(model_id="inspector").SerializeToString()
    peer.send(b"", vector.envelope + model, *vector.payload)
    r = peer.receive()
    fields, _, tensors = vector.contents()
    assert (r.status, r.request_id, r.protocol_version, r.observation_timestamp_ns, r.error) == (0, 0, 0, 0, "")
    assert not r.HasField("timing")
    assert r.client.id == fields["client.id"]
    assert r.response_id
    assert [t.key for t in r.tensors] == [t.key for t in tensors]
    assert all(t.frame == 0 for t in r.tensors)


def test_a_v1_client_gets_no_error_reply(peer: Peer) -> None:
    m = pb.Observation(model_id="nobody")
    m.client.id = "old"
    peer.send(b"", m.SerializeToString(), b"")
    m.model_id = "odd"
    m.metadata["how"] = "raise"
    peer.send(b"", m.SerializeToString(), b"")
    m.metadata["how"] = "strings"
    peer.send(b"", m.SerializeToString(), b"")
    r = peer.receive()
    assert (r.model_id, r.metadata["plan"]) == ("odd", "pick, place")


@pytest.fixture(scope="module")
def strict(start_server: Callable[..., Server]) -> Server:
    """A server that takes messages up to 1 MB."""
    config = {**CONFIG, "transport": {"max_message_bytes": 1_000_000}}
    found = start_server(["inspector"], config=config).wait()
    wait_until_ready(found.address, ["inspector"])
    return found


def test_what_an_sdk_lets_through_and_the_server_refuses(client: Client, strict: Server) -> None:
    # An SDK knows its own limit of 256 MiB, not the server's of 1 MB: frames that are each below it make a message that is not.
    connection = client.connect(strict.address)
    connection.wait_for_link("up")
    model = connection.model("inspector", latency_budget_ms=60_000.0)
    model.send({"x": f32(1)})
    model.ok()  # the server is known to read several frames from here on
    halves = {key: some("UINT8", (600_000,), i) for i, key in enumerate("ab")}
    sent = model.send(halves)
    r = model.reply()
    assert (r.request_id, r.status, r.local) == (sent, INVALID_OBSERVATION, False)
    assert "1000000" in r.error, r.error
    flat = encode_png(np.zeros((1000, 1200, 1), np.uint8))  # a small file, and a large image
    sent = model.send({"camera": Tensor("UINT8", flat.shape, flat.data, 3)})
    r = model.reply()
    assert (r.request_id, r.status, r.local) == (sent, INVALID_OBSERVATION, False)
    assert "camera" in r.error
    assert "shape" in r.error
    assert model.get_result(0) is None
    model.send({"b": halves["b"]})
    found = model.get_result()
    assert found is not None
    assert found.tensors == {"b": halves["b"]}
    counters = connection.counters()
    assert (counters["not_ok"], counters["link_lost"], counters["reconnects"]) == (2, 0, 0)


def test_a_message_over_the_limit_costs_the_connection(client: Client, strict: Server) -> None:
    connection = client.connect(strict.address)
    bystander = client.connect(strict.address, "bystander")
    for each in (connection, bystander):
        each.wait_for_link("up")
    model, other = connection.model("inspector"), bystander.model("inspector")
    other.send({"x": f32(1)}, latency_budget_ms=60_000.0)
    other.ok()
    sent = model.send({"x": type(f32(1))("UINT8", (3_000_000,), bytes(3_000_000))}, latency_budget_ms=60_000.0)
    r = model.reply()
    assert (r.request_id, r.status, r.local) == (sent, 1002, True)
    begin = time.monotonic()
    while connection.counters()["reconnects"] == 0:
        assert time.monotonic() - begin < PATIENCE_S
        time.sleep(0.01)
    model.send({"x": f32(2)}, latency_budget_ms=60_000.0)
    assert model.ok().tensors == {"x": f32(2)}
    other.send({"x": f32(3)}, latency_budget_ms=60_000.0)
    assert other.ok().tensors == {"x": f32(3)}
    assert bystander.counters()["reconnects"] == 0
