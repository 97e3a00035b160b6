"""Whatever the order of calls, replies, link events and time: every request has exactly one local outcome."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from inferential.client.reply import Reply
from inferential.client.session import WAIT, Inbox, LinkState, Ping, Session
from inferential.types import Status
from tests.unit.client.replies import broken, reply

MODELS = ("a", "b")
SLOTS = ("", "left")
STATUSES = (
    Status.OK,
    Status.OK,
    Status.OK,
    Status.OK,
    Status.REJECTED,
    Status.UNAVAILABLE,
    Status.EXPIRED,
    Status.CANCELLED,
    77,
)
TIMEOUT_S = 30.0


class ClientSession(RuleBasedStateMachine):
    """The session beside a model of it that is too simple to be wrong: where each request is."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(request_timeout_s=TIMEOUT_S)
        self.now = 1.0
        self.session.link_up()
        self.started = 0  # calls of observe
        self.pings: list[Ping] = []
        self.open: dict[int, str] = {}  # request -> model: sent, and no outcome heard of
        self.refused: set[int] = set()  # NOT_SENT
        self.given: dict[int, Reply] = {}  # by next_reply or get_result
        self.result_ids: dict[tuple[str, str], int] = {}  # (model, slot) -> last given by get_result
        self.abandoned: set[int] = set()
        self.passed_over: set[int] = set()  # get_result dropped it, as it may

    def inbox(self, model: str) -> Inbox:
        return self.session.inbox(model)

    # --- what a program does

    @precondition(lambda self: self.session.link is not LinkState.CLOSED)
    @rule(model=st.sampled_from(MODELS), slot=st.sampled_from(SLOTS), room=st.sampled_from((True, True, True, False)))
    def observe(self, model: str, slot: str, room: bool) -> None:
        expected_id = self.session.next_request_id
        up = self.session.link is LinkState.UP
        sent = self.session.begin(self.inbox(model), slot, 20.0, 1, self.now)
        self.started += 1
        assert sent.request_id == expected_id
        if sent.status is None:
            assert up
            if not room:
                sent = self.session.not_sent(sent.request_id, "full")
        if sent:
            self.open[sent.request_id] = model
        else:
            assert sent.status == Status.NOT_SENT
            self.refused.add(sent.request_id)

    @rule(model=st.sampled_from(MODELS))
    def next_reply(self, model: str) -> None:
        verdict = self.session.next_reply(self.inbox(model), self.now)
        if isinstance(verdict, Reply):
            self.give(verdict, model)
        else:
            assert (verdict is WAIT) == bool(self.inbox(model).outstanding)

    @rule(model=st.sampled_from(MODELS), timeout=st.sampled_from((False, False, True)))
    def get_result(self, model: str, timeout: bool) -> None:
        inbox = self.inbox(model)
        before = {r.request_id: r for r in inbox.replies}
        newest_outstanding = max(inbox.outstanding, default=0)
        verdict = self.session.result(inbox, self.now)
        after = {r.request_id for r in inbox.replies}
        gone = {i: r for i, r in before.items() if i not in after}
        if isinstance(verdict, Reply):
            assert verdict.status == Status.OK
            key = (model, verdict.slot)
            assert verdict.request_id > self.result_ids.get(key, 0), "something stale was given out"
            self.result_ids[key] = verdict.request_id
            gone.pop(verdict.request_id)
            self.give(verdict, model)
        for request_id, found in gone.items():
            if found.status == Status.OK:
                assert request_id <= self.result_ids.get((model, found.slot), 0)
            assert self.open.pop(request_id) == model
            self.passed_over.add(request_id)
        if verdict is None and gone:
            last = max(gone)
            assert newest_outstanding < last or not inbox.outstanding
        if verdict is WAIT:
            assert inbox.outstanding
            if timeout:
                self.abandoned |= inbox.outstanding.keys()
                for request_id in inbox.outstanding:
                    assert self.open.pop(request_id) == model
                self.session.abandon(inbox)
                assert not inbox.outstanding

    @rule()
    def ping(self) -> None:
        if self.session.link is not LinkState.CLOSED:
            ping = self.session.begin_ping(self.now)
            if ping is not None:
                self.pings.append(ping)

    # --- what a server and a network do

    @precondition(lambda self: any(self.inbox(model).outstanding for model in MODELS))
    @rule(data=st.data(), status=st.sampled_from(STATUSES), retry=st.sampled_from((0.0, 0.0, 5.0, 50.0)))
    def answer(self, data: st.DataObject, status: Any, retry: float) -> None:
        outstanding = [(i, model) for model in MODELS for i in self.inbox(model).outstanding]
        request_id, model = data.draw(st.sampled_from(outstanding), "request")
        self.session.receive(reply(request_id, model=model, status=status, retry_after_ms=retry), self.now)

    @rule(model=st.sampled_from(MODELS))
    def answer_newest_and_take_it(self, model: str) -> None:
        outstanding = list(self.inbox(model).outstanding)
        if outstanding:
            self.session.receive(reply(outstanding[-1], model=model), self.now)
            self.get_result(model, timeout=False)

    @rule(data=st.data(), model=st.sampled_from(MODELS), bad=st.booleans())
    def answer_any(self, data: st.DataObject, model: str, bad: bool) -> None:
        """Any id that was ever used, outstanding or not, or never; whatever model it names."""
        request_id = data.draw(st.integers(1, self.session.next_request_id + 1), "request_id")
        self.session.receive(broken(request_id) if bad else reply(request_id, model=model), self.now)

    @rule(model=st.sampled_from((*MODELS, "c")))
    def answer_as_v1(self, model: str) -> None:
        self.session.receive(reply(0, model=model), self.now)

    @rule(junk=st.lists(st.binary(max_size=8), max_size=4))
    def receive_junk(self, junk: list[bytes]) -> None:
        self.session.receive(junk, self.now)

    @rule(up=st.sampled_from((True, True, False)))
    def link_event(self, up: bool) -> None:
        changed = self.session.link_up() if up else self.session.link_down(self.now)
        if changed and not up:
            assert not any(self.inbox(model).outstanding for model in MODELS)
            assert all(ping.ended for ping in self.pings)

    @rule(seconds=st.sampled_from((0.001, 0.001, 0.02, 0.02, 1.0, TIMEOUT_S)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.session.expire(self.now)
        expiry = self.session.next_expiry()
        assert expiry is None or expiry > self.now

    @precondition(lambda self: self.started > 20)
    @rule()
    def close(self) -> None:
        self.session.close(self.now)
        assert not any(self.inbox(model).outstanding for model in MODELS)

    # --- what must always hold

    def give(self, found: Reply, model: str) -> None:
        assert found.model_id == model
        assert found.request_id not in self.given, "given out twice"
        assert self.open.pop(found.request_id) == model, "of a request that was never open, or of another model"
        self.given[found.request_id] = found

    @invariant()
    def every_request_is_in_one_place(self) -> None:
        waiting = [r.request_id for model in MODELS for r in self.inbox(model).replies]
        outstanding = [i for model in MODELS for i in self.inbox(model).outstanding]
        assert sorted(waiting + outstanding) == sorted(self.open)
        ended = [*self.given, *self.refused, *self.abandoned, *self.passed_over]
        assert len(ended) == len(set(ended))
        assert len(ended) + len(self.open) == self.started

    @invariant()
    def the_counters_add_up(self) -> None:
        s = self.session.stats
        outstanding = sum(len(self.inbox(model).outstanding) for model in MODELS)
        assert s.sent + s.not_sent + s.held_off == self.started
        assert s.ok + s.not_ok + s.timed_out + s.link_lost + outstanding == s.sent
        assert s.not_sent == len(self.refused)


ClientSession.TestCase.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestClientSession = ClientSession.TestCase
