"""Both clients over real sockets against a ROUTER that answers as told. Each scenario is written once, with `await`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import itertools
import random
import signal
import socket as socket_of
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from inferential import AsyncConnection, Connection, EncodedImage, Hold, LinkState, Reason, Source, Status, images, wire
from inferential.client.turn import Turn
from inferential.errors import ConcurrentWaitError, ConnectionClosedError, ObservationError
from inferential.types import Encoding, Kind
from tests.integration.raw_server import WAIT_S, RawServer, Received, echo, echo_v1, silent

STATE = np.arange(7, dtype=np.float32)
LONG_MS = WAIT_S * 1e3


class Awaited:
    """A blocking connection or model whose calls can be awaited, so that a scenario runs with either client."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._wrapped, name)
        if not inspect.ismethod(value):
            return value
        if name == "model":
            return lambda *args, **kwargs: Awaited(value(*args, **kwargs))
        if name == "take_phase_shift_ms":
            return value

        async def call(*args: Any, **kwargs: Any) -> Any:
            return value(*args, **kwargs)

        return call


Connect = Callable[..., Any]
Scenario = Callable[[Connect], Awaitable[None]]


@pytest.fixture(params=["blocking", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Scenario], None]:
    def run(scenario: Scenario) -> None:
        made: list[Any] = []

        def connect(server: str, **options: Any) -> Any:
            options = {"client_id": "robot", "connect_timeout_ms": LONG_MS, **options}
            made.append(
                Awaited(Connection(server, **options))
                if request.param == "blocking"
                else AsyncConnection(server, **options)
            )
            return made[-1]

        async def main() -> None:
            try:
                await asyncio.wait_for(scenario(connect), 4 * WAIT_S)
            finally:
                for connection in made:
                    await connection.close()

        asyncio.run(main())

    return run


@pytest.fixture
def server() -> Iterator[RawServer]:
    server = RawServer()
    yield server
    server.stop()


async def link(conn: Any, state: LinkState) -> None:
    """Waits for it as a robot would see it: by using the connection."""
    deadline = time.monotonic() + WAIT_S
    while conn.link_state is not state:
        assert time.monotonic() < deadline, conn.link_state
        await asyncio.sleep(0.005)


Run = Callable[[Scenario], None]


def test_a_round_trip(run: Run, server: RawServer) -> None:
    async def scenario(connect: Connect) -> None:
        conn = connect(server.address, client_id="agent-01", client_type="franka")
        assert conn.link_state in (LinkState.CONNECTING, LinkState.UP)
        model = conn.model("policy", latency_budget_ms=30.0, priority=0, step_ms=10)
        sent = await model.observe(
            urgency=0.8, steps_remaining=50, state=STATE, prompt="pick", timestamps_ns={"state": 77}
        )
        assert (bool(sent), sent.request_id, sent.status) == (True, 1, None)
        result = await model.get_result(timeout_ms=LONG_MS)
        assert result is not None
        np.testing.assert_array_equal(result["state"], STATE)
        assert result.metadata == {"prompt": "pick"}
        assert result.timing.replica == "raw"
        assert result.age_ms > 0
        assert conn.link_state is LinkState.UP
        assert conn.server_version == 2
        assert conn.stats.ok == 1
        (got,) = server.received
        o = got.observation
        assert (o.client_id, o.client_type, o.model_id, o.request_id) == ("agent-01", "franka", "policy", 1)
        assert (o.priority, o.latency_budget_ms, o.steps_remaining, o.step_ms) == (0, 30.0, 50, 10.0)
        assert o.urgency == pytest.approx(0.8)
        assert o.tensors[0].timestamp_ns == 77
        assert abs(o.timestamp_ns - time.time_ns()) < 60e9

    run(scenario)


def test_an_observation_without_tensors_and_one_of_zero_bytes(run: Run, server: RawServer) -> None:
    async def scenario(connect: Connect) -> None:
        model = connect(server.address).model("policy")
        assert await model.observe(prompt="only words")
        result = await model.get_result(LONG_MS)
        assert (len(result), result.metadata) == (0, {"prompt": "only words"})
        assert await model.observe(a=np.zeros((0, 3), np.int64), b=np.float64(2.5))
        result = await model.get_result(LONG_MS)
        assert result["a"].shape == (0, 3)
        assert (result["b"].shape, float(result["b"])) == ((), 2.5)

    run(scenario)


def test_large_tensors_travel_in_frames_of_their_own_once_the_server_is_known(run: Run, server: RawServer) -> None:
    large = {"a": np.random.default_rng(0).integers(0, 255, 2_000_000, np.uint8), "b": np.ones(100_000), "c": STATE}

    async def scenario(connect: Connect) -> None:
        model = connect(server.address).model("policy")
        for _ in range(2):
            assert await model.observe(**large)
            result = await model.get_result(LONG_MS)
            assert set(result) == {"a", "b", "c"}
            for key, value in large.items():
                np.testing.assert_array_equal(result[key], value)
                assert not result[key].flags.writeable
        assert [len(r.frames) for r in server.received] == [1, 3]

    run(scenario)


@pytest.mark.parametrize("zero_copy", [True, False])
def test_zero_copy_can_be_turned_off(run: Run, server: RawServer, zero_copy: bool) -> None:
    async def scenario(connect: Connect) -> None:
        model = connect(server.address, zero_copy=zero_copy).model("policy")
        camera = np.full(500_000, 7, np.uint8)
        await model.observe(camera=camera)
        if not zero_copy:
            camera[:] = 8  # copied when sent
        result = await model.get_result(LONG_MS)
        assert (result["camera"] == 7).all()

    run(scenario)


