"""The server over real sockets, with local models."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zmq

from inferential import Connection, Server, images, local, wire
from inferential._proto.inferential.v1 import inferential_pb2 as pb
from inferential.backends.local import LocalBackend
from inferential.config.load import parse_config
from inferential.config.schema import InferentialConfig, ModelConfig
from inferential.errors import ConfigError
from inferential.metrics.names import METRICS
from inferential.scheduling import Scheduler, register_scheduler
from inferential.types import Kind, Observation, Status

from .eventually import WAIT_S, eventually
from .peer import RawPeer, actions

ANY = "tcp://127.0.0.1:0"


def echo(obs: dict[str, Any]) -> dict[str, Any]:
    return dict(obs)


class Gate:
    """A model that waits until it is let go, and tells what reached it."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.release = threading.Event()
        self.seen: list[int] = []

    def infer(self, obs: dict[str, Any], context: Any) -> dict[str, Any]:
        self.seen.append(context.request_id)
        self.entered.release()
        assert self.release.wait(WAIT_S)
        return {"actions": obs["x"]}

    def wait_entered(self) -> None:
        assert self.entered.acquire(timeout=WAIT_S)


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    def fails(obs: Any) -> Any:
        raise RuntimeError("out of cheese")

    models = {
        "echo": local(echo, inline=True),
        "fails": local(fails, inline=True),
        "rubbish": local(lambda obs: {"x": object()}, inline=True),
        "fails-on-a-thread": fails,
    }
    with Server(models=models, bind=ANY).run_in_thread() as server:
        yield server


@pytest.fixture
def peer(shared: Server) -> Iterator[RawPeer]:
    with RawPeer(shared.endpoint) as peer:
        yield peer


# --- what models there may be ---


