"""Staging must not starve what waits for the same slot, device or replica."""

import pytest

from tests.unit.engine.rig import Replica, Rig


def warmed(models, **settings):
    rig = Rig(models, replicas=[Replica(f"r{m}", m, 1, path="direct") for m in models], **settings)
    for model in models:
        rig.learn(model, call_ms=20.0)
    return rig


@pytest.mark.parametrize(
    "settings",
    [
        {"scheduling__max_concurrent_dispatch": 1},
        {"models__default": {"device": "gpu"}, "scheduling__pipeline_dispatch__enabled": True},
    ],
    ids=["slot", "device"],
)
def test_another_model_gets_what_is_shared(settings):
    rig = warmed(["a", "b"], **settings)
    running = rig.block("a")
    waiting = rig.send("b", budget=100.0)
    rig.send("a", client="x", budget=500.0)
    assert rig.wait(19.9) == []  # nothing is staged behind the running call
    [after] = rig.finish(running, 0.1, inference_ms=20.0)
    assert after.requests == [waiting]


def test_a_retry_gets_its_replica():
    rig = Rig(
        replicas=[Replica("r1", "m", 1, path="direct"), Replica("r2", "m", 1, path="direct")],
        dispatch__max_retries=1,
        scheduling__max_concurrent_dispatch=8,
    )
    rig.learn(call_ms=20.0)
    failing, other = rig.send(client="f", budget=500.0), rig.send(client="o", budget=500.0)
    first, second = rig.settle()
    assert (first.requests, second.requests) == ([failing], [other])
    rig.send(client="x", budget=80.0)
    [third] = rig.fail(first)
    assert third.replica.id == first.replica.id
    assert rig.wait(19.9) == []  # nothing is staged at the replica that the retry waits for
    [again] = rig.finish(second, 0.1, inference_ms=20.0)
    assert again.requests == [failing]
