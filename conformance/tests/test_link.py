"""Links that come, go and never are (docs/protocol.md, section 6.1), against a stand-in. Restarts of the real server: test_restart.py."""

from __future__ import annotations

import pathlib
import socket
import time

import pytest
import zmq

from adapters.base import CallError
from suite.client import Client, Connection, Model, f32, some
from suite.standin import StandIn

LINK_LOST, NOT_SENT = 1002, 1003


WITHIN_S = 1.0  # closing
TRIES = 10  # the machine may be busy: the best one counts


@pytest.fixture
def nowhere() -> str:
    """An address where nobody listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{s.getsockname()[1]}"


def time_of_closing(connection: Connection) -> float:
    begin = time.monotonic()
    connection.close()
    return time.monotonic() - begin


def greet(connection: Connection, stand_in: StandIn) -> None:
    """One observation there and its answer back."""
    connection.wait_for_link("up")
    model = connection.model("policy")
    model.send({"x": f32(1)})
    stand_in.answer(stand_in.receive())
    assert model.ok().request_id == 1


def test_an_address_of_ipv6(client: Client) -> None:
    if not pathlib.Path("/proc/net/if_inet6").exists() or "lo" not in pathlib.Path("/proc/net/if_inet6").read_text():
        pytest.skip("this machine has no IPv6 on loopback")
    with StandIn(host="[::1]") as there:
        greet(client.connect(there.address), there)


def test_no_server_ever(client: Client, nowhere: str) -> None:
    tried = 1
    begin = time.monotonic()
    connection = client.connect(nowhere, connect_timeout_ms=300)
    model = connection.model("policy")
    assert time.monotonic() - begin < 5, "constructing does not wait"
    assert connection.link_state() == "connecting"
    sent = model.observe({"x": f32(1)})
    assert sent.status == NOT_SENT
    assert sent.request_id == 1
    assert sent.error, "it says why"
    waited = time.monotonic() - begin
    assert 0.29 <= waited < 10, "the first send waits for the handshake, but not longer"
    begin = time.monotonic()
    for i in range(20):
        sent = model.observe({"x": f32(1)})
        assert (sent.request_id, sent.status) == (2 + i, NOT_SENT)
    assert time.monotonic() - begin < 5, "later sends never wait"
    assert model.get_result(60_000) is None
    assert model.next_reply(60_000) is None
    assert connection.ping(50) is None
    assert connection.counters()["not_sent"] == 21
    assert time.monotonic() - begin < 10
    took = time_of_closing(connection)
    while took >= WITHIN_S and tried < TRIES:
        tried += 1
        another = client.connect(nowhere, connect_timeout_ms=50)
        another.model("policy").observe()
        took = time_of_closing(another)
    assert took < WITHIN_S, "closing takes under a second"


def test_ping_waits_for_the_first_handshake_within_its_own_timeout(client: Client, nowhere: str) -> None:
    connection = client.connect(nowhere, connect_timeout_ms=60_000)
    begin = time.monotonic()
    assert connection.ping(100) is None
    assert 0.09 <= time.monotonic() - begin < 10


@pytest.mark.parametrize("form", ["127.0.0.1:{port}", "\t tcp://127.0.0.1:000{port}\r\n", "localhost:{port}"])
def test_an_address_of_tcp(client: Client, stand_in: StandIn, form: str) -> None:
    greet(client.connect(form.format(port=stand_in.port)), stand_in)


def test_an_address_of_ipc(client: Client, tmp_path: pathlib.Path) -> None:
    with StandIn(bind=f"ipc://{tmp_path}/s") as there:
        greet(client.connect(there.address), there)


# The SDKs' own tests have more of them.
@pytest.mark.parametrize(
    "address",
    ["", "localhost", "localhost:0", "localhost:65536", "localhost:5555x", "localhost:\u0665", ":5555", "*:5555", "a b:5555",
     "::1:5555", "[]:5555", "[1:2]:5555", "[127.0.0.1]:5555", "localhost:5555:6", "lo:0;localhost:5555", "ipc://",
     "TCP://localhost:5555", "udp://localhost:5555", "inproc://x"],
)  # fmt: skip
def test_an_address_that_can_never_connect_is_refused(client: Client, address: str) -> None:
    with pytest.raises(CallError) as e:
        client.connect(address)
    assert e.value.code == "argument"
    assert address in e.value.message
    words = "must be tcp://HOST:PORT, with a port of 1 to 65535 and an IPv6 address in brackets, or ipc://PATH"
    assert words in e.value.message


def test_a_path_of_ipc_that_the_system_does_not_have_is_refused(client: Client) -> None:
    with pytest.raises(CallError) as e:
        client.connect(f"ipc:///{'x' * 200}")
    assert e.value.code == "argument"


def test_the_first_send_waits_for_the_handshake(client: Client, stand_in: StandIn) -> None:
    model = client.connect(stand_in.address, connect_timeout_ms=20_000).model("policy")
    assert model.send() == 1
    assert stand_in.receive().request_id == 1


def test_link_states(client: Client, stand_in: StandIn) -> None:
    connection = client.connect(stand_in.address)
    connection.wait_for_link("up")
    stand_in.close()
    connection.wait_for_link("down")
    with StandIn(stand_in.port):
        connection.wait_for_link("up")
        assert connection.counters()["reconnects"] == 1
        connection.close()
        assert connection.link_state() == "closed"


def test_a_lost_link_ends_everything_outstanding(connection: Connection, model: Model, stand_in: StandIn) -> None:
    other = connection.model("other")
    ids = [model.send() for _ in range(3)]
    lost_too = other.send()
    for _ in range(4):
        stand_in.receive()
    stand_in.close()
    begin = time.monotonic()
    replies = [model.reply() for _ in ids]
    assert [(r.request_id, r.status, r.local) for r in replies] == [(i, LINK_LOST, True) for i in ids]
    r = other.reply()
    assert (r.request_id, r.status) == (lost_too, LINK_LOST)
    assert time.monotonic() - begin < 10, "at once, not when they would have timed out"
    assert connection.counters()["link_lost"] == 4
    sent = model.observe()
    assert sent.status == NOT_SENT
    assert model.next_reply(60_000) is None, "NOT_SENT is told once, by the send"


def test_get_result_ends_when_the_link_is_lost(model: Model, stand_in: StandIn) -> None:
    model.send()
    stand_in.receive()
    stand_in.close()
    begin = time.monotonic()
    assert model.get_result(60_000) is None
    assert time.monotonic() - begin < 10
    assert model.last_status() == LINK_LOST


def test_a_reply_just_before_the_loss_makes_one_outcome(
    connection: Connection, model: Model, stand_in: StandIn
) -> None:
    # With IMMEDIATE libzmq itself drops what it has received and nobody has read when a connection breaks, so the
    # reply may be lost with the link; but the request must end, and once.
    model.send()
    model.send()
    stand_in.receive()
    stand_in.answer(stand_in.receive(), {"actions": f32(2)})
    stand_in.close()
    outcomes = {r.request_id: r.status for r in (model.reply(), model.reply())}
    assert outcomes.keys() == {1, 2}
    assert outcomes[1] == LINK_LOST
    assert outcomes[2] in (0, LINK_LOST)
    assert model.next_reply(0) is None
    counters = connection.counters()
    assert counters["ok"] + counters["link_lost"] == counters["sent"] == 2


def test_a_loss_with_many_unread_replies_ends_each_request_once(
    connection: Connection, model: Model, stand_in: StandIn
) -> None:
    """However many lie there when the link breaks: libzmq must not be caught in the midst of one."""
    count = 1000
    for _ in range(count):
        model.send({"x": f32(1)})
    for _ in range(count):
        stand_in.answer(stand_in.receive(), {"actions": f32(2)})
    stand_in.close()
    outcomes = [model.reply() for _ in range(count)]
    assert {r.request_id for r in outcomes} == set(range(1, count + 1))
    assert {r.status for r in outcomes} <= {0, LINK_LOST}
    assert model.next_reply(0) is None


def test_replies_that_nobody_reads_keep_the_link(client: Client, stand_in: StandIn) -> None:
    count = 1100
    connection = client.connect(stand_in.address)
    model = connection.model("policy")
    for _ in range(count):
        model.send()
    for _ in range(count):
        stand_in.answer(stand_in.receive())
    time.sleep(4.0)  # what is tested is that this time passes: more heartbeats than a link may miss
    assert [model.ok().request_id for _ in range(count)] == list(range(1, count + 1))
    assert connection.counters()["reconnects"] == 0


def test_what_breaks_zmqs_protocol_costs_the_link_and_not_the_connection(client: Client, stand_in: StandIn) -> None:
    """A frame that is too large, and then another program at the server's address: ZMQ would never connect again."""
    connection = client.connect(stand_in.address, max_message_bytes=10_000)
    model = connection.model("policy")
    model.send()
    stand_in.answer(stand_in.receive(), {"x": some("UINT8", (20_000,))})
    assert model.reply().status == LINK_LOST
    connection.wait_for_link("up")
    model.send()
    stand_in.answer(stand_in.receive())
    assert model.ok().request_id == 2
    stand_in.close()
    with zmq.Context() as context, context.socket(zmq.PUB) as other:
        other.linger = 0
        other.bind(stand_in.address)
        seen = other.get_monitor_socket(zmq.EVENT_ACCEPTED)
        assert seen.poll(20_000)
    with StandIn(port=stand_in.port) as back:
        connection.wait_for_link("up")
        model.send()
        back.answer(back.receive())
        assert model.ok().request_id == 3