async def echo_async(obs: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(0.001)
    return dict(obs)


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "own-thread"])
@pytest.mark.parametrize("model", [echo, echo_async])
def test_sync_and_async_models(model: Any, inline: bool) -> None:
    with (
        Server(models={"m": model}, bind=ANY, inline=inline).run_in_thread() as server,
        RawPeer(server.endpoint) as peer,
    ):
        eventually(lambda: server.health()["models"]["m"]["ready"])
        reply = peer.ask(
            "m", tensors={"x": np.arange(6.0).reshape(2, 3), "empty": np.zeros((0, 2))}, metadata={"a": "é"}
        )
        found = actions(reply)
        assert found["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert found["empty"].shape == (0, 2)
        assert reply.metadata == {"a": "é"}
        assert reply.timing.batch_size == 1
        assert 0 <= reply.timing.inference_ms <= reply.timing.server_ms
        assert reply.protocol_version == 2


def test_where_models_run() -> None:
    names: dict[str, str] = {}

    def tell(key: str) -> Callable[[Any], int]:
        def model(obs: Any) -> int:
            names[key] = threading.current_thread().name
            return 0

        return model

    models = {"on-loop": local(tell("on-loop"), inline=True), "off-loop": tell("off-loop")}
    with Server(models=models, bind=ANY).run_in_thread() as server, RawPeer(server.endpoint) as peer:
        eventually(lambda: all(m["ready"] for m in server.health()["models"].values()))
        peer.ask("on-loop")
        peer.ask("off-loop")
    assert names == {"on-loop": "inferential-server", "off-loop": "model-off-loop-0"}


def test_a_model_that_blocks_delays_no_other() -> None:
    gate = Gate()
    with (
        Server(models={"slow": gate, "echo": local(echo, inline=True)}, bind=ANY).run_in_thread() as server,
        RawPeer(server.endpoint) as peer,
        RawPeer(server.endpoint) as other,
    ):
        peer.ping()
        eventually(lambda: server.health()["models"]["slow"]["ready"])
        slow = peer.observe("slow", latency_budget_ms=4000)
        gate.wait_entered()
        for _ in range(20):
            assert other.ask().status == Status.OK
        gate.release.set()
        assert peer.receive().request_id == slow


def test_concurrency_of_a_threaded_model() -> None:
    barrier = threading.Barrier(3)

    def meet(obs: Any) -> int:
        barrier.wait(WAIT_S)  # passes only if three calls run at the same time
        return 1

    config = InferentialConfig()
    config.models.default = ModelConfig(max_inflight=3)
    config.scheduling.pipeline_dispatch.enabled = True
    with (
        Server(config, models={"m": local(meet, concurrency=3)}, bind=ANY).run_in_thread() as server,
        RawPeer(server.endpoint) as peer,
    ):
        eventually(lambda: server.health()["models"]["m"]["ready"])
        for _ in range(3):
            peer.observe("m", latency_budget_ms=4000)
        assert [peer.receive().status for _ in range(3)] == [0, 0, 0]


def test_batches_reach_infer_batch() -> None:
    class Model:
        def __init__(self) -> None:
            self.gate = Gate()
            self.sizes: list[int] = []

        def infer_batch(self, batch: list[dict[str, Any]]) -> list[Any]:
            self.sizes.append(len(batch))
            self.gate.entered.release()
            assert self.gate.release.wait(WAIT_S)
            return [o["x"] for o in batch]

    model = Model()
    config = InferentialConfig()
    config.dispatch.staging = False
    with Server(config, models={"m": model}, bind=ANY).run_in_thread() as server, RawPeer(server.endpoint) as peer:
        eventually(lambda: server.health()["models"]["m"]["ready"])
        peer.observe("m", tensors={"x": np.array([0.0])}, latency_budget_ms=4000)
        model.gate.wait_entered()
        sent = {peer.observe("m", tensors={"x": np.array([float(i)])}, latency_budget_ms=4000): i for i in range(1, 5)}
        peer.last_id += 1
        peer.control(Kind.PING, peer.last_id)
        assert peer.receive().request_id == peer.last_id
        model.gate.release.set()
        assert peer.receive().request_id == 1
        for _ in range(4):
            reply = peer.receive()
            assert actions(reply)["actions"].tolist() == [sent[reply.request_id]]
            assert reply.timing.batch_size == 4
    assert model.sizes == [1, 4]


def test_a_warm_up_comes_before_traffic_and_a_failed_one_leaves_the_model_unavailable() -> None:
    release = threading.Event()

    class Cold:
        def warm_up(self) -> None:
            assert release.wait(WAIT_S)

        def infer(self, obs: Any) -> int:
            return 1

    class Broken(Cold):
        def warm_up(self) -> None:
            raise RuntimeError("no weights")

    models = {"cold": Cold(), "broken": Broken(), "echo": local(echo, inline=True)}
    with Server(models=models, bind=ANY).run_in_thread() as server, RawPeer(server.endpoint) as peer:
        assert peer.ping()["model:cold"] == "not ready"
        reply = peer.ask("cold")
        assert reply.status == Status.UNAVAILABLE
        assert reply.retry_after_ms > 0
        release.set()
        eventually(lambda: peer.ping()["model:cold"] == "ready")
        assert peer.ask("cold").status == Status.OK
        assert peer.ping()["model:broken"] == "not ready"
        assert peer.ask("broken").status == Status.UNAVAILABLE
        assert peer.ask("echo").status == Status.OK


@pytest.mark.parametrize("model", ["fails", "fails-on-a-thread"])
def test_a_model_that_raises(peer: RawPeer, shared: Server, model: str) -> None:
    eventually(lambda: shared.health()["models"][model]["ready"])
    reply = peer.ask(model)
    assert reply.status == Status.MODEL_ERROR
    assert "RuntimeError: out of cheese" in reply.error
    assert peer.ask().status == Status.OK


def test_a_model_that_returns_rubbish(peer: RawPeer) -> None:
    reply = peer.ask("rubbish")
    assert reply.status == Status.MODEL_ERROR
    assert "'x'" in reply.error


def test_an_unknown_model(peer: RawPeer) -> None:
    reply = peer.ask("nonsense")
    assert reply.status == Status.UNKNOWN_MODEL
    assert "'nonsense'" in reply.error
    assert "echo" in reply.error


# --- v1 and v2 ---


def test_a_v1_client_gets_ok_replies_only_and_nothing_of_v2(shared: Server) -> None:
    with RawPeer(shared.endpoint, b"robot-v1") as peer:
        for model in ("fails", "nonsense", "rubbish"):
            peer.observe(model, v1=True)
        peer.observe("", v1=True)
        peer.observe("echo", v1=True, tensors={"a": np.zeros(100_000, np.float32), "b": np.ones(3)})
        frames = peer.socket.recv_multipart()
        assert len(frames) == 3
        m = pb.ModelResponse.FromString(frames[1])
        assert all(f.number < 101 for f, _ in m.ListFields())
        assert all(f.number < 101 for t in m.tensors for f, _ in t.ListFields())
        assert (m.model_id, m.client.id) == ("echo", "robot")
        r = wire.parse_response(frames[1], frames[2:])
        assert actions(r)["b"].tolist() == [1, 1, 1]
        assert peer.silent()


def test_a_v1_client_reconnects_under_its_routing_id(shared: Server) -> None:
    with RawPeer(shared.endpoint, b"same") as first:
        first.observe(v1=True)
        first.receive()
        with RawPeer(shared.endpoint, b"same") as second:
            second.observe(v1=True)
            assert second.receive().model_id == "echo"


def test_large_tensors_come_back_in_frames_of_their_own(peer: RawPeer) -> None:
    large = np.arange(200_000, dtype=np.float32)
    reply = peer.ask(tensors={"small": np.ones(2), "large": large, "other": large * 2})
    assert len(reply.frames) == 3
    found = actions(reply)
    assert np.array_equal(found["large"], large)
    assert np.array_equal(found["other"], large * 2)


def test_two_connections_with_one_client_id_both_work(shared: Server, caplog: pytest.LogCaptureFixture) -> None:
    with RawPeer(shared.endpoint) as a, RawPeer(shared.endpoint) as b:
        for _ in range(3):
            ids = a.observe(client_id="twin"), b.observe(client_id="twin")
            assert (a.receive().request_id, b.receive().request_id) == ids
    assert len([r for r in caplog.records if "'twin'" in r.message]) == 1


def test_ping_tells_the_models(peer: RawPeer, shared: Server) -> None:
    found = peer.ping()
    assert found["protocol"] == "2"
    assert found["server"]
    assert {k.removeprefix("model:") for k in found if k.startswith("model:")} == set(shared.models)


def test_cancel() -> None:
    gate = Gate()
    config = InferentialConfig()
    config.dispatch.staging = False
    with Server(config, models={"m": gate}, bind=ANY).run_in_thread() as server, RawPeer(server.endpoint) as peer:
        eventually(lambda: server.health()["models"]["m"]["ready"])
        running = peer.observe("m", latency_budget_ms=4000)
        gate.wait_entered()
        queued = peer.observe("m", latency_budget_ms=4000)
        for request_id in (queued, running, 77):
            peer.control(Kind.CANCEL, request_id)
        replies = [peer.receive() for _ in range(2)]
        assert [(r.request_id, r.status) for r in replies] == [(queued, Status.CANCELLED), (running, Status.CANCELLED)]
        gate.release.set()
        assert peer.silent()
    assert gate.seen == [running]


def test_expiry_is_told_on_a_timer() -> None:
    gate = Gate()
    config = InferentialConfig()
    config.scheduling.overrun_ms = 0
    with Server(config, models={"m": gate}, bind=ANY).run_in_thread() as server, RawPeer(server.endpoint) as peer:
        eventually(lambda: server.health()["models"]["m"]["ready"])
        sent = {peer.observe("m", latency_budget_ms=50) for _ in range(3)}
        replies = [peer.receive() for _ in sent]
        assert {r.request_id for r in replies} == sent
        assert {r.status for r in replies} == {Status.EXPIRED}
        gate.release.set()


def test_a_duplicate_of_an_outstanding_request_is_not_answered() -> None:
    gate = Gate()
    with Server(models={"m": gate}, bind=ANY).run_in_thread() as server, RawPeer(server.endpoint) as peer:
        eventually(lambda: server.health()["models"]["m"]["ready"])
        for _ in range(2):
            peer.observe("m", request_id=5, latency_budget_ms=4000)
        gate.wait_entered()
        peer.ping()
        gate.release.set()
        assert peer.receive().request_id == 5
        assert peer.silent()
        assert server.metrics.get_stats("observation_errors").count == 1


# --- images ---


@pytest.mark.parametrize("encode", [images.encode_jpeg, images.encode_png])
def test_images_reach_the_model_decoded(peer: RawPeer, encode: Callable[[Any], Any]) -> None:
    picture = np.full((24, 32, 3), 90, np.uint8)
    found = actions(peer.ask(tensors={"cam": encode(picture), "x": np.ones(2)}))
    assert found["cam"].shape == (24, 32, 3)
    assert np.abs(found["cam"].astype(int) - 90).max() < 4


def test_wrong_and_broken_images(peer: RawPeer) -> None:
    picture = images.encode_png(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))
    reply = peer.ask(tensors={"cam": picture}, claims=(24, 33, 3))
    assert reply.status == Status.INVALID_OBSERVATION
    assert "'cam'" in reply.error
    broken = type(picture)(picture.data[:300], picture.shape, picture.encoding)
    reply = peer.ask(tensors={"cam": broken})
    assert reply.status == Status.MODEL_ERROR
    assert "'cam'" in reply.error