def test_cameras_are_encoded_by_one_argument(run: Run, server: RawServer) -> None:
    async def scenario(connect: Connect) -> None:
        model = connect(server.address).model("policy")
        picture = np.zeros((64, 48, 3), np.uint8)
        assert await model.observe(camera=picture, state=STATE, encode="jpeg")
        (got,) = server.wait_for(1)
        spec = {s.key: s for s in got.observation.tensors}["camera"]
        assert (spec.encoding, spec.shape) == (Encoding.JPEG, (64, 48, 3))
        assert images.decode(spec, got.frames).shape == (64, 48, 3)
        assert spec.byte_length < picture.nbytes / 5

    run(scenario)


def test_several_models_each_get_their_own_replies(run: Run, server: RawServer) -> None:
    async def scenario(connect: Connect) -> None:
        conn = connect(server.address)
        models = [conn.model(f"m{i}") for i in range(5)]
        for i, model in enumerate(models):
            assert await model.observe(x=np.int64(i))
        for i, model in reversed(list(enumerate(models))):
            result = await model.get_result(LONG_MS)
            assert (result.model_id, int(result["x"])) == (f"m{i}", i)

    run(scenario)


def test_ten_thousand_requests_in_a_pipeline(run: Run, server: RawServer) -> None:
    async def scenario(connect: Connect) -> None:
        conn = connect(server.address)
        model = conn.model("policy")
        seen = []
        sent = 0
        while len(seen) < 10_000:
            while sent < 10_000 and sent - len(seen) < 200:
                assert await model.observe(x=np.int64(sent))
                sent += 1
            found = await model.next_reply(LONG_MS)
            seen.append(int(found["x"]))
        assert seen == list(range(10_000))
        assert await model.next_reply(LONG_MS) is None  # at once: nothing is outstanding
        assert conn.stats.ok == 10_000

    run(scenario)


def test_a_timeout_abandons_and_a_late_reply_is_not_given_out(run: Run, server: RawServer) -> None:
    held: list[Received] = []

    def hold_first(server: RawServer, received: Received) -> None:
        if not held:
            held.append(received)
        else:
            server.reply(held[0], tensors={"x": held[0].tensors["x"]})
            echo(server, received)

    server.answer = hold_first

    async def scenario(connect: Connect) -> None:
        conn = connect(server.address)
        model = conn.model("policy")
        await model.observe(x=np.int64(1))
        start = time.monotonic()
        assert await model.get_result(timeout_ms=50) is None
        assert time.monotonic() - start >= 0.049
        assert model.last_status == Status.TIMED_OUT
        assert model.outstanding == 0
        await model.observe(x=np.int64(2))
        result = await model.get_result(LONG_MS)
        assert int(result["x"]) == 2
        stats = conn.stats
        assert (stats.timed_out, stats.late_replies) == (1, 1)

    run(scenario)


@pytest.mark.parametrize("number", [np.float64, np.float32, np.int64])
def test_numbers_of_numpy_are_numbers(run: Run, server: RawServer, number: Callable[[float], Any]) -> None:
    async def scenario(connect: Connect) -> None:
        model = connect(server.address).model("policy", priority=np.int64(3), latency_budget_ms=number(60_000))
        assert await model.observe(state=STATE)
        assert await model.get_result(number(LONG_MS)) is not None
        sent = await model.observe(state=STATE, timestamps_ns={"state": np.int64(5)})
        assert await model.next_reply(number(LONG_MS)) is not None
        assert await model.get_result(number(0)) is None
        assert not await model.cancel(np.int64(sent.request_id))
        assert server.received[-1].observation.priority == 3

    run(scenario)


def test_a_timeout_of_zero_only_looks_and_next_reply_abandons_nothing(run: Run, server: RawServer) -> None:
    server.answer = silent

    async def scenario(connect: Connect) -> None:
        model = connect(server.address).model("policy")
        await model.observe(x=STATE)
        assert await model.get_result(timeout_ms=0) is None
        assert await model.next_reply(timeout_ms=0) is None
        assert await model.next_reply(timeout_ms=20) is None
        assert model.outstanding == 1

    run(scenario)


def test_a_reply_is_never_younger_than_its_round_trip(run: Run, server: RawServer) -> None:
    async def scenario(connect: Connect) -> None:
        model = connect(server.address).model("policy")
        await model.observe(x=STATE)
        reply, until_s = None, time.monotonic() + WAIT_S
        while reply is None and time.monotonic() < until_s:  # read and handed out by one call
            reply = await model.get_result(timeout_ms=0)
        assert reply is not None
        assert 0 < reply.round_trip_ms <= reply.age_ms

    run(scenario)


def test_refusals_end_a_wait_at_once_and_tell_why(run: Run, server: RawServer) -> None:
    server.answer = lambda s, r: s.reply(r, status=Status.MODEL_ERROR, error="it raised")

    async def scenario(connect: Connect) -> None:
        conn = connect(server.address)
        model = conn.model("policy")
        await model.observe(x=STATE)
        assert await model.get_result(LONG_MS) is None
        assert (model.last_status, model.last_error) == (Status.MODEL_ERROR, "it raised")
        await model.observe(x=STATE)
        found = await model.next_reply(LONG_MS)
        assert (found.status, found.error, found.local) == (Status.MODEL_ERROR, "it raised", False)
        assert conn.stats.not_ok == 2

    run(scenario)


def test_a_loop_that_is_refused_is_no_storm(run: Run, server: RawServer) -> None:
    server.answer = lambda s, r: s.reply(r, status=Status.REJECTED, reason=Reason.QUEUE_FULL, retry_after_ms=60_000)

    async def scenario(connect: Connect) -> None:
        conn = connect(server.address)
        model = conn.model("policy")
        for _ in range(500):
            assert await model.observe(x=STATE)
            assert await model.get_result(LONG_MS) is None
            assert model.last_status == Status.REJECTED
        assert len(server.received) == 1
        assert (conn.stats.sent, conn.stats.held_off) == (1, 499)

    run(scenario)


