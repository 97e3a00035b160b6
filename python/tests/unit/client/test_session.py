"""The session, sentence by sentence of docs/protocol.md, section 6, with a clock of our own."""

from __future__ import annotations

import logging
import pickle

import numpy as np
import pytest

from inferential.client import session as session_module
from inferential.client.reply import Reply, Sent
from inferential.client.session import WAIT, Inbox, LinkState, Session
from inferential.errors import ConnectionClosedError
from inferential.types import Reason, Status
from tests.unit.client.replies import broken, reply


class Client:
    """A session with its clock and one model, driven as a shell does."""

    def __init__(self, *, up: bool = True, hold_off: bool = True) -> None:
        self.session = Session(hold_off=hold_off, request_timeout_s=30.0)
        self.now = 100.0
        self.inbox = self.session.inbox("policy")
        if up:
            self.session.link_up()

    def observe(self, inbox: Inbox | None = None, slot: str = "") -> Sent:
        return self.session.begin(inbox or self.inbox, slot, 20.0, 5, self.now)

    def receive(self, request_id: int, **fields: object) -> None:
        self.session.receive(reply(request_id, **fields), self.now)  # type: ignore[arg-type]

    def result(self) -> object:
        return self.session.result(self.inbox, self.now)

    def next(self) -> object:
        return self.session.next_reply(self.inbox, self.now)

    def expect(self, request_id: int, status: Status | int = Status.OK) -> Reply:
        found = self.next()
        assert isinstance(found, Reply)
        assert (found.request_id, found.status) == (request_id, status)
        return found


@pytest.fixture
def client() -> Client:
    return Client()


# --- 6.1 link


def test_the_link_is_connecting_until_it_is_up_once() -> None:
    session = Session()
    assert session.link is LinkState.CONNECTING
    assert not session.link_down(1.0)  # a connection that fails in its handshake was never up
    assert session.link is LinkState.CONNECTING
    assert session.link_up()
    assert not session.link_up()
    assert session.link is LinkState.UP
    assert session.link_down(2.0)
    assert session.link is LinkState.DOWN
    assert session.stats.reconnects == 0
    assert session.link_up()
    assert session.stats.reconnects == 1


def test_nothing_is_sent_before_the_link_is_up_or_after_it_went_down() -> None:
    client = Client(up=False)
    sent = client.observe()
    assert (sent.request_id, sent.status, bool(sent)) == (1, Status.NOT_SENT, False)
    assert "no server" in sent.error
    client.session.link_up()
    assert client.observe().status is None
    client.session.link_down(client.now)
    sent = client.observe()
    assert (sent.request_id, sent.status) == (3, Status.NOT_SENT)
    assert "down" in sent.error
    assert client.session.stats.not_sent == 2


def test_a_lost_link_ends_every_outstanding_request_at_once(client: Client) -> None:
    other = client.session.inbox("other")
    client.observe()
    client.observe(other)
    client.observe()
    client.session.link_down(client.now)
    client.expect(1, Status.LINK_LOST)
    lost = client.expect(3, Status.LINK_LOST)
    assert lost.local
    assert "link" in lost.error
    assert client.next() is None
    assert other.replies[0].status == Status.LINK_LOST
    assert client.session.stats.link_lost == 3


def test_a_lost_link_forgets_the_servers_version_and_hold_offs(client: Client) -> None:
    client.observe()
    client.receive(1, status=Status.REJECTED, retry_after_ms=60_000)
    assert client.session.server_version == 2
    assert client.observe().status == Status.REJECTED
    client.session.link_down(client.now)
    assert client.session.server_version is None
    client.session.link_up()
    assert client.observe().status is None


def test_requests_of_an_old_link_are_not_answered_on_a_new_one(client: Client) -> None:
    client.observe()
    client.session.link_down(client.now)
    client.session.link_up()
    client.receive(1)
    client.expect(1, Status.LINK_LOST)
    assert client.next() is None
    assert client.session.stats.late_replies == 1


