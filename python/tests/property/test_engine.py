"""The engine under random inputs on a fake clock."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from inferential.config.schema import InferentialConfig
from inferential.engine import Engine
from inferential.scheduling.request import Call, CallError, CallResult, ItemError, Outcome, Replica, Request
from inferential.simulator import with_settings
from inferential.types import Body, Observation, Status

MODELS = ["a", "b", "c"]
STRATEGIES = ["deadline_aware", "model_deadline", "batch_optimized", "priority_tiered", "round_robin"]
BODY = Body(b"", ())


class Silent:
    def record(self, name, value, model=None, client=None):
        assert value == value, "no NaN"


configs = st.fixed_dictionaries(
    {
        "scheduling.strategy": st.sampled_from(STRATEGIES),
        "scheduling.early_refusal": st.sampled_from(["off", "predictive"]),
        "scheduling.batch_window": st.sampled_from(["off", "deadline"]),
        "scheduling.phase_shift": st.sampled_from(["off", "spread"]),
        "scheduling.pipeline_dispatch.enabled": st.booleans(),
        "scheduling.max_concurrent_dispatch": st.integers(1, 3),
        "scheduling.overrun_ms": st.sampled_from([0.0, 30.0, 1000.0]),
        "queue.max_requests_per_model": st.sampled_from([1000, 6]),
        "queue.max_bytes": st.sampled_from([10_000, 1500]),
        "queue.overflow": st.sampled_from(["drop_oldest", "reject_newest"]),
        "dispatch.max_retries": st.integers(0, 2),
        "dispatch.call_timeout_ms": st.sampled_from([30_000.0, 60.0]),
        "models.default": st.fixed_dictionaries(
            {
                "max_inflight": st.integers(1, 3),
                "affinity": st.sampled_from(["none", "client"]),
                "latest_only": st.sampled_from([False, False, True]),
                "device": st.sampled_from([None, "gpu"]),
                "call_ms": st.sampled_from([0.0, 10.0]),
                "item_ms": st.sampled_from([0.0, 0.5]),
            }
        ),
    }
)


class EngineMachine(RuleBasedStateMachine):
    """Clients, replicas and time do what they like; the engine keeps its promises."""

    @initialize(changes=configs, warm=st.booleans())
    def start(self, changes, warm):
        self.config = with_settings(InferentialConfig(), changes)
        self.engine = Engine(self.config, MODELS, Silent())
        self.shadow = Engine(self.config, MODELS, Silent())  # fed the same, must decide the same
        self.now = 100.0
        self.accepted: dict[int, Request] = {}
        self.duplicates: set[int] = set()
        self.outcomes: dict[int, Outcome] = {}
        self.running: dict[int, Call] = {}
        self.up: dict[str, Replica] = {}
        self.draining: set[str] = set()
        self.number = 0
        for model in MODELS:
            for number in range(2):
                self.replica_up(model, number, slots=1, batch=4)
        if warm:
            for _ in range(10):
                for model in MODELS:
                    self.submit(model, 0, 200.0, 1, 0.0, None, False, False, 10, False, 3, False)
                self.a_busy_while(20)
                self.time_passes(40.0)

    def both(self, act):
        """The same input for both engines; then what they say."""
        for engine, mine in ((self.engine, True), (self.shadow, False)):
            act(engine, mine)
        calls, outcomes, abandoned = self.engine.take_calls(), self.engine.take_outcomes(), self.engine.take_abandoned()
        for request in (o.request for o in outcomes):
            assert request.sequence not in self.outcomes, "two outcomes"
        for outcome in outcomes:
            self.outcomes[outcome.request.sequence] = outcome
            assert outcome.request.done
            assert not outcome.request.queued
            if outcome.phase_shift_ms:
                stream = outcome.request.stream
                assert self.config.scheduling.phase_shift == "spread"
                assert not outcome.request.observation.is_v1
                assert 0.0 < outcome.phase_shift_ms < 1.06e3 * stream.cadence.interval_s
        self.check_calls(calls)
        for call in abandoned:
            assert all(r.done or r.call is not call for r in call.requests)
        twins = self.shadow.take_calls(), self.shadow.take_outcomes(), self.shadow.take_abandoned()
        assert [(c.id, c.replica.id, [r.sequence for r in c.requests]) for c in calls] == [
            (c.id, c.replica.id, [r.sequence for r in c.requests]) for c in twins[0]
        ]
        assert [
            (o.request.sequence, o.status, o.reason, o.error, o.retry_after_ms, o.phase_shift_ms) for o in outcomes
        ] == [(o.request.sequence, o.status, o.reason, o.error, o.retry_after_ms, o.phase_shift_ms) for o in twins[1]]
        assert [c.id for c in abandoned] == [c.id for c in twins[2]]
        assert self.engine.next_wakeup() == self.shadow.next_wakeup()

    def check_calls(self, calls):
        predictive = self.config.scheduling.early_refusal == "predictive"
        for call in calls:
            self.running[call.id] = call
            assert call.replica.id in self.up, "a call to a replica that is gone"
            assert call.replica.id not in self.draining
            assert 1 <= len(call.requests) <= call.replica.max_batch_size
            service = self.engine._models[call.model].service
            for request in call.requests:
                assert not request.done, "finished work reaches a model"
                assert request.expiry > self.now, "expired work reaches a model"
                assert request.observation.model_id == call.model
                if predictive and service.known and not request.attempt:
                    assert call.ends_at <= request.expiry + 1e-9, "work is started that is predicted to miss"
                if not request.attempt:
                    assert not any(
                        (waiting.key, waiting.sequence) < (request.key, request.sequence)
                        for waiting in self.engine._models[call.model].queue
                        if waiting.stream is request.stream
                        and waiting.observation.priority == request.observation.priority
                        and not waiting.attempt
                    ), "a client's more urgent request was left behind"

    @rule(
        model=st.sampled_from([*MODELS * 4, "nonsense"]),
        client=st.integers(0, 3),
        budget=st.sampled_from([0.0, 12.0, 30.0, 50.0, 200.0]),
        priority=st.integers(0, 2),
        urgency=st.sampled_from([0.0, 1.0]),
        steps=st.sampled_from([None, 0, 5]),
        latest=st.sampled_from([False, False, False, True]),
        v1=st.sampled_from([False, False, False, True]),
        size=st.sampled_from([10, 100]),
        duplicate=st.sampled_from([False] * 5 + [True]),
        count=st.integers(1, 12),
        withdrawn=st.sampled_from([False] * 4 + [True]),
    )
    def submit(self, model, client, budget, priority, urgency, steps, latest, v1, size, duplicate, count, withdrawn):
        requests = []
        for _ in range(count):
            self.number += 1
            request_id = 0 if v1 else self.number
            if duplicate and not v1:
                request_id = max(1, self.number - 1)
            observation = Observation(
                f"client{client}", "t", model, request_id, 0, urgency, priority, steps, 0.0, budget, latest_only=latest
            )
            requests.append((b"%d" % client, observation))
        connection = requests[0][0]

        def act(engine, mine):
            for key, observation in requests:
                outstanding = engine._connections.get(key, {})
                is_duplicate = observation.request_id in outstanding if observation.request_id else False
                request = Request(key, observation, (b"",), size, self.now)
                engine.submit(request, self.now)
                if mine and not is_duplicate:
                    self.accepted[request.sequence] = request
            if withdrawn:  # in the same burst, before the engine is asked what it has decided
                engine.cancel(connection, requests[0][1].request_id, self.now)

        assert connection
        self.both(act)

    @rule(
        model=st.sampled_from(MODELS), number=st.integers(0, 2), slots=st.integers(1, 2), batch=st.sampled_from([1, 4])
    )
    def replica_up(self, model, number, slots, batch):
        replica = Replica(f"{model}{number}", model, slots, batch, "direct")
        self.up[replica.id] = replica
        self.draining.discard(replica.id)
        self.both(lambda engine, _: engine.replica_up(replica, self.now))

    @precondition(lambda self: len(self.up) > 3)
    @rule(data=st.data(), drained=st.booleans(), rarely=st.integers(0, 3))
    def replica_down(self, data, drained, rarely):
        if rarely:
            return
        replica = self.up[data.draw(st.sampled_from(sorted(self.up)))]
        if drained:
            self.draining.add(replica.id)
        else:
            del self.up[replica.id]
            self.draining.discard(replica.id)
            self.running = {i: c for i, c in self.running.items() if c.replica.id != replica.id}
        self.both(lambda engine, _: engine.replica_down(replica.model, replica.id, "test", self.now, drained=drained))

    @precondition(lambda self: self.running)
    @rule(
        data=st.data(), after_ms=st.sampled_from([0.0, 3.0, 12.0]), what=st.sampled_from(["ok", "item", "fail", "hard"])
    )
    def answer(self, data, after_ms, what):
        self.time_passes(after_ms)
        if not self.running:
            return
        call = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))

        def act(engine, _):
            if what in ("fail", "hard"):
                engine.fail(call.id, CallError("boom", retryable=what == "fail"), self.now)
            else:
                items = [BODY] * len(call.requests)
                if what == "item":
                    items[0] = ItemError("bad", retryable=True)
                engine.complete(call.id, CallResult(items, after_ms / 1e3), self.now)

        self.both(act)

    @rule(rounds=st.integers(1, 8), ahead_ms=st.sampled_from([None, -20.0, -0.5, 0.0, 0.3, 2.0]))
    def a_busy_while(self, rounds, ahead_ms=None):
        """Everything that runs is answered when it was predicted to end, again and again; the engine learns."""
        for _ in range(rounds):
            if not self.running:
                return
            call = self.running.pop(min(self.running))
            took_ms = 10.0 + 0.5 * len(call.requests)
            self.time_passes(max(0.0, (call.begins_at - self.now) * 1e3 + took_ms))
            ahead_s = None if ahead_ms is None else ahead_ms / 1e3
            result = CallResult([BODY] * len(call.requests), took_ms / 1e3, ahead_s)
            self.both(lambda engine, _, call=call, result=result: engine.complete(call.id, result, self.now))

    @rule(ms=st.sampled_from([0.1, 1.0, 3.0, 7.0, 15.0, 40.0, 2500.0]))
    def time_passes(self, ms):
        until = self.now + ms / 1e3
        for _ in range(500):
            wake = self.engine.next_wakeup()
            if wake is None or wake > until:
                break
            self.now = max(self.now, wake)
            self.both(lambda engine, _: engine.advance(self.now))
        else:
            raise AssertionError("woken without end")
        self.now = until
        self.both(lambda engine, _: engine.advance(self.now))

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def cancel(self, data):
        request = self.accepted[data.draw(st.sampled_from(sorted(self.accepted)))]
        number = request.observation.request_id
        self.both(lambda engine, _: engine.cancel(request.connection, number, self.now))

    @rule(client=st.integers(0, 12))
    def disconnect(self, client):
        self.both(lambda engine, _: engine.disconnect(b"%d" % client, self.now))

    @rule(name=st.sampled_from(STRATEGIES))
    def use_scheduler(self, name):
        self.both(lambda engine, _: engine.use_scheduler(name, self.now))

    @invariant()
    def every_request_is_queued_running_or_over(self):
        if not hasattr(self, "engine"):
            return
        open_ = [r for s, r in self.accepted.items() if s not in self.outcomes]
        assert len(open_) == self.engine.pending
        for request in open_:
            assert request.queued != (request.call is not None)
            if request.queued:
                assert request.expiry > self.now, "an expired request still waits"

    @invariant()
    def books_balance(self):
        if not hasattr(self, "engine"):
            return
        engine = self.engine
        for name, model in engine._models.items():
            waiting = [
                r
                for s, r in self.accepted.items()
                if s not in self.outcomes and r.queued and r.observation.model_id == name
            ]
            assert len(model.queue) == len(waiting)
            assert model.queue.size_bytes == sum(r.size_bytes for r in waiting)
            assert sum(s.queued for s in model.streams._by_client.values()) == len(waiting)
            assert model.clients_waiting == len({r.observation.client_id for r in waiting})
            assert (name in engine._room.models) == bool(waiting)
            for replica in model.replicas:
                staged = sum(c.staged for c in replica.calls.values())
                assert replica.running + staged == len(replica.calls)
                assert staged <= 1
                assert (replica.staged is not None) == bool(staged)
            assert 0 <= model.slots.running <= model.slots.limit
            assert 0 <= model.device.running <= model.device.limit
        holders = [engine._models[call.model] for call in engine._calls if not call.staged]
        for model in engine._models.values():
            assert model.slots.running == sum(m.slots is model.slots for m in holders)
            assert model.device.running == sum(m.device is model.device for m in holders)

    def teardown(self):
        if not hasattr(self, "engine"):
            return
        self.both(lambda engine, _: engine.abort(self.now))
        assert self.engine.pending == 0
        assert set(self.outcomes) == set(self.accepted), "every request ends exactly once"
        for call in list(self.running.values()):
            self.both(
                lambda engine, _, call=call: engine.complete(
                    call.id, CallResult([BODY] * len(call.requests), 0.0), self.now
                )
            )
        assert all(o.status is not Status.OK or o.body is not None for o in self.outcomes.values())


def test_engine():
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(
        EngineMachine, settings=settings(stateful_step_count=50, deadline=None, suppress_health_check=slow)
    )