def test_ping(run: Run, server: RawServer) -> None:
    async def scenario(connect: Connect) -> None:
        conn = connect(server.address)
        found = await conn.ping(LONG_MS)  # waits for the first handshake, too
        assert dict(found.models) == {"policy": True, "other": False}
        assert (found.server, found.protocol) == ("9.9", 2)
        assert found.round_trip_ms > 0
        server.answer = silent
        assert await conn.ping(30) is None

    run(scenario)


def test_cancel(run: Run, server: RawServer) -> None:
    def answer(server: RawServer, received: Received) -> None:
        if received.observation.kind is Kind.CANCEL:
            server.reply(received, status=Status.CANCELLED)  # stands for the reply to the request of that id
        elif received.observation.request_id == 1:
            echo(server, received)

    server.answer = answer

    async def scenario(connect: Connect) -> None:
        model = connect(server.address).model("policy")
        first = await model.observe(x=STATE)
        assert not await model.cancel(first.request_id)  # the server is not known to be v2 yet
        await model.get_result(LONG_MS)
        second = await model.observe(x=STATE)
        assert await model.cancel(second.request_id)
        # The raw server's answer names no model, the id decides.
        found = await model.next_reply(LONG_MS)
        assert (found.request_id, found.status) == (second.request_id, Status.CANCELLED)
        assert not await model.cancel(second.request_id)
        cancels = [r.observation for r in server.received if r.observation.kind is Kind.CANCEL]
        assert [o.request_id for o in cancels] == [second.request_id]

    run(scenario)


def test_broken_replies_harm_nobody(run: Run, server: RawServer) -> None:
    def answer(server: RawServer, received: Received) -> None:
        for frames in ([b"x"], [b"", b"\xff\xff\xff", b""], [b"", b""], [b"junk", b"junk", b"junk"]):
            server.send_raw(received, frames)
        echo(server, received)

    server.answer = answer

    async def scenario(connect: Connect) -> None:
        conn = connect(server.address)
        model = conn.model("policy")
        for _ in range(3):
            await model.observe(x=STATE)
            assert await model.get_result(LONG_MS) is not None
        assert conn.stats.bad_replies == 12

    run(scenario)


def test_a_v1_server(run: Run, server: RawServer, caplog: pytest.LogCaptureFixture) -> None:
    server.answer = echo_v1

    async def scenario(connect: Connect) -> None:
        conn = connect(server.address)
        model = conn.model("policy")
        large = np.ones(100_000)
        for _ in range(3):
            await model.observe(a=large, b=large, state=STATE)
            result = await model.get_result(LONG_MS)
            np.testing.assert_array_equal(result["b"], large)
            assert result.request_id == len(server.received)
        assert conn.server_version == 1
        assert all(len(r.frames) == 1 for r in server.received)
        sent = await model.observe(x=STATE)
        assert not await model.cancel(sent.request_id)
        assert await conn.ping(LONG_MS) is None
        assert len([r for r in caplog.records if "v1" in r.message]) == 1

    run(scenario)


# --- the link


def test_no_server_ever(run: Run) -> None:
    unused = RawServer()
    unused.stop()

    async def scenario(connect: Connect) -> None:
        conn = connect(unused.address, connect_timeout_ms=150)
        model = conn.model("policy", fallback=Hold(100))
        start = time.monotonic()
        sent = await model.observe(x=STATE)
        assert 0.14 <= time.monotonic() - start < WAIT_S
        assert (bool(sent), sent.status) == (False, Status.NOT_SENT)
        assert "no server" in sent.error
        start = time.monotonic()
        for _ in range(100):
            assert not await model.observe(x=STATE)  # no later send waits
            assert await model.get_result(LONG_MS) is None
            assert (await model.act(LONG_MS)).source is Source.NONE
        assert time.monotonic() - start < WAIT_S / 4
        assert await conn.ping(20) is None
        assert conn.link_state is LinkState.CONNECTING
        assert conn.stats.not_sent == 101
        start = time.monotonic()
        await conn.close()
        assert time.monotonic() - start < WAIT_S

    run(scenario)


def test_a_ping_is_a_first_send_too(run: Run) -> None:
    unused = RawServer()
    unused.stop()

    async def scenario(connect: Connect) -> None:
        conn = connect(unused.address, connect_timeout_ms=4 * LONG_MS)
        start = time.monotonic()
        assert await conn.ping(timeout_ms=30) is None
        assert not await conn.model("policy").observe(x=STATE)
        assert time.monotonic() - start < WAIT_S

    run(scenario)


def test_a_server_that_comes_later_is_found(run: Run) -> None:
    server = RawServer()
    server.stop()

    async def scenario(connect: Connect) -> None:
        conn = connect(server.address, connect_timeout_ms=10)
        model = conn.model("policy")
        assert not await model.observe(x=STATE)
        assert not await conn.wait_until_up(20)
        server.start()
        assert await conn.wait_until_up()
        assert await model.observe(x=STATE)
        assert await model.get_result(LONG_MS) is not None
        # Only what was observed with the link up: nothing had queued up.
        assert [r.observation.request_id for r in server.received] == [2]

    try:
        run(scenario)
    finally:
        server.stop()