def test_closing_ends_requests_and_refuses_new_ones(client: Client) -> None:
    client.observe()
    assert client.session.close(client.now)
    assert not client.session.close(client.now)
    assert client.session.link is LinkState.CLOSED
    with pytest.raises(ConnectionClosedError):
        client.observe()
    assert client.session.next_request_id == 2
    client.expect(1, Status.LINK_LOST)
    assert not client.session.link_up()
    assert not client.session.link_down(client.now)
    assert client.session.link is LinkState.CLOSED


# --- 6.2 sending


def test_request_ids_count_from_one_and_survive_a_reconnect(client: Client) -> None:
    assert [client.observe().request_id for _ in range(3)] == [1, 2, 3]
    client.session.link_down(client.now)
    assert client.observe().request_id == 4
    client.session.link_up()
    assert client.observe(client.session.inbox("other")).request_id == 5


def test_what_the_socket_does_not_take_is_not_sent_and_told_nowhere_else(client: Client) -> None:
    sent = client.session.not_sent(client.observe().request_id, "the send queue is full")
    assert not sent
    assert sent.error == "the send queue is full"
    assert client.next() is None
    stats = client.session.stats
    assert (stats.sent, stats.not_sent) == (0, 1)


def test_a_request_without_a_reply_times_out(client: Client) -> None:
    client.observe()
    client.now += 10
    client.observe()
    assert client.session.next_expiry() == 130.0
    client.session.expire(129.9)
    assert client.next() is WAIT
    client.session.expire(130.0)
    timed_out = client.expect(1, Status.TIMED_OUT)
    assert timed_out.local
    assert client.session.next_expiry() == 140.0
    client.session.expire(200.0)
    client.expect(2, Status.TIMED_OUT)
    assert client.session.next_expiry() is None
    assert client.session.stats.timed_out == 2


# --- 6.3 matching


def test_a_reply_tells_the_whole_story(client: Client) -> None:
    client.observe(slot="left")
    client.now += 0.020
    client.receive(1, metadata={"note": "hi"}, phase_shift_ms=4.0)
    client.now += 0.005
    found = client.expect(1)
    assert found.ok
    assert found.model_id == "policy"
    assert found.slot == "left"
    assert found.metadata == {"note": "hi"}
    assert (found.timing.queue_ms, found.timing.inference_ms, found.timing.server_ms) == (1.0, 2.0, 3.5)
    assert (found.timing.batch_size, found.timing.replica) == (4, "a")
    assert found.round_trip_ms == pytest.approx(20)
    assert found.age_ms == pytest.approx(25)
    assert (found.observation_timestamp_ns, found.timestamp_ns, found.response_id) == (5, 1, "r1")
    assert found.step_ms == 20.0
    assert found.phase_shift_ms == 4.0
    assert not found.local
    np.testing.assert_array_equal(found["actions"], [1, 1])
    assert client.inbox.take_phase_shift_ms() == 4.0
    assert client.inbox.take_phase_shift_ms() == 0.0


def test_a_reply_goes_to_the_model_that_asked(client: Client) -> None:
    other = client.session.inbox("other")
    client.observe()
    client.observe(other)
    client.receive(2, model="other")
    assert client.next() is WAIT
    found = client.session.next_reply(other, client.now)
    assert isinstance(found, Reply)
    assert found.request_id == 2


@pytest.mark.parametrize("request_id", [1, 99])
def test_a_reply_nobody_waits_for_is_late(client: Client, request_id: int) -> None:
    client.observe()
    client.session.abandon(client.inbox)
    client.receive(request_id)
    assert client.next() is None
    assert client.session.stats.late_replies == 1


def test_a_second_reply_to_one_request_is_late(client: Client) -> None:
    client.observe()
    client.receive(1)
    client.receive(1)
    client.expect(1)
    assert client.next() is None
    assert client.session.stats.late_replies == 1