# --- bad input ---


def envelope(**fields: Any) -> bytes:
    m = pb.Observation(model_id="echo", request_id=1)
    m.client.id = "bad"
    tensor = fields.pop("tensor", None)
    if fields.pop("no_client", False):
        m.ClearField("client")
    for name, value in fields.items():
        setattr(m, name, value)
    if tensor is not None:
        m.tensors.add(**({"key": "x", "dtype": 2, "shape": [4], "byte_length": 16} | tensor))
    return m.SerializeToString()


INVALID = [
    ({"no_client": True}, "client"),
    ({"model_id": ""}, "model_id"),
    ({"urgency": float("nan")}, "urgency"),
    ({"kind": 7}, "kind"),
    ({"tensor": {"byte_offset": 1}}, "tensor 'x'"),
    ({"tensor": {"byte_offset": 2**64 - 8}}, "tensor 'x'"),
    ({"tensor": {"byte_length": 2**63}}, "tensor 'x'"),
    ({"tensor": {"shape": [2**32, 2**32], "byte_length": 0}}, "tensor 'x'"),
    ({"tensor": {"shape": [5]}}, "tensor 'x'"),
    ({"tensor": {"shape": [-1]}}, "tensor 'x'"),
    ({"tensor": {"dtype": 99}}, "tensor 'x'"),
    ({"tensor": {"encoding": 9}}, "tensor 'x'"),
    ({"tensor": {"frame": 3}}, "tensor 'x'"),
    ({"tensor": {"key": ""}}, "tensor ''"),
]


@pytest.mark.parametrize(("fields", "named"), INVALID)
def test_invalid_observations_are_answered_with_the_field(peer: RawPeer, fields: dict[str, Any], named: str) -> None:
    peer.send_frames(b"", envelope(**fields), bytes(16))
    reply = peer.receive()
    assert (reply.request_id, reply.status) == (1, Status.INVALID_OBSERVATION)
    assert named in reply.error