def test_a_restart_of_the_server(run: Run, server: RawServer) -> None:
    server.answer = silent
    states: list[LinkState] = []

    async def scenario(connect: Connect) -> None:
        conn = connect(server.address, on_link=states.append)
        model, other = conn.model("policy"), conn.model("other")
        sent = [(await model.observe(x=STATE)).request_id for _ in range(10)]
        await other.observe(x=STATE)
        server.wait_for(11)
        server.stop()
        # The wait ends by the news of the lost link, long before its own timeout.
        start = time.monotonic()
        assert await other.get_result(4 * LONG_MS) is None
        assert time.monotonic() - start < WAIT_S
        assert other.last_status == Status.LINK_LOST
        assert conn.link_state is LinkState.DOWN
        for request_id in sent:
            lost = await model.next_reply(LONG_MS)
            assert (lost.request_id, lost.status, lost.local) == (request_id, Status.LINK_LOST, True)
        assert await model.next_reply(LONG_MS) is None
        assert not await model.observe(x=STATE)
        server.answer = echo
        server.received.clear()
        server.start()
        await link(conn, LinkState.UP)
        assert await model.observe(x=np.int64(99))
        result = await model.get_result(LONG_MS)
        assert int(result["x"]) == 99
        assert [int(r.tensors["x"]) for r in server.received] == [99]  # no request was sent a second time
        stats = conn.stats
        assert (stats.link_lost, stats.not_sent, stats.reconnects) == (11, 1, 1)
        assert states == [LinkState.UP, LinkState.DOWN, LinkState.UP]

    run(scenario)


def test_a_server_that_hangs_is_noticed_by_heartbeats(run: Run) -> None:
    """A peer that completes the handshake and then says nothing at all, as a frozen machine does."""
    import socket

    listener = socket.create_server(("127.0.0.1", 0))
    accepted: list[socket.socket] = []

    def handshake_and_freeze() -> None:
        peer, _ = listener.accept()
        accepted.append(peer)
        peer.sendall(b"\xff" + b"\0" * 8 + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + b"\0" * 31)
        body = b"\x05READY" + b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"ROUTER"
        peer.sendall(b"\x04" + bytes([len(body)]) + body)

    thread = threading.Thread(target=handshake_and_freeze, daemon=True)
    thread.start()

    async def scenario(connect: Connect) -> None:
        conn = connect(f"127.0.0.1:{listener.getsockname()[1]}", heartbeat_ms=300)
        model = conn.model("policy")
        assert await model.observe(x=STATE)
        assert await model.get_result(LONG_MS) is None
        assert model.last_status == Status.LINK_LOST

    try:
        run(scenario)
    finally:
        listener.close()
        thread.join(WAIT_S)
        for peer in accepted:
            peer.close()


def test_a_full_send_queue_is_told_at_once(run: Run) -> None:
    """A peer that completes the handshake and then reads nothing."""
    server = RawServer(silent)

    async def scenario(connect: Connect) -> None:
        conn = connect(server.address, high_water_mark=2, heartbeat_ms=1000)
        model = conn.model("policy")
        assert await model.observe(x=STATE)
        server.wait_for(1)
        blocked = threading.Event()
        server.answer = lambda s, r: blocked.wait(WAIT_S) and None
        camera = np.zeros(4_000_000, np.uint8)
        deadline = time.monotonic() + WAIT_S
        try:
            while sent := await model.observe(camera=camera):
                assert time.monotonic() < deadline
            assert sent.status == Status.NOT_SENT
            assert "queue is full" in sent.error
        finally:
            blocked.set()

    try:
        run(scenario)
    finally:
        server.stop()


def test_closing_with_the_server_gone_takes_under_a_second(run: Run, server: RawServer) -> None:
    server.answer = silent

    async def scenario(connect: Connect) -> None:
        connections = [connect(server.address) for _ in range(3)]
        models = [conn.model("policy") for conn in connections]
        for model in models:
            for _ in range(100):
                await model.observe(x=STATE, camera=np.zeros(100_000, np.uint8))
        server.stop()
        took_s = []
        for conn, model in zip(connections, models, strict=True):
            start = time.monotonic()
            await conn.close()
            took_s.append(time.monotonic() - start)
            found = await model.next_reply(LONG_MS)
            assert found.status == Status.LINK_LOST
        assert min(took_s) < 1.0  # of three, for machines that are busy

    run(scenario)


def test_a_closed_connection(run: Run, server: RawServer) -> None:
    server.answer = silent

    async def scenario(connect: Connect) -> None:
        conn = connect(server.address)
        model = conn.model("policy")
        assert await model.observe(x=STATE)
        await conn.close()
        await conn.close()
        assert conn.link_state is LinkState.CLOSED
        assert not await conn.wait_until_up()
        for call in (lambda: model.observe(x=STATE), conn.ping):
            with pytest.raises(ConnectionClosedError, match="closed"):
                await call()
        assert not await model.cancel(1), "nothing is outstanding"
        with pytest.raises(ConnectionClosedError):
            conn.model("other")
        assert (await model.next_reply()).status == Status.LINK_LOST
        assert await model.next_reply() is None
        assert await model.get_result() is None
        assert (await model.act(10)).source is Source.NONE

    run(scenario)


def test_closing_keeps_what_has_arrived(run: Run, server: RawServer) -> None:
    async def scenario(connect: Connect) -> None:
        conn = connect(server.address)
        model = conn.model("policy")
        assert await model.observe(x=STATE)
        socket = conn._core.socket
        # Until the reply is here; asyncio's client may have read it already.
        while not (socket._message_news or model._inbox.replies):
            assert socket.poll(int(LONG_MS))
        await conn.close()
        found = await model.next_reply()
        assert found is not None
        assert found.status == Status.OK

    run(scenario)


# --- links that ZMQ gives up


def test_a_reply_that_is_too_large_costs_the_link_and_not_the_connection(run: Run, server: RawServer) -> None:
    def answer(server: RawServer, received: Received) -> None:
        large = received.observation.request_id == 1
        server.reply(received, tensors={"x": np.zeros(20_000 if large else 7, np.uint8)})

    server.answer = answer

    async def scenario(connect: Connect) -> None:
        conn = connect(server.address, max_message_bytes=10_000)
        model = conn.model("policy")
        await model.observe(x=STATE)
        assert await model.get_result(LONG_MS) is None
        assert model.last_status == Status.LINK_LOST
        assert await conn.wait_until_up(LONG_MS)
        await model.observe(x=STATE)
        result = await model.get_result(LONG_MS)
        assert result is not None
        assert result["x"].nbytes == 7

    run(scenario)


