"""The hint that spreads a fleet's arrivals out: who is asked, and who is not."""

from __future__ import annotations

from tests.unit.engine.rig import Rig


def burst(rig, periods=6, clients=24, call_ms=4.0, **fields):
    """All clients of 10 Hz send at the same moment, again and again; every call takes one of them. The shifts they were told, in ms."""
    for _ in range(periods):
        begin = rig.ms
        for i in range(clients):
            rig.send(client=f"c{i}", **{"budget": 400.0, **fields})
        pending = rig.settle()
        while pending:
            pending += rig.finish(pending.pop(0), call_ms, inference_ms=call_ms)
        rig.wait(begin + 100.0 - rig.ms)
    return [o.phase_shift_ms for o in rig.outcomes if o.phase_shift_ms]


def test_those_who_had_to_wait_are_asked_once_and_by_less_than_a_period():
    rig = Rig(scheduling__phase_shift="spread")
    shifts = burst(rig)
    assert 8 <= len(shifts) <= 23
    assert all(0.0 < shift < 106.0 for shift in shifts)
    assert len({round(shift) for shift in shifts}) == len(shifts), "to different moments"
    asked = [o.request.observation.client_id for o in rig.outcomes if o.phase_shift_ms]
    assert len(set(asked)) == len(asked)


def test_it_is_off_by_default():
    assert burst(Rig()) == []


def test_nobody_is_asked_who_did_not_wait():
    assert burst(Rig(scheduling__phase_shift="spread"), clients=2) == []


def test_v1_clients_and_named_slots_are_not_asked():
    assert burst(Rig(scheduling__phase_shift="spread"), v1=True) == []
    assert burst(Rig(scheduling__phase_shift="spread"), slot="left") == []


def test_refused_ones_are_asked_too():
    rig = Rig(scheduling__phase_shift="spread", scheduling__early_refusal="predictive", model__call_ms=4.0)
    burst(rig, budget=20.0)
    assert any(o.phase_shift_ms and o.status.name == "REJECTED" for o in rig.outcomes)