GARBAGE = [
    [b""],
    [b"only one"],
    [b"", b""],
    [b"", envelope()],
    [b"not empty", envelope(), b""],
    [b"", b"\xff" * 30, b""],
    [b"", b"", b""],
    [b"", envelope(request_id=0, urgency=2.0), b""],
    [b"", envelope(request_id=0, kind=1), b""],
    [b""] * 50,
]


@pytest.mark.parametrize("frames", GARBAGE)
def test_what_cannot_be_answered_is_counted_and_nobody_else_notices(
    peer: RawPeer, shared: Server, frames: list[bytes]
) -> None:
    with RawPeer(shared.endpoint) as other:
        assert other.ask().status == Status.OK
        before = shared.metrics.get_stats("observation_errors").count
        peer.send_frames(*frames)
        assert peer.silent()
        assert shared.metrics.get_stats("observation_errors").count == before + 1
        assert other.ask().status == Status.OK
        assert peer.ask().status == Status.OK


def test_random_bytes_on_the_port(shared: Server) -> None:
    host, port = shared.endpoint.removeprefix("tcp://").split(":")
    with RawPeer(shared.endpoint) as other:
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" + bytes(8) + b"\x7f" + b"\0" * 200, os.urandom(4096)):
            with socket.create_connection((host, int(port)), timeout=WAIT_S) as raw:
                raw.sendall(data)
            assert other.ask().status == Status.OK


def test_a_message_over_the_limit_costs_its_sender_the_connection() -> None:
    config = InferentialConfig()
    config.transport.max_message_bytes = 100_000
    with (
        Server(config, models={"echo": local(echo, inline=True)}, bind=ANY).run_in_thread() as server,
        RawPeer(server.endpoint) as other,
        RawPeer(server.endpoint) as peer,
    ):
        other.ping()
        peer.ping()
        monitor = peer.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        peer.observe(tensors={"x": np.zeros(200_000, np.uint8)})
        assert monitor.poll(WAIT_S * 1e3)
        eventually(lambda: server.metrics.get_stats("client_disconnected").count == 1)
        assert other.ask().status == Status.OK
        # In frames that are small one by one the message is only found too large when all of it is there.
        other.observe(tensors={"x": np.zeros(90_000, np.uint8), "y": np.zeros(90_000, np.uint8)})
        reply = other.receive()
        assert reply.status == Status.INVALID_OBSERVATION
        assert "message" in reply.error
        peer.socket.disable_monitor()


# --- slow, silent and leaving clients ---


def test_replies_for_a_client_that_does_not_read_are_bounded() -> None:
    config = InferentialConfig()
    config.transport.outbound_queue_messages = 20
    config.transport.outbound_queue_bytes = 20_000_000
    big = np.zeros(500_000, np.uint8)
    with (
        Server(config, models={"echo": local(lambda obs: big, inline=True)}, bind=ANY).run_in_thread() as server,
        RawPeer(server.endpoint, rcvhwm=1, rcvbuf=4096) as peer,
        RawPeer(server.endpoint) as other,
    ):
        sent = 600
        for _ in range(sent):
            peer.observe(latency_budget_ms=4000)
        eventually(lambda: server.metrics.get_stats("e2e_latency_ms").count == sent)
        assert other.ask().status == Status.OK
        dropped = server.metrics.get_stats("send_errors").count
        assert dropped > 0
        # What was not dropped is delivered once the client reads again.
        got = {peer.receive().request_id for _ in range(sent - dropped)}
        assert len(got) == sent - dropped
        assert peer.silent()


def test_an_outbound_queue_is_bounded_in_bytes() -> None:
    config = InferentialConfig()
    config.transport.outbound_queue_bytes = 2_000_000
    big = np.zeros(500_000, np.uint8)
    with (
        Server(config, models={"echo": local(lambda obs: big, inline=True)}, bind=ANY).run_in_thread() as server,
        RawPeer(server.endpoint, rcvhwm=1, rcvbuf=4096) as peer,
    ):
        for _ in range(300):
            peer.observe(latency_budget_ms=4000)
        eventually(lambda: server.metrics.get_stats("e2e_latency_ms").count == 300)
        assert server.metrics.get_stats("send_errors").count > 0
        assert server._driver.transport.waiting_replies <= 4


def test_a_client_that_leaves_is_forgotten_at_once_and_its_work_never_runs() -> None:
    gate = Gate()
    config = InferentialConfig()
    config.dispatch.staging = False
    with Server(config, models={"m": gate}, bind=ANY).run_in_thread() as server:
        eventually(lambda: server.health()["models"]["m"]["ready"])
        with RawPeer(server.endpoint) as leaving:
            leaving.observe("m", latency_budget_ms=4000)
            gate.wait_entered()
            leaving.observe("m", latency_budget_ms=4000)
            leaving.ping()
            assert server.health()["pending"] == 2
        eventually(lambda: server.health()["clients"] == 0)
        eventually(lambda: server.health()["pending"] == 0)
        gate.release.set()
        with RawPeer(server.endpoint) as next_one:
            next_one.last_id = 100
            assert next_one.ask("m").status == Status.OK
    assert gate.seen == [1, 101]