def test_another_program_at_the_servers_address(run: Run, server: RawServer) -> None:
    server.stop()
    other = socket_of.create_server(("127.0.0.1", server.port))
    other.settimeout(WAIT_S)

    async def scenario(connect: Connect) -> None:
        conn = connect(server.address)
        with other:
            link, _ = other.accept()
            with link:
                link.settimeout(WAIT_S)
                # A ZMTP greeting, and a command that is none.
                link.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\1" + bytes(31) + b"\4\5\3BADxx")
                with contextlib.suppress(ConnectionError):
                    while link.recv(1024):
                        pass
        server.start()
        assert await conn.wait_until_up(LONG_MS)

    run(scenario)


# --- many messages at a time


def test_replies_that_nobody_reads_keep_the_link(run: Run, server: RawServer) -> None:
    count = 1500

    async def scenario(connect: Connect) -> None:
        conn = connect(server.address, heartbeat_ms=500, high_water_mark=2 * count)
        model = conn.model("policy")
        for _ in range(count):
            assert await model.observe(x=STATE)
        server.wait_for(count)
        time.sleep(3.0)  # the program does something else, for more heartbeats than a link may miss
        for _ in range(count):
            found = await model.next_reply(LONG_MS)
            assert found is not None
            assert found.status == Status.OK
        assert conn.stats.reconnects == 0

    run(scenario)


def test_what_came_in_time_is_in_time_however_late_it_is_read(run: Run, server: RawServer) -> None:
    count = 600
    answered = threading.Event()

    def answer(server: RawServer, received: Received) -> None:
        echo(server, received)
        if received.observation.request_id == count:
            answered.set()

    server.answer = answer

    async def scenario(connect: Connect) -> None:
        conn = connect(server.address, request_timeout_ms=2000)
        model = conn.model("policy")
        for _ in range(count):
            assert await model.observe(x=STATE)
        assert answered.wait(WAIT_S)
        time.sleep(2.2)  # until all of them are overdue
        for _ in range(count):
            found = await model.next_reply(LONG_MS)
            assert found is not None
            assert found.status == Status.OK

    run(scenario)


def test_a_call_reads_only_so_much(run: Run, server: RawServer) -> None:
    """Whoever has little time must not have to read all that somebody else sends."""
    count = 3000
    sent = threading.Event()

    def answer(server: RawServer, received: Received) -> None:
        for number in range(count):
            server.reply(received, request_id=10_000 + number)
        sent.set()

    server.answer = answer

    async def scenario(connect: Connect) -> None:
        conn = connect(server.address)
        await conn.model("policy").observe(x=STATE)
        assert sent.wait(WAIT_S)
        time.sleep(0.5)  # until they are here
        assert conn.stats.late_replies < count / 2
        deadline = time.monotonic() + WAIT_S
        while conn.stats.late_replies < count:
            assert time.monotonic() < deadline, conn.stats
            await asyncio.sleep(0)

    run(scenario)


def test_an_image_that_is_none_is_refused_by_either_side(run: Run, server: RawServer) -> None:
    image = images.encode_png(np.zeros((8, 8, 3), np.uint8))

    def answer(server: RawServer, received: Received) -> None:
        body = wire.encode_body({"cam": image}, several_frames=True)
        body.frames[0] = b"none" + bytes(body.frames[0])[4:]
        frames = wire.encode_response(
            client_id="robot",
            client_type="",
            model_id="policy",
            response_id="r",
            timestamp_ns=0,
            request_id=received.observation.request_id,
            observation_timestamp_ns=0,
            body=body,
        )
        server.send_raw(received, [bytes(f) for f in frames])

    server.answer = answer

    async def scenario(connect: Connect) -> None:
        model = connect(server.address).model("policy")
        for wrong, text in (
            (EncodedImage(image.data, (8, 9, 3), Encoding.PNG), r"cam.*\(8, 8, 3\)"),
            (EncodedImage(image.data, (8, 8, 3), Encoding.JPEG), "cam.*is not a JPEG image"),
            (EncodedImage(b"", (8, 8, 3), Encoding.PNG), "cam.*is not a PNG image"),
            (EncodedImage(image.data, (8, 8, 2), Encoding.PNG), "cam.*1, 3 or 4 channels"),
            (EncodedImage(image.data, (0, 8, 3), Encoding.PNG), "cam.*sides of 1 to 16384"),
        ):
            with pytest.raises(ObservationError, match=text):
                await model.observe(cam=wrong)
        sent = await model.observe(cam=image)
        assert sent.request_id == 1
        found = await model.next_reply(LONG_MS)
        assert found is not None
        assert found.status == Status.MODEL_ERROR
        assert "is not a PNG image" in found.error

    run(scenario)


# --- the watchdog


def test_act_falls_back_at_once_when_the_link_is_lost(run: Run, server: RawServer) -> None:
    async def scenario(connect: Connect) -> None:
        conn = connect(server.address)
        model = conn.model("policy", step_ms=20, fallback=Hold(max_ms=60_000))
        await model.observe(actions=STATE)
        action = await model.act(LONG_MS)
        assert (action.source, action.status) == (Source.FRESH, Status.OK)
        server.answer = silent
        await model.observe(actions=STATE)
        stopper = threading.Timer(0.05, server.stop)
        stopper.start()
        action = await model.act(4 * LONG_MS)
        stopper.join()
        assert (action.source, action.status) == (Source.HOLD, Status.LINK_LOST)
        np.testing.assert_array_equal(action.tensors["actions"], STATE)
        assert action.age_ms > 0
        assert not await model.observe(actions=STATE)
        assert (await model.act(4 * LONG_MS)).source is Source.HOLD

    run(scenario)


