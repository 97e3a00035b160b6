"""A live server is recorded; the recording replays to the same decisions, and damage to it is told."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferential import AsyncConnection, Server, recording
from inferential._proto.inferential.recording.v1 import recording_pb2 as pb
from inferential.config.schema import InferentialConfig
from inferential.engine import Engine
from inferential.errors import ConfigError, InferentialError
from inferential.metrics.collector import MetricsCollector
from inferential.recording import Recorder, RecordingEngine, RecordingError, open_recording, read_recording
from inferential.replay import replay
from inferential.scheduling.request import Call, CallResult, Replica, Request
from inferential.simulator import Scenario, Variant, simulate
from inferential.types import Body, Observation
from inferential.wire import encode_observation


class Policy:
    """Doubles; every fifth call fails, so that failures are recorded too."""

    def __init__(self) -> None:
        self.calls = 0

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        if self.calls % 5 == 0:
            raise RuntimeError("every fifth call fails")
        return {"actions": obs["state"] * 2}


async def _drive(endpoint: str, client: int, requests: int) -> int:
    answered = 0
    # Without hold-off every request reaches the server, whatever it answers.
    async with AsyncConnection(
        server=endpoint, client_id=f"robot-{client}", client_type="test", hold_off=False
    ) as connection:
        model = connection.model("policy", latency_budget_ms=500.0)
        for n in range(requests):
            for _ in range(3):
                await model.observe(state=np.full(7, n, np.float32), urgency=0.5)
            for _ in range(3):
                reply = await model.next_reply(timeout_ms=20_000)
                answered += reply is not None
    return answered


def _record(path: Path, *, payloads: bool = False, clients: int = 4, requests: int = 20) -> int:
    config = InferentialConfig()
    config.transport.bind = "tcp://127.0.0.1:0"
    config.scheduling.early_refusal = "predictive"

    async def main() -> int:
        server = Server(config, models={"policy": Policy()}, record=path, record_payloads=payloads)
        async with server:
            answered = sum(await asyncio.gather(*(_drive(server.endpoint, i, requests) for i in range(clients))))
            server.use_scheduler("round_robin")
            return answered + await _drive(server.endpoint, 99, requests)

    return asyncio.run(main())


def test_replay_makes_the_same_decisions(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    answered = _record(path)
    assert answered == 5 * 20 * 3

    result = replay(path)
    assert result.differences == []
    assert result.same
    assert result.decisions > answered  # an outcome each, and the calls


def test_what_a_replica_says_of_its_calls_is_replayed(tmp_path: Path) -> None:
    """When calls are staged follows from that: without it the recording of a busy replica would replay to other calls."""
    path = tmp_path / "run.mcap"
    config = InferentialConfig()
    recorder = Recorder(path, config_json=config.model_dump_json(), models=["policy"])
    engine = RecordingEngine(Engine(config, ["policy"], MetricsCollector()), recorder)
    engine.replica_up(Replica("r", "policy", 1, 4, "direct"), 0.0)
    running: deque[Call] = deque()
    leads: list[float] = []
    free_at = 0.0
    for tick in range(1, 3000):  # every quarter of a millisecond; an observation each 3 ms
        now = tick * 0.00025
        if tick % 12 == 0:
            observation = Observation("robot", "test", "policy", request_id=tick, latency_budget_ms=500.0)
            engine.submit(Request(b"a", observation, (encode_observation(observation), b""), 1, now), now)
        if running and now >= max(free_at, running[0].started_at) + 0.010:
            call = running.popleft()
            free_at = now
            result = CallResult([Body(b"", ())] * len(call.requests), 0.0095, ahead_s=(call.lead_s or 0.0) - 0.002)
            engine.complete(call.id, result, now)
        engine.advance(now)
        for call in engine.take_calls():
            running.append(call)
            leads.append(call.lead_s or 0.0)
        engine.take_outcomes()
        engine.take_abandoned()
    recorder.close()

    assert max(leads[-20:]) == pytest.approx(0.002, abs=0.0003)  # as it was told
    result = replay(path)
    assert result.differences == []
    assert result.decisions > 250


class _Collector:
    def __init__(self) -> None:
        self.observations: list[bytes] = []
        self.inputs: list[pb.Input] = []
        self.decisions: list[pb.Decision] = []

    def observation(self, envelope: bytes) -> None:
        self.observations.append(envelope)

    def input(self, message: pb.Input) -> None:
        self.inputs.append(message)

    def decision(self, message: pb.Decision) -> None:
        self.decisions.append(message)


def test_every_request_is_recorded_with_one_outcome(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    answered = _record(path, clients=2, requests=5)
    seen = _Collector()
    read_recording(open_recording(path), seen)

    assert len(seen.observations) == answered
    submitted = [i for i in seen.inputs if i.WhichOneof("kind") == "submit"]
    outcomes = [d.outcome for d in seen.decisions if d.WhichOneof("kind") == "outcome"]
    keys = [(bytes(o.request.connection), o.request.request_id) for o in outcomes]
    assert len(submitted) == answered
    assert len(keys) == len(set(keys)) == answered


def test_payloads_are_recorded_on_request(tmp_path: Path) -> None:
    small, large = tmp_path / "small.mcap", tmp_path / "large.mcap"
    _record(small, clients=1, requests=3)
    _record(large, clients=1, requests=3, payloads=True)

    from mcap.reader import make_reader

    def topics(path: Path) -> set[str]:
        with path.open("rb") as f:
            return {channel.topic for _, channel, _ in make_reader(f).iter_messages()}

    assert topics(large) - topics(small) == {"/payloads/observations/policy", "/payloads/replies/policy"}
    assert {"/observations/policy", "/replies/policy", "/engine/inputs", "/engine/decisions"} == topics(small)


def test_a_changed_decision_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.mcap"
    _record(path, clients=1, requests=5)

    original = InferentialConfig.model_validate

    def tighter(data: dict) -> InferentialConfig:
        config = original(data)
        config.queue.max_requests_per_model = 1  # another bound drops what was answered then
        return config

    monkeypatch.setattr(InferentialConfig, "model_validate", tighter)
    result = replay(path)
    assert not result.same
    assert any("recorded, not made again" in text for text in result.differences)


def test_what_cannot_be_replayed_says_why(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.mcap"
    nothing.write_bytes(b"not a recording at all")
    with pytest.raises(RecordingError, match="not an MCAP file"):
        replay(nothing)

    whole = tmp_path / "whole.mcap"
    _record(whole, clients=1, requests=2)
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(InferentialError, match=r"cut\.mcap"):
        replay(cut)


def test_a_recording_meets_other_strategies_in_the_simulator(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    answered = _record(path, clients=3, requests=10)
    variants = [Variant(name="same"), Variant(name="rr", settings={"scheduling.strategy": "round_robin"})]
    scenario = Scenario.model_validate({"recording": str(path), "variants": variants})  # as from a file
    rows = simulate(scenario)

    assert [row["variant"] for row in rows] == ["as recorded", "same", "rr"]
    assert all(row["sent"] == answered for row in rows)
    recorded, same, _ = rows
    assert recorded["statuses"].keys() <= {"OK", "MODEL_ERROR", "REJECTED", "EXPIRED"}
    assert sum(recorded["statuses"].values()) == answered
    assert same["in_time"] > 0
    assert simulate(scenario) == rows  # the same recording gives the same prediction


def test_a_damaged_recording_is_told_in_words(tmp_path: Path) -> None:
    """Whichever byte of it is wrong: it is replayed as it was, or refused."""
    path = tmp_path / "run.mcap"
    engine_config = InferentialConfig()
    recorder = Recorder(path, config_json=engine_config.model_dump_json(), models=["policy"])
    for i in range(200):
        recorder.input(pb.Input(now_s=float(i)))
    recorder.close()
    whole = path.read_bytes()
    draw = random.Random(3)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            recording = open_recording(path)
            assert recording.config().model_fields_set
            read_recording(recording, _Ignores())
        except RecordingError:
            refused += 1
    assert refused > 50
    path.write_bytes(b"")
    with pytest.raises(RecordingError, match="not an MCAP file"):
        open_recording(path)
    path.write_bytes(whole)
    with pytest.raises(ConfigError, match="no observations in it"):
        simulate(Scenario(recording=path))


def test_settings_of_another_version_are_told(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.mcap", config_json='{"queue": {"depth": 3}}', models=["policy"])
    recorder.close()
    with pytest.raises(RecordingError, match=r"run\.mcap: the settings of inferential .* queue\.depth"):
        replay(recorder.path)


class _Ignores:
    def observation(self, envelope: bytes) -> None: ...

    def input(self, message: Any) -> None: ...

    def decision(self, message: Any) -> None: ...


def test_what_waits_for_a_slow_disk_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MOST_WAITING_BYTES", 1_000_000)
    recorder = Recorder(tmp_path / "slow.mcap", config_json="{}", models=["m"], payloads=True)
    disk, write = threading.Event(), recorder._writer.add_message
    monkeypatch.setattr(recorder._writer, "add_message", lambda *args: disk.wait(20.0) and write(*args))
    for i in range(100):
        recorder.reply(float(i), "m", [b"", b"", bytes(100_000)])
        assert recorder._given_bytes - recorder._taken_bytes < 1_200_000
    assert recorder.dropped > 100, "of 100 envelopes and 100 payloads"
    disk.set()
    recorder.close()
    assert recorder._given_bytes == recorder._taken_bytes
    with pytest.raises(RecordingError, match="dropped"):
        open_recording(recorder.path)


def test_a_disk_that_is_full_is_told_and_keeps_nothing_in_memory(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(Path("/dev/full"), config_json="{}", models=["m"], payloads=False)
    noise = np.random.default_rng(0).bytes(1_000_000)  # more than is kept together before it is written
    for i in range(20):
        recorder._put_payload("/payloads", float(i), [noise])
    recorder._thread.join(20.0)
    assert not recorder._thread.is_alive()
    recorder.input(pb.Input(now_s=0.0))
    recorder.close()
    assert recorder.dropped > 0
    assert recorder._queue.empty()
    assert "cannot be written" in caplog.text