def test_idle_clients_are_evicted_and_come_back() -> None:
    config = InferentialConfig()
    config.transport.idle_client_timeout_s = 0.3
    config.queue.request_ttl_ms = 200
    config.scheduling.default_latency_budget_ms = 200
    with (
        Server(config, models={"echo": local(echo, inline=True)}, bind=ANY).run_in_thread() as server,
        RawPeer(server.endpoint) as peer,
    ):
        peer.ping()
        peer.observe(latency_budget_ms=100)
        peer.receive()
        assert server.health()["clients"] == 1
        eventually(lambda: server.health()["clients"] == 0)
        assert server.metrics.get_stats("client_disconnected").count == 1
        assert server.metrics.get_stats("active_clients").min == 0
        assert peer.ask().status == Status.OK


# --- life cycle ---


def test_draining_answers_what_was_accepted_and_refuses_the_rest() -> None:
    gate = Gate()
    server = Server(models={"m": gate}, bind=ANY)
    with server.run_in_thread():
        eventually(lambda: server.health()["models"]["m"]["ready"])
        with RawPeer(server.endpoint) as peer:
            accepted = peer.observe("m", latency_budget_ms=4000)
            gate.wait_entered()
            server.request_stop()
            eventually(lambda: server.health()["state"] == "draining")
            assert peer.ping()["model:m"] == "not ready"
            assert peer.ask("m").status == Status.SHUTTING_DOWN
            gate.release.set()
            reply = peer.receive()
            assert (reply.request_id, reply.status) == (accepted, Status.OK)


def test_what_is_left_after_the_grace_period_is_answered_shutting_down() -> None:
    gate = Gate()
    config = InferentialConfig()
    config.lifecycle.grace_period_s = 0.2
    with RawPeer("tcp://127.0.0.1:1") as peer:
        with Server(config, models={"m": gate}, bind=ANY).run_in_thread() as server:
            peer.socket.connect(server.endpoint)
            peer.socket.disconnect("tcp://127.0.0.1:1")
            eventually(lambda: server.health()["models"]["m"]["ready"])
            sent = {peer.observe("m", latency_budget_ms=4000) for _ in range(5)}
            gate.wait_entered()
            peer.ping()
            server.request_stop()
            replies = [peer.receive() for _ in sent]
            gate.release.set()
        assert {r.request_id for r in replies} == sent
        assert {r.status for r in replies} == {Status.SHUTTING_DOWN}


def test_a_server_that_stops_at_once_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with Server(models={"echo": local(echo, inline=True)}, bind=ANY):
            pass
        for _ in range(10):
            await asyncio.sleep(0)

    asyncio.run(main())
    assert [r.message for r in caplog.records if r.name == "asyncio"] == []


def test_async_with() -> None:
    async def main() -> None:
        async with Server(models={"echo": local(echo, inline=True)}, bind=ANY) as server:
            with RawPeer(server.endpoint) as peer:
                reply = await asyncio.to_thread(peer.ask)
            assert reply.status == Status.OK
            assert server.health()["state"] == "running"
        assert server.health()["state"] == "stopped"
        with pytest.raises(ConfigError, match="started once"):
            await server.start()

    asyncio.run(main())


def test_run_in_thread_runs_no_block_on_a_server_that_could_not_start() -> None:
    taken = zmq.Context.instance().socket(zmq.ROUTER)
    port = taken.bind_to_random_port("tcp://127.0.0.1")
    ran = False
    with (
        pytest.raises(ConfigError, match=str(port)),
        Server(bind=f"tcp://127.0.0.1:{port}", models={"echo": echo}).run_in_thread(),
    ):
        ran = True
    taken.close(0)
    assert not ran


def test_a_stop_that_is_cancelled_still_answers_and_closes() -> None:
    gate = Gate()
    server = Server(bind=ANY, models={"gate": gate})

    async def main() -> None:
        running = asyncio.create_task(server.run())
        await asyncio.to_thread(eventually, lambda: bool(server.endpoint))
        with Connection(server.endpoint, "c") as connection:
            model = connection.model("gate", latency_budget_ms=60_000.0)
            await asyncio.to_thread(model.observe, x=np.ones(1))
            await asyncio.to_thread(gate.wait_entered)
            reading = asyncio.create_task(asyncio.to_thread(model.next_reply, WAIT_S * 1e3))
            running.cancel()
            await asyncio.to_thread(eventually, lambda: server.health()["state"] == "draining")
            running.cancel()
            again = asyncio.create_task(server.stop())
            reply = await reading
            assert reply is not None
            assert reply.status is Status.SHUTTING_DOWN
            gate.release.set()
            with pytest.raises(asyncio.CancelledError):
                await running
            await again
            assert server.health()["state"] == "stopped"

    asyncio.run(main())