def test_act_on_a_stalled_server_returns_at_its_timeout(run: Run, server: RawServer) -> None:
    server.answer = silent

    async def scenario(connect: Connect) -> None:
        seen: list[tuple[Any, float]] = []

        def brake(reply: Any, age_ms: float) -> dict[str, Any]:
            seen.append((reply, age_ms))
            return {"actions": np.zeros(2)}

        model = connect(server.address).model("policy", fallback=brake)
        await model.observe(x=STATE)
        action = await model.act(timeout_ms=30)
        assert (action.source, action.status) == (Source.CALLBACK, Status.TIMED_OUT)
        assert list(action.tensors) == ["actions"]
        assert seen == [(None, 0.0)]

    run(scenario)


# --- misuse


def test_wrong_arguments_use_no_request_id(run: Run, server: RawServer) -> None:
    async def scenario(connect: Connect) -> None:
        model = connect(server.address, max_message_bytes=1_000_000).model("policy")
        with pytest.raises(ObservationError, match="'state'"):
            await model.observe(state=[1, 2])
        with pytest.raises(ObservationError, match="complex128"):
            await model.observe(state=np.zeros(2, complex))
        with pytest.raises(ObservationError, match="object"):
            await model.observe(state=np.array([None]))
        with pytest.raises(ObservationError, match="max_message_bytes"):
            await model.observe(state=np.zeros(2_000_000, np.uint8))
        with pytest.raises(ObservationError, match="metadata"):
            await model.observe(note="x" * 1_000_000)
        with pytest.raises(ObservationError):
            await model.observe(note="\ud800")
        assert (await model.observe(state=STATE)).request_id == 1
        for wrong in (float("nan"), "1"):
            with pytest.raises(ValueError, match="timeout_ms"):
                await model.get_result(wrong)

    run(scenario)


def test_a_negative_timeout_is_time_that_has_run_out(run: Run, server: RawServer) -> None:
    server.answer = silent

    async def scenario(connect: Connect) -> None:
        connection = connect(server.address)
        model = connection.model("policy", fallback=lambda reply, age_ms: {"actions": STATE})
        await model.observe(x=STATE)
        assert await model.next_reply(-1) is None
        assert await model.get_result(-0.1) is None
        assert (await model.act(-float("inf"))).source is Source.CALLBACK
        assert connection.stats.timed_out == 0, "0 abandons nothing"

    run(scenario)


def test_a_request_ends_after_its_own_timeout(run: Run, server: RawServer) -> None:
    server.answer = silent

    async def scenario(connect: Connect) -> None:
        model = connect(server.address, request_timeout_ms=60).model("policy")
        await model.observe(x=STATE)
        found = await model.next_reply(None)
        assert (found.status, found.local) == (Status.TIMED_OUT, True)
        assert await model.next_reply(None) is None

    run(scenario)


def test_a_failing_link_callback_breaks_nothing(run: Run, server: RawServer) -> None:
    def fail(state: LinkState) -> None:
        raise RuntimeError("in the callback")

    async def scenario(connect: Connect) -> None:
        model = connect(server.address, on_link=fail).model("policy")
        await model.observe(x=STATE)
        assert await model.get_result(LONG_MS) is not None

    run(scenario)


# --- of the blocking client alone


def test_two_threads_on_one_connection_are_told(server: RawServer) -> None:
    server.answer = silent
    with Connection(server.address, "robot", connect_timeout_ms=LONG_MS) as conn:
        model, other = conn.model("policy"), conn.model("other")
        model.observe(x=STATE)
        waiting = threading.Thread(target=lambda: model.get_result(LONG_MS))
        waiting.start()
        deadline = time.monotonic() + WAIT_S
        while True:  # until the other thread is inside its call
            try:
                other.observe(x=STATE)
            except ConcurrentWaitError:
                break
            assert time.monotonic() < deadline
        assert conn.stats.sent >= 1  # these may be asked for from anywhere
        assert conn.link_state is LinkState.UP
        server.stop()  # ends the wait
        waiting.join(WAIT_S)
        assert not waiting.is_alive()


def test_who_only_looks_costs_nobody_a_call(server: RawServer) -> None:
    over = threading.Event()
    looks = [0, 0]

    def look(i: int) -> None:
        while not over.is_set():
            assert conn.link_state is LinkState.UP
            assert conn.stats.sent == 1
            looks[i] += 1

    with Connection(server.address, "robot", connect_timeout_ms=LONG_MS) as conn:
        model = conn.model("policy")
        assert model.observe(x=STATE)
        assert model.get_result(LONG_MS)
        watching = [threading.Thread(target=look, args=(i,)) for i in range(2)]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)  # so that threads are often interrupted in the midst
        try:
            for thread in watching:
                thread.start()
            deadline = time.monotonic() + WAIT_S
            calls = 0
            while calls < 2000 or min(looks) < 200:
                assert model.get_result(0) is None  # raises where it is refused
                calls += 1
                assert time.monotonic() < deadline, (calls, looks)
        finally:
            sys.setswitchinterval(interval)
            over.set()
            for thread in watching:
                thread.join(WAIT_S)