def test_a_reply_that_does_not_decode_ends_its_request(client: Client) -> None:
    client.observe()
    client.session.receive(broken(1), client.now)
    found = client.expect(1, Status.MODEL_ERROR)
    assert "actions" in found.error
    assert found.local
    stats = client.session.stats
    assert (stats.not_ok, stats.bad_replies) == (1, 0)


def test_a_reply_without_a_payload_frame_ends_its_request(client: Client) -> None:
    client.observe()
    client.session.receive(reply(1, tensors={})[:2], client.now)
    assert "no payload frame" in client.expect(1, Status.MODEL_ERROR).error
    assert (client.session.stats.not_ok, client.session.stats.bad_replies) == (1, 0)


@pytest.mark.parametrize(
    "frames",
    [[], [b""], [b"", b""], [b"", b"\xff\xff", b""], [b"x", *reply(1)[1:]], broken(77)],
    ids=["nothing", "one frame", "two frames", "no protobuf", "no empty frame", "unknown request"],
)
def test_what_cannot_be_read_is_counted_and_ends_nothing(client: Client, frames: list[bytes]) -> None:
    client.observe()
    client.session.receive(frames, client.now)
    assert client.session.stats.bad_replies == 1
    assert client.next() is WAIT


@pytest.mark.parametrize("status", Status)
def test_status_and_reason_are_members_that_have_a_name(client: Client, status: Status) -> None:
    client.observe()
    client.receive(1, status=status, reason=Reason.QUEUE_FULL)
    found = client.expect(1, status)
    assert found.status is status
    assert found.reason is (Reason.NONE if found.ok else Reason.QUEUE_FULL)
    client.observe()
    client.receive(2, status=status)
    client.result()
    assert client.inbox.last_status is status


def test_unknown_status_and_reason_are_members_and_not_ok(client: Client) -> None:
    client.observe()
    client.receive(1, status=77, reason=88)
    found = client.expect(1, 77)
    assert not found.ok
    assert found.reason == 88
    assert isinstance(found.status, Status)
    assert (found.status.name, found.reason.name) == ("UNKNOWN_77", "UNKNOWN_88")
    assert pickle.loads(pickle.dumps(found.status)) == 77
    assert client.session.stats.not_ok == 1
    client.observe()
    client.receive(2, status=77)
    assert client.result() is None
    assert client.inbox.last_status == 77


# --- 6.3, 6.6 a v1 server