def test_a_call_cancelled_before_it_began_frees_its_slot() -> None:
    entered, release = threading.Event(), threading.Event()

    async def model(obs: dict[str, Any]) -> dict[str, Any]:
        if "block" in obs:  # as a model that computes: its loop can begin nothing else
            entered.set()
            assert release.wait(WAIT_S)
        return {"actions": obs["x"]}

    with (
        Server(bind=ANY, models={"m": local(model, concurrency=2)}).run_in_thread() as server,
        Connection(server.endpoint, "c") as connection,
    ):
        handle = connection.model("m", latency_budget_ms=60_000.0)
        handle.observe(x=np.ones(1), block="yes")
        assert entered.wait(WAIT_S)
        sent = handle.observe(x=np.ones(1))
        eventually(lambda: server.health()["models"]["m"]["in_flight"] == 2)
        assert connection.ping(WAIT_S * 1e3) is not None
        assert handle.cancel(np.int64(sent.request_id))  # type: ignore[arg-type]
        reply = handle.next_reply(WAIT_S * 1e3)
        assert reply is not None
        assert reply.status is Status.CANCELLED
        release.set()
        eventually(lambda: server.health()["models"]["m"]["in_flight"] == 0)


def test_bind_errors_say_what_is_wrong() -> None:
    with Server(models={"echo": echo}, bind=ANY).run_in_thread() as server:
        for bind, word in [
            (server.endpoint, "another process uses this port"),
            ("tcp://192.0.2.1:5555", "no such address"),
            ("nonsense", "it should be like tcp://"),
            ("carrier://pigeon", "it should be like tcp://"),
        ]:
            with (
                pytest.raises(ConfigError, match=f"transport.bind.*{word}"),
                Server(models={"echo": echo}, bind=bind).run_in_thread(),
            ):
                pass


@pytest.mark.parametrize(
    ("bind", "endpoint"), [("localhost:0", r"tcp://127\.0\.0\.1:\d+"), ("[::1]:*", r"tcp://\[::1\]:\d+")]
)
def test_bind_without_a_transport_is_tcp_as_at_clients(bind: str, endpoint: str) -> None:
    with Server(models={"echo": local(echo, inline=True)}, bind=bind).run_in_thread() as server:
        assert re.fullmatch(endpoint, server.endpoint)
        with RawPeer(server.endpoint, ipv6=1) as peer:
            assert peer.ask().status == Status.OK


def test_a_public_bind_warns_in_one_line_and_loopback_does_not(caplog: pytest.LogCaptureFixture) -> None:
    with Server(models={"echo": echo}, bind="tcp://127.0.0.1:*").run_in_thread():
        assert not [r for r in caplog.records if r.levelname == "WARNING"]
    with Server(models={"echo": echo}, bind="tcp://*:0").run_in_thread():
        (warning,) = [r for r in caplog.records if r.levelname == "WARNING"]
        assert "not authenticated" in warning.message
        assert "\n" not in warning.message


def test_ipc(tmp_path: Path) -> None:
    with Server(models={"echo": local(echo, inline=True)}, bind=f"ipc://{tmp_path}/s").run_in_thread() as server:
        assert server.endpoint == f"ipc://{tmp_path}/s"
        with RawPeer(server.endpoint) as peer:
            assert peer.ask().status == Status.OK


PROGRAM = """
import asyncio, gc, sys, threading
from inferential import Server, local
release = threading.Event()
def hang(obs):
    assert gc.get_freeze_count() > 10_000
    print("hanging", flush=True)
    release.wait()
server = Server(models={"echo": local(lambda obs: dict(obs), inline=True), "hang": hang}, bind="tcp://127.0.0.1:0")
server.config.lifecycle.grace_period_s = float(sys.argv[1])
async def main():
    await server.start()
    print(server.endpoint, flush=True)
    await server.run()
asyncio.run(main())
assert gc.get_freeze_count() == 0
print("returned", flush=True)
"""