class Struck(Exception):  # noqa: N818
    """What the signal handlers of these tests raise, as that of Ctrl-C raises KeyboardInterrupt."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of frames, in which it struck
def test_a_call_that_a_signal_ends_costs_no_more_than_the_link(server: RawServer) -> None:
    """At whatever moment it strikes: no lock stays taken, no message is glued to the next one, no request stays without an outcome."""
    armed = False

    def interrupt(*_: object) -> None:
        if armed:
            raise Struck

    moments = random.Random(7)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Connection(server.address, "robot", connect_timeout_ms=LONG_MS) as conn:
            model = conn.model("policy")
            ended: set[int] = set()

            def take() -> Any:
                reply = model.next_reply(LONG_MS)
                if reply is not None:
                    assert reply.request_id not in ended
                    ended.add(reply.request_id)
                return reply

            for i in range(300):
                assert conn.wait_until_up(LONG_MS)
                try:
                    try:
                        armed = True
                        signal.setitimer(signal.ITIMER_REAL, moments.uniform(5e-6, 1e-3))
                        for _ in range(
                            20
                        ):  # an exception in the destructor of a frame of pyzmq's is lost: without an end it could go on
                            model.observe(x=STATE)
                            take()
                    finally:
                        armed = False
                except Struck:
                    pass
                while take() is not None:
                    pass
                assert model.outstanding == 0
                assert conn.wait_until_up(LONG_MS)
                sent = model.observe(x=np.full(7, i))
                reply = take()
                assert (reply.request_id, reply.status) == (sent.request_id, Status.OK)
                np.testing.assert_array_equal(reply["x"], np.full(7, i))
            assert conn.stats.bad_replies == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_no_exception_on_the_way_into_a_call_leaves_the_lock_taken(server: RawServer) -> None:
    with Connection(server.address, "robot", connect_timeout_ms=LONG_MS) as conn:
        model = conn.model("policy")
        for line in itertools.count():
            left = line

            def trace(frame: Any, event: str, _: object) -> Any:
                nonlocal left
                if frame.f_code is not Turn.__enter__.__code__:
                    return None
                if event in ("call", "line"):
                    left -= 1
                    if left < 0:
                        raise Struck
                return trace

            debugger = sys.gettrace()
            sys.settrace(trace)
            try:
                model.get_result(0)
                assert conn.stats is not None
            except Struck:
                pass
            finally:
                sys.settrace(debugger)
            assert model.observe(x=STATE) or conn.wait_until_up(LONG_MS)
            if left >= 0:
                break
        assert line > 8


def test_a_link_callback_that_ends_the_call(server: RawServer) -> None:
    states: list[LinkState] = []

    def on_link(state: LinkState) -> None:
        states.append(state)
        if len(states) == 1:
            raise KeyboardInterrupt

    with Connection(server.address, "robot", connect_timeout_ms=LONG_MS, on_link=on_link) as conn:
        model = conn.model("policy")
        with pytest.raises(KeyboardInterrupt):
            model.observe(x=STATE)
        assert conn.wait_until_up(LONG_MS)
        assert model.observe(x=STATE)
        assert model.get_result(LONG_MS) is not None
        assert states == [LinkState.UP, LinkState.DOWN, LinkState.UP]


def test_an_asyncio_connection_goes_on_in_the_loop_after_the_one_that_was_ended(server: RawServer) -> None:
    def on_link(state: LinkState) -> None:
        states.append(state)
        if len(states) == 1:
            raise KeyboardInterrupt

    async def round_trip() -> None:
        assert await conn.wait_until_up(LONG_MS)
        assert await model.observe(x=STATE)
        assert await model.get_result(LONG_MS) is not None

    states: list[LinkState] = []
    conn = AsyncConnection(server.address, "robot", connect_timeout_ms=LONG_MS, on_link=on_link)
    model = conn.model("policy")
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(round_trip())
    asyncio.run(round_trip())
    asyncio.run(conn.close())
    assert states == [LinkState.UP, LinkState.DOWN, LinkState.UP, LinkState.CLOSED]


def test_an_asyncio_connection_that_nobody_has_any_more_leaves_its_loop(server: RawServer) -> None:
    async def round_trip() -> weakref.ref[AsyncConnection]:
        conn = AsyncConnection(server.address, "robot", connect_timeout_ms=LONG_MS)
        model = conn.model("policy")
        assert await model.observe(x=STATE)
        assert await model.get_result(LONG_MS) is not None
        return weakref.ref(conn)

    async def main() -> None:
        conn = await round_trip()
        gc.collect()
        assert conn() is None

    asyncio.run(main())


def test_the_child_of_a_fork_leaves_the_loop_of_its_parent_alone(server: RawServer) -> None:
    """Both share one epoll instance: what the child takes out of it, the parent never hears of again."""
    program = f"""
import asyncio, os
import numpy as np
from inferential import AsyncConnection
from inferential.errors import ConnectionClosedError

async def round_trip(conn):
    model = conn.model("policy")
    assert await model.observe(x=np.zeros(7))
    assert await model.get_result({LONG_MS}) is not None

async def main():
    conn = AsyncConnection({server.address!r}, "parent", connect_timeout_ms={LONG_MS}, request_timeout_ms={LONG_MS})
    await round_trip(conn)
    child = os.fork()
    if child == 0:
        try:
            conn.link_state
        except ConnectionClosedError as e:
            assert "fork" in str(e)
        else:
            os._exit(1)
        await conn.close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    await round_trip(conn)
    await conn.close()

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_link_callback_may_read_the_state_but_not_use_the_connection(server: RawServer) -> None:
    seen: list[Any] = []

    def on_link(state: LinkState) -> None:
        seen.append((state, conn.link_state, conn.stats.sent))
        with pytest.raises(ConcurrentWaitError):
            model.get_result(0)

    conn = Connection(server.address, "robot", on_link=on_link, connect_timeout_ms=LONG_MS)
    with conn:
        model = conn.model("policy")
        assert model.observe(x=STATE)
        assert seen == [(LinkState.UP, LinkState.UP, 0)]
    assert seen[1:] == [(LinkState.CLOSED, LinkState.CLOSED, 1)]