def test_nothing_stale_is_delivered_to_the_next_server(connection: Connection, model: Model, stand_in: StandIn) -> None:
    model.send({}, {"when": "before"})
    stand_in.receive()
    stand_in.close()
    connection.wait_for_link("down")
    for _ in range(20):
        assert model.observe({}, {"when": "during"}).status == NOT_SENT
    with StandIn(stand_in.port) as again:
        connection.wait_for_link("up")
        sent = model.send({}, {"when": "after"})
        got = again.receive()
        assert (got.request_id, got.observation.metadata["when"]) == (sent, "after")
        assert sent == 22, "ids go on counting, over those that were not sent too"
        assert again.receive_nothing(0.2)
        again.answer(got)
        assert model.reply().status == LINK_LOST
        assert model.reply().request_id == sent


def test_a_reply_from_before_is_not_taken_after_a_reconnect(
    connection: Connection, model: Model, stand_in: StandIn
) -> None:
    lost = model.send()
    got = stand_in.receive()
    stand_in.close()
    assert model.reply().status == LINK_LOST
    with StandIn(stand_in.port) as again:
        connection.wait_for_link("up")
        sent = model.send()
        here = again.receive()
        old = type(got)(here.identity, got.observation, [])
        again.answer(old, {"actions": f32(1)})
        again.answer(here, {"actions": f32(2)})
        r = model.get_result()
        assert r is not None
        assert r.request_id == sent != lost
        assert connection.counters()["late_replies"] == 1