@pytest.fixture
def process(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    grace = getattr(request, "param", 5)
    p = subprocess.Popen([sys.executable, "-c", PROGRAM, str(grace)], stdout=subprocess.PIPE, text=True)
    yield p
    p.kill()
    p.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_process_with_code_0(process: subprocess.Popen[str], number: int) -> None:
    assert process.stdout is not None
    endpoint = process.stdout.readline().strip()
    with RawPeer(endpoint) as peer:
        assert peer.ask().status == Status.OK
        process.send_signal(number)
        assert process.wait(WAIT_S) == 0
    assert process.stdout.read().split() == ["returned"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_the_memory_of_frames_is_kept_for_the_next(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    frame = np.zeros(150_000, np.uint8)

    def page_faults() -> int:
        return int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[7])

    def of_some_frames(peer: RawPeer) -> int:
        before = page_faults()
        for _ in range(5):
            for _ in range(32):
                peer.observe(tensors={"camera": frame})
            for _ in range(32):
                assert peer.receive().status == Status.OK
        return page_faults() - before

    with RawPeer(process.stdout.readline().strip()) as peer:
        # The least of several: a heap may still grow now and then.
        assert min(of_some_frames(peer) for _ in range(8)) < 160, (
            "less than one page for each of 160 frames, which have 37"
        )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_starting_gives_the_start_up(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_: object, __: object) -> None:
        os.kill(os.getpid(), number)
        await asyncio.Event().wait()

    monkeypatch.setattr(LocalBackend, "start", never)

    async def scenario() -> None:
        server = Server(models={"echo": local(lambda obs: obs, inline=True)}, bind="tcp://127.0.0.1:0")
        told: list[str] = []
        await asyncio.wait_for(server.run(lambda: told.append("started")), WAIT_S)
        assert told == []

    asyncio.run(scenario())


@pytest.mark.parametrize("process", [0.3], indirect=True)
def test_a_model_that_hangs_does_not_keep_the_process(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    endpoint = process.stdout.readline().strip()
    with RawPeer(endpoint) as peer:
        peer.ping()
        while peer.ping()["model:hang"] != "ready":
            pass
        sent = peer.observe("hang", latency_budget_ms=5000)
        assert process.stdout.readline() == "hanging\n"
        process.send_signal(signal.SIGTERM)
        reply = peer.receive()
        assert (reply.request_id, reply.status) == (sent, Status.SHUTTING_DOWN)
        assert process.wait(WAIT_S) == 0


@pytest.mark.parametrize("process", [60], indirect=True)
def test_a_second_signal_ends_the_grace_period(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    endpoint = process.stdout.readline().strip()
    with RawPeer(endpoint) as peer:
        while peer.ping()["model:hang"] != "ready":
            pass
        peer.observe("hang", latency_budget_ms=5000)
        assert process.stdout.readline() == "hanging\n"
        process.send_signal(signal.SIGTERM)
        while peer.ping()["model:echo"] == "ready":
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0


def test_an_idle_server_hardly_wakes_up(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    endpoint = process.stdout.readline().strip()
    with RawPeer(endpoint) as peer:
        assert peer.ask().status == Status.OK
        watched = psutil.Process(process.pid)

        def wakeups() -> int:
            return watched.num_ctx_switches().voluntary

        def quiet() -> bool:
            before = wakeups()
            time.sleep(1.0)
            return wakeups() - before <= 5  # a loop that polls every 10 ms would make 100

        eventually(quiet)


# --- what users see ---


def test_metrics_and_callbacks() -> None:
    server = Server(models={"echo": local(echo, inline=True)}, bind=ANY)
    got: list[tuple[str, float, dict[str, str]]] = []

    @server.on_metric
    def collect(name: str, value: float, labels: dict[str, str]) -> None:
        got.append((name, value, labels))

    @server.on_metric
    def broken(name: str, value: float, labels: dict[str, str]) -> None:
        raise RuntimeError

    with server.run_in_thread(), RawPeer(server.endpoint) as peer:
        for _ in range(10):
            peer.ask(timestamp_ns=time.time_ns())
        eventually(lambda: len([g for g in got if g[0] == "e2e_latency_ms"]) == 10)
        stats = server.metrics.get_stats("e2e_latency_ms", labels={"model": "echo"})
        assert stats.count == 10
        assert 0 < stats.min <= stats.p50 <= stats.p95 <= stats.p99 <= stats.max
        names = {g[0] for g in got}
        assert names >= {
            "inference_latency_ms", "scheduling_wait_ms", "e2e_latency_ms", "observation_staleness_ms", "queue_depth",
            "payload_size_bytes", "batch_size", "active_clients",
        }  # fmt: skip
        assert {g[2].get("model", "all") for g in got if g[0] == "queue_depth"} == {"echo"}
        assert ("payload_size_bytes", 12, {"model": "echo", "client": "robot"}) in got


def test_the_spread_of_an_observations_tensors() -> None:
    with Server(models={"echo": local(echo, inline=True)}, bind=ANY).run_in_thread() as server:
        with Connection(server.endpoint, client_id="robot", connect_timeout_ms=WAIT_S * 1e3) as connection:
            model = connection.model("echo", latency_budget_ms=0)
            model.observe(a=np.ones(1), b=np.ones(1), timestamps_ns={"a": 5_000_000, "b": 8_000_000})
            assert model.get_result(WAIT_S * 1e3) is not None
        assert server.metrics.get_stats("tensor_spread_ms", labels={"client": "robot"}).mean == pytest.approx(3.0)


@pytest.mark.parametrize("frames", [257, 258, 4096, 4097, 50_000])
def test_a_message_of_too_many_frames_is_refused_and_read_to_its_end(peer: RawPeer, frames: int) -> None:
    envelope = wire.encode_observation(Observation("robot", "", "echo", 7, metadata={"a": "b"}))
    peer.send_frames(b"", envelope, *([b""] * frames))
    ping = Observation("robot", "", "", 8, kind=Kind.PING)
    peer.send_frames(b"", wire.encode_observation(ping), b"")
    refused, answer = peer.receive(), peer.receive()
    assert (refused.request_id, refused.status) == (7, Status.INVALID_OBSERVATION)
    assert "more than 256 payload frames" in refused.error
    assert (answer.request_id, answer.status) == (8, Status.OK)


def test_256_payload_frames_are_not_too_many(peer: RawPeer) -> None:
    number = peer.observe("echo", tensors={f"t{i}": np.zeros(2000, np.float32) for i in range(256)})
    answer = peer.receive()
    assert (answer.request_id, answer.status) == (number, Status.OK)


class Stumbling:
    """A user's order, first come, first served, with a defect."""

    broken = False

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def push(self, request: Any) -> None:
        self.waiting.append(request)

    def first(self, contended: bool) -> Any:
        if self.broken:
            raise RuntimeError("a defect")
        return self.waiting[0] if self.waiting else None

    def rivals(self, request: Any) -> int:
        return len(self.waiting)

    def discard(self, request: Any, served: bool) -> None:
        self.waiting.remove(request)


def test_who_has_an_outcome_hears_of_it_whatever_an_order_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(Scheduler):
        def order(self) -> Any:
            return Stumbling()

    register_scheduler("stumbling", Mine)
    gate = Gate()
    config = parse_config({"scheduling": {"strategy": "stumbling"}})
    with (
        Server(config, models={"m": gate, "echo": echo}, bind=ANY).run_in_thread() as server,
        RawPeer(server.endpoint) as peer,
    ):
        eventually(lambda: peer.ping()["model:m"] == "ready")
        peer.observe("m", latency_budget_ms=4000)
        gate.wait_entered()
        monkeypatch.setattr(Stumbling, "broken", True)
        peer.observe("echo", latency_budget_ms=2000)
        peer.ping()  # it waits
        gate.release.set()
        assert peer.receive().status == Status.OK
        assert server.health()["pending"] == 1, "the other one waits still: no later round has brought the answer"
        assert peer.receive().status == Status.EXPIRED


def test_use_scheduler_and_explain() -> None:
    gate = Gate()
    with Server(models={"m": gate}, bind=ANY).run_in_thread() as server, RawPeer(server.endpoint) as peer:
        eventually(lambda: server.health()["models"]["m"]["ready"])
        for _ in range(4):
            peer.observe("m", latency_budget_ms=4000)
        gate.wait_entered()
        peer.ping()
        server.use_scheduler("round_robin")
        with pytest.raises(ConfigError, match="'nonsense' is unknown"):
            server.use_scheduler("nonsense")
        gate.release.set()
        assert {peer.receive().status for _ in range(4)} == {Status.OK}
        assert server.explain("robot", 1)
        assert server.explain("robot", 99) == []


@pytest.mark.parametrize("asked", ["", "x", "-1 robot", "9" * 5000 + " robot", "1"])
def test_a_ping_that_asks_for_nonsense_is_answered(peer: RawPeer, asked: str) -> None:
    ping = Observation("robot", "", "", 1, kind=Kind.PING, metadata={"explain": asked})
    peer.send_frames(b"", wire.encode_observation(ping), b"")
    assert peer.receive().metadata["explain"] == "[]"


def test_models_that_clients_make_up_are_no_labels() -> None:
    with Server(models={"echo": echo}, bind=ANY).run_in_thread() as server, RawPeer(server.endpoint) as peer:
        assert peer.ask("made-up").status == Status.UNKNOWN_MODEL
        for name in METRICS:
            assert server.metrics.get_stats(name, labels={"model": "made-up"}).count == 0


def test_the_settings_given_are_copied() -> None:
    config = InferentialConfig()
    server = Server(config, models={"echo": echo}, bind=ANY)
    config.transport.bind = "nonsense"
    with server.run_in_thread():
        assert server.endpoint.startswith("tcp://127.0.0.1:")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"models": []}, "none given"),
        ({}, "none given"),
        ({"models": {"": echo}}, "no name"),
        ({"models": {"x" * 300: echo}}, "no name"),
        ({"models": {"m": 3}}, "neither"),
        ({"models": {3: echo}}, "3 is no name"),
        ({"models": [echo]}, "a dict of name -> callable"),
        ({"models": 5}, "models is 5; it must be a list of names"),
        ({"models": echo}, "a dict of name -> callable"),
        ({"config": {"queue": {}}, "models": {"m": echo}}, r"config is a dict; .* parse_config\(mapping\)"),
        ({"config": "server.toml", "models": {"m": echo}}, r"config is a str; .* load_config\(path\)"),
        ({"bind": 5555, "models": {"m": echo}}, "bind is 5555; it must be an endpoint"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Server(**arguments)


def test_without_ray_names_are_an_error() -> None:
    config = InferentialConfig()
    config.ray.enabled = False
    with pytest.raises(ConfigError, match=r"ray\.enabled is false, but 'policy'"):
        Server(config, models=["policy"])


def test_many_clients_at_once(shared: Server) -> None:
    def work(i: int, out: list[int]) -> None:
        with RawPeer(shared.endpoint) as peer:
            for j in range(30):
                value = float(1000 * i + j)
                peer.observe(tensors={"x": np.array([value])}, client_id=f"robot-{i}")
                out.append(int(actions(peer.receive())["x"][0] == value))

    good: list[int] = []
    threads = [threading.Thread(target=work, args=(i, good)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(WAIT_S)
    assert good == [1] * 240


def test_a_burst_larger_than_one_turn_of_the_loop(peer: RawPeer) -> None:
    sent = {peer.observe(latency_budget_ms=4000) for _ in range(1500)}
    assert {peer.receive().request_id for _ in sent} == sent