def test_the_child_of_a_fork_makes_connections_of_its_own(server: RawServer) -> None:
    program = f"""
import os, sys
import numpy as np
from inferential import Connection
from inferential.errors import ConnectionClosedError

def round_trip(conn):
    model = conn.model("policy")
    assert model.observe(x=np.zeros(7))
    assert model.get_result({LONG_MS}) is not None

conn = Connection({server.address!r}, "parent", connect_timeout_ms={LONG_MS})
round_trip(conn)
child = os.fork()
if child == 0:
    try:
        round_trip(conn)
    except ConnectionClosedError as e:
        assert "fork" in str(e)
    else:
        os._exit(1)
    del conn
    with Connection({server.address!r}, "child", connect_timeout_ms={LONG_MS}) as own:
        round_trip(own)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
round_trip(conn)
conn.close()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("close", [True, False])
def test_a_program_with_the_server_down_ends_at_once(server: RawServer, close: bool) -> None:
    program = f"""
import time
import numpy as np
from inferential import Connection
conn = Connection({server.address!r}, "robot", connect_timeout_ms={LONG_MS})
model = conn.model("policy")
assert model.observe(x=np.zeros(7))
assert model.get_result({LONG_MS}) is not None
print("answered", flush=True)
input()  # the server goes
model.observe(x=np.zeros(100_000))
print(time.monotonic(), flush=True)
{"conn.close()" if close else ""}
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "answered\n"
    server.stop()
    printed, _ = process.communicate("\n", timeout=60)
    assert process.returncode == 0
    assert (
        time.monotonic() - float(printed) < WAIT_S
    )  # libzmq's default would be for ever; the interpreter's own end takes most


# --- of the asyncio client alone


def test_tasks_wait_on_different_models_and_not_on_one(server: RawServer) -> None:
    async def main() -> None:
        async with AsyncConnection(server.address, "robot", connect_timeout_ms=LONG_MS) as conn:

            async def loop(name: str) -> None:
                model = conn.model(name)
                for i in range(100):
                    assert await model.observe(x=np.int64(i))
                    result = await model.get_result(LONG_MS)
                    assert result is not None
                    assert (result.model_id, int(result["x"])) == (name, i)

            await asyncio.gather(*(loop(f"m{i}") for i in range(20)))
            server.answer = silent
            model = conn.model("policy")
            await model.observe(x=STATE)
            waiting = asyncio.create_task(model.next_reply(LONG_MS))
            await asyncio.sleep(0)
            with pytest.raises(ConcurrentWaitError, match="policy"):
                await conn.model("policy").get_result(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await model.get_result(0) is None  # the cancelled one is out of the way

    asyncio.run(main())


def test_a_cancelled_wait_loses_nothing(server: RawServer) -> None:
    gate = threading.Event()

    def answer_later(server: RawServer, received: Received) -> None:
        assert gate.wait(WAIT_S)
        echo(server, received)

    server.answer = answer_later

    async def main() -> None:
        async with AsyncConnection(server.address, "robot", connect_timeout_ms=LONG_MS) as conn:
            model = conn.model("policy")
            await model.observe(x=np.int64(5))
            for wait in (model.get_result, model.next_reply):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(wait(LONG_MS), 0.02)
            assert model.outstanding == 1
            gate.set()
            result = await model.get_result(LONG_MS)
            assert result is not None
            assert int(result["x"]) == 5

    asyncio.run(main())


def test_closing_wakes_whoever_waits(server: RawServer) -> None:
    server.answer = silent

    async def main() -> None:
        conn = AsyncConnection(server.address, "robot", connect_timeout_ms=LONG_MS)
        model, other = conn.model("policy"), conn.model("other")
        await model.observe(x=STATE)
        await other.observe(x=STATE)
        waits = [
            asyncio.create_task(m) for m in (model.get_result(LONG_MS), other.next_reply(LONG_MS), conn.ping(LONG_MS))
        ]
        await asyncio.sleep(0.01)
        await conn.close()
        result, reply, pong = await asyncio.wait_for(asyncio.gather(*waits), WAIT_S)
        assert result is None
        assert model.last_status == Status.LINK_LOST
        assert reply.status == Status.LINK_LOST
        assert pong is None

    asyncio.run(main())


def test_first_sends_of_several_tasks_wait_for_the_handshake_together(server: RawServer) -> None:
    async def main() -> None:
        async with AsyncConnection(server.address, "robot", connect_timeout_ms=LONG_MS) as conn:
            sent = await asyncio.gather(*(conn.model(f"m{i}").observe(x=STATE) for i in range(5)))
            assert all(sent)

    asyncio.run(main())


def test_a_connection_belongs_to_one_loop_but_outlives_it(server: RawServer) -> None:
    conn = AsyncConnection(server.address, "robot", connect_timeout_ms=LONG_MS)
    model = conn.model("policy")

    async def round_trip() -> Any:
        await model.observe(x=STATE)
        return await model.get_result(LONG_MS)

    assert asyncio.run(round_trip()) is not None
    assert asyncio.run(round_trip()) is not None  # the first loop is closed

    async def from_another_thread() -> None:
        await round_trip()
        with pytest.raises(ConcurrentWaitError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, round_trip())
        await conn.close()

    asyncio.run(from_another_thread())


def test_a_fallback_may_be_a_coroutine_function(server: RawServer) -> None:
    server.answer = silent

    async def brake(reply: Any, age_ms: float) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"actions": np.zeros(2)}

    async def main() -> None:
        async with AsyncConnection(server.address, "robot", connect_timeout_ms=LONG_MS) as conn:
            model = conn.model("policy", fallback=brake)  # type: ignore[arg-type]
            await model.observe(x=STATE)
            action = await model.act(10)
            assert (action.source, list(action.tensors)) == (Source.CALLBACK, ["actions"])

    asyncio.run(main())