def test_what_was_learned_is_forgotten(connection: Connection, model: Model, stand_in: StandIn) -> None:
    model.send()
    stand_in.answer(stand_in.receive(), status=3, retry_after_ms=600_000)
    model.reply()
    stand_in.close()
    connection.wait_for_link("down")
    with StandIn(stand_in.port) as again:
        connection.wait_for_link("up")
        sent = model.send()
        got = again.receive()
        assert got.request_id == sent, "the hold-off ended with the link"
        assert not model.cancel(sent), "this server is not known to speak v2"


def test_a_full_queue_is_told_at_once(client: Client, stand_in: StandIn) -> None:
    # The stand-in does not read while this goes on: TCP's buffers fill, then the send queue does.
    connection = client.connect(stand_in.address)
    model = connection.model("policy")
    connection.wait_for_link("up")
    big = {"x": type(f32(1))("UINT8", (4_000_000,), bytes(4_000_000))}
    begin = time.monotonic()
    for i in range(20):
        sent = model.observe(big)
        assert sent.status in (None, NOT_SENT)
        assert sent.request_id == 1 + i
    assert time.monotonic() - begin < 60, "no send waits for the server"


def test_closing_with_the_server_down_takes_under_a_second(client: Client) -> None:
    took: list[float] = []
    while len(took) < TRIES and not (took and took[-1] < WITHIN_S):
        with StandIn() as stand_in:
            connection = client.connect(stand_in.address)
            connection.wait_for_link("up")
            model = connection.model("policy")
            for _ in range(10):
                model.send({"x": f32(1)})
        took.append(time_of_closing(connection))
    assert took[-1] < WITHIN_S, took
    with pytest.raises(CallError) as caught:
        model.observe()
    assert caught.value.code == "closed"


def test_closing_ends_what_is_outstanding(connection: Connection, model: Model, stand_in: StandIn) -> None:
    model.send()
    stand_in.receive()
    connection.close()
    assert connection.link_state() == "closed"
    assert connection.counters()["link_lost"] == 1