def test_replies_of_a_v1_server_end_the_oldest_request_of_their_model(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    other = client.session.inbox("other")
    client.observe(other)
    client.observe()
    client.observe()
    assert client.session.server_version is None
    with caplog.at_level(logging.WARNING, "inferential.client"):
        client.receive(0)
        client.receive(0)
    assert client.session.server_version == 1
    assert not client.session.several_frames
    first = client.expect(2)
    assert first.observation_timestamp_ns == 5  # a v1 server echoes none
    client.expect(3)
    client.receive(0)  # nothing outstanding
    client.receive(0, model="never asked")
    assert client.session.stats.late_replies == 2
    assert len(other.outstanding) == 1
    assert len([r for r in caplog.records if "v1" in r.message]) == 1  # once per connection


def test_a_v1_server_is_neither_asked_to_cancel_nor_pinged(client: Client) -> None:
    client.observe()
    client.receive(0)
    client.observe()
    assert not client.session.may_cancel(client.inbox, 2)
    assert client.session.begin_ping(client.now) is None


def test_a_pong_that_does_not_decode_ends_its_ping_without_an_answer(client: Client) -> None:
    ping = client.session.begin_ping(client.now)
    assert ping is not None
    client.session.receive(broken(ping.request_id), client.now)
    assert ping.ended
    assert ping.result is None
    stats = client.session.stats
    assert (stats.bad_replies, stats.late_replies) == (1, 0)


def test_several_frames_only_once_the_server_has_echoed_an_id(client: Client) -> None:
    assert not client.session.several_frames
    client.observe()
    client.receive(99)  # not an id of ours: proves nothing
    assert not client.session.several_frames
    client.receive(1)
    assert client.session.several_frames


# --- cancel and ping


def test_cancel_only_what_is_outstanding_at_a_server_known_to_be_v2(client: Client) -> None:
    client.observe()
    assert not client.session.may_cancel(client.inbox, 1)  # not known yet
    client.receive(1)
    assert not client.session.may_cancel(client.inbox, 1)  # answered
    client.observe()
    assert client.session.may_cancel(client.inbox, 2)
    assert not client.session.may_cancel(client.session.inbox("other"), 2)  # another model's
    client.session.link_down(client.now)
    assert not client.session.may_cancel(client.inbox, 2)


def test_the_answer_to_a_ping_goes_to_ping_alone(client: Client) -> None:
    ping = client.session.begin_ping(client.now)
    assert ping is not None
    client.observe()
    client.now += 0.002
    client.receive(
        ping.request_id,
        model="",
        metadata={"model:a": "ready", "model:b": "not ready", "server": "2.0.0", "protocol": "2"},
    )
    assert ping.ended
    assert ping.result is not None
    assert ping.result.round_trip_ms == pytest.approx(2.0)
    assert dict(ping.result.models) == {"a": True, "b": False}
    assert (ping.result.server, ping.result.protocol) == ("2.0.0", 2)
    assert client.next() is WAIT
    stats = client.session.stats
    assert (stats.sent, stats.ok, stats.late_replies) == (1, 0, 0)


def test_a_ping_ends_with_the_link_and_is_late_when_nobody_waits(client: Client) -> None:
    ping = client.session.begin_ping(client.now)
    assert ping is not None
    client.session.link_down(client.now)
    assert ping.ended
    assert ping.result is None
    assert client.session.begin_ping(client.now) is None  # the link is down
    client.session.link_up()
    ping = client.session.begin_ping(client.now)
    assert ping is not None
    client.session.end_ping(ping)
    client.receive(ping.request_id, model="")
    assert client.session.stats.late_replies == 1


def test_a_ping_answered_otherwise_has_no_result(client: Client) -> None:
    ping = client.session.begin_ping(client.now)
    assert ping is not None
    client.receive(ping.request_id, model="", status=Status.SHUTTING_DOWN)
    assert ping.ended
    assert ping.result is None


# --- 6.4 next_reply


def test_next_reply_gives_every_outcome_in_order_of_arrival(client: Client) -> None:
    for _ in range(4):
        client.observe()
    client.receive(3, status=Status.EXPIRED, error="too late")
    client.receive(1)
    client.receive(2, status=Status.SUPERSEDED)
    assert client.expect(3, Status.EXPIRED).error == "too late"
    client.expect(1)
    client.expect(2, Status.SUPERSEDED)
    assert client.next() is WAIT
    client.receive(4)
    client.expect(4)
    assert client.next() is None


def test_a_full_inbox_drops_the_oldest(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "INBOX_REPLIES", 3)
    for i in range(1, 6):
        client.observe()
        client.receive(i)
    assert client.session.stats.replies_dropped == 2
    for i in (3, 4, 5):
        client.expect(i)
    assert client.next() is None


def test_an_inbox_holds_65536_replies() -> None:
    assert session_module.INBOX_REPLIES == 65_536


# --- 6.4 get_result


def test_get_result_gives_ok_replies_that_are_newer(client: Client) -> None:
    for _ in range(3):
        client.observe()
    client.receive(2)
    client.receive(1)
    client.receive(3)
    first = client.result()
    assert isinstance(first, Reply)
    assert first.request_id == 2
    third = client.result()
    assert isinstance(third, Reply)
    assert third.request_id == 3
    assert client.session.stats.late_replies == 1
    assert client.inbox.last_status == Status.OK
    assert client.result() is None
    assert client.inbox.last_status is None, "nothing was outstanding"


def test_last_status_is_that_of_the_last_call_alone(client: Client) -> None:
    client.observe()
    client.receive(1, status=Status.MODEL_ERROR, error="it raised")
    assert client.result() is None
    assert (client.inbox.last_status, client.inbox.last_error) == (Status.MODEL_ERROR, "it raised")
    assert client.result() is None
    assert (client.inbox.last_status, client.inbox.last_error) == (None, "nothing was outstanding")
    client.observe()
    client.session.abandon(client.inbox)
    assert client.inbox.last_status == Status.TIMED_OUT
    client.observe()
    assert client.result() is WAIT
    assert client.inbox.last_status is None


def test_slots_whose_names_keep_changing_are_forgotten(client: Client) -> None:
    client.observe(slot="kept")
    client.observe(slot="kept")
    client.receive(2)
    assert client.result() is not None
    for i in range(5000):
        sent = client.observe(slot=f"slot {i}")
        client.receive(sent.request_id)
        assert client.result() is not None
    assert len(client.inbox.delivered) < 1000
    client.receive(1)  # its slot was remembered, as it was outstanding
    assert client.result() is None
    assert client.session.stats.late_replies == 1


@pytest.mark.parametrize("hint", [float("nan"), float("inf"), float("-inf"), -1.0])
def test_a_phase_shift_that_is_none_is_not_given_out(client: Client, hint: float) -> None:
    client.observe()
    client.receive(1, phase_shift_ms=hint)
    assert client.inbox.take_phase_shift_ms() == 0


def test_get_result_counts_what_was_given_out_per_slot(client: Client) -> None:
    client.observe(slot="left")
    client.observe(slot="right")
    client.receive(2)
    client.receive(1)
    given = [client.result(), client.result()]
    assert [(r.request_id, r.slot) for r in given if isinstance(r, Reply)] == [(2, "right"), (1, "left")]
    assert client.session.stats.late_replies == 0


def test_next_reply_does_not_count_as_given_out_by_get_result(client: Client) -> None:
    client.observe()
    client.observe()
    client.receive(2)
    client.expect(2)
    client.receive(1)
    found = client.result()
    assert isinstance(found, Reply)
    assert found.request_id == 1


def test_a_refusal_ends_get_result_where_nothing_newer_can_come(client: Client) -> None:
    client.observe()
    client.receive(1, status=Status.MODEL_ERROR, error="it raised")
    assert client.result() is None
    assert client.inbox.last_status == Status.MODEL_ERROR
    assert client.inbox.last_error == "it raised"


def test_a_refusal_is_passed_over_while_a_newer_request_is_outstanding(client: Client) -> None:
    client.observe()
    client.observe()
    client.receive(1, status=Status.EXPIRED)
    assert client.result() is WAIT
    client.receive(2)
    found = client.result()
    assert isinstance(found, Reply)
    assert found.request_id == 2


def test_a_refusal_is_passed_over_where_a_newer_reply_waits(client: Client) -> None:
    client.observe()
    client.observe()
    client.receive(1, status=Status.EXPIRED)
    client.receive(2)
    found = client.result()
    assert isinstance(found, Reply)
    assert found.request_id == 2


def test_a_newer_refusal_ends_get_result_while_an_older_request_is_outstanding(client: Client) -> None:
    client.observe()
    client.observe()
    client.receive(2, status=Status.EXPIRED)
    assert client.result() is None
    assert client.inbox.last_status == Status.EXPIRED
    assert client.result() is WAIT  # the older one may still be answered


def test_a_lost_link_ends_get_result(client: Client) -> None:
    client.observe()
    client.observe()
    client.session.link_down(client.now)
    assert client.result() is None
    assert client.inbox.last_status == Status.LINK_LOST
    assert client.result() is None


def test_with_nothing_outstanding_there_is_nothing_to_wait_for(client: Client) -> None:
    assert client.result() is None
    assert client.next() is None


def test_abandoned_requests_end_timed_out_and_their_replies_are_late(client: Client) -> None:
    other = client.session.inbox("other")
    client.observe()
    client.observe(other)
    client.observe()
    assert client.result() is WAIT
    client.session.abandon(client.inbox)
    assert client.session.stats.timed_out == 2
    assert client.inbox.last_status == Status.TIMED_OUT
    assert client.next() is None  # told by get_result's returning none
    assert len(other.outstanding) == 1
    client.receive(1)
    client.receive(3)
    assert client.session.stats.late_replies == 2
    assert client.result() is None


def test_observations_after_an_abandoned_one_are_answered(client: Client) -> None:
    client.observe()
    client.session.abandon(client.inbox)
    client.observe()
    client.receive(1)
    client.receive(2)
    found = client.result()
    assert isinstance(found, Reply)
    assert found.request_id == 2


# --- 6.5 hold-off


@pytest.mark.parametrize("status", [Status.REJECTED, Status.UNAVAILABLE])
def test_while_the_server_asks_for_a_pause_requests_are_answered_here(client: Client, status: Status) -> None:
    client.observe()
    client.receive(1, status=status, reason=Reason.QUEUE_FULL, error="full", retry_after_ms=50)
    client.expect(1, status)
    client.now += 0.030
    sent = client.observe(slot="left")
    assert sent
    assert (sent.request_id, sent.status, sent.error) == (2, status, "full")
    held = client.expect(2, status)
    assert held.local
    assert held.reason == Reason.QUEUE_FULL
    assert held.slot == "left"
    assert held.retry_after_ms == pytest.approx(20)
    assert client.session.stats.held_off == 1
    client.now += 0.0201
    assert client.observe().status is None


def test_a_hold_off_concerns_its_own_model_only(client: Client) -> None:
    client.observe()
    client.receive(1, status=Status.REJECTED, retry_after_ms=50)
    assert client.observe(client.session.inbox("other")).status is None


@pytest.mark.parametrize(("status", "retry_after_ms"), [(Status.REJECTED, 0.0), (Status.EXPIRED, 50.0)])
def test_other_replies_hold_nothing_off(client: Client, status: Status, retry_after_ms: float) -> None:
    client.observe()
    client.receive(1, status=status, retry_after_ms=retry_after_ms)
    assert client.observe().status is None


def test_hold_off_can_be_turned_off() -> None:
    client = Client(hold_off=False)
    client.observe()
    client.receive(1, status=Status.REJECTED, retry_after_ms=50)
    assert client.observe().status is None


def test_an_endless_pause_ends(client: Client) -> None:
    client.observe()
    client.receive(1, status=Status.REJECTED, retry_after_ms=float("inf"))
    assert client.observe().status == Status.REJECTED
    client.now += 24 * 3600
    assert client.observe().status is None


def test_a_held_off_answer_does_not_prolong_the_pause(client: Client) -> None:
    client.observe()
    client.receive(1, status=Status.REJECTED, retry_after_ms=50)
    for _ in range(10):
        client.now += 0.004
        assert client.observe().status == Status.REJECTED
    client.now += 0.011
    assert client.observe().status is None


def test_what_was_not_sent_is_told_by_the_wait_for_it(client: Client) -> None:
    session = Session(server="tcp://robot:5555")
    inbox = session.inbox("m")
    assert session.result(inbox, 0.0) is None
    assert inbox.last_error == "nothing was outstanding"
    sent = session.begin(inbox, "", 0.0, 1, 0.0)
    assert sent.error == "no server has been reached at tcp://robot:5555 yet"
    assert session.result(inbox, 0.0) is None
    assert (inbox.last_status, inbox.last_error) == (None, sent.error)
    session.link_up()
    session.begin(inbox, "", 0.0, 1, 0.0)
    session.link_down(0.0)
    assert session.result(inbox, 0.0) is None
    assert inbox.last_status == Status.LINK_LOST
    assert session.result(inbox, 0.0) is None
    assert inbox.last_error == "nothing was outstanding"
