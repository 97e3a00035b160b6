"""A better level keeps its deadlines under any load of lower ones, and these their guaranteed share: the engine on a fake clock, with
calls staged behind one another that take exactly what they are predicted to.
"""

from __future__ import annotations

import heapq

from hypothesis import given, settings
from hypothesis import strategies as st

from inferential.types import Status
from tests.unit.engine.rig import Replica, Rig

CALL_MS, ITEM_MS = 10.0, 0.5
FOR_MS = 1500.0


def play(rig: Rig, due: list[tuple[float, dict]]) -> None:
    """Sends what is due and answers each call when it is over."""
    due = sorted(((rig.ms + at, i, fields) for i, (at, fields) in enumerate(due)), key=lambda d: d[:2])
    heapq.heapify(due)
    running: list[tuple[float, int]] = []
    calls: dict = {}
    free_at = 0.0

    def made(new):
        nonlocal free_at
        for call in new:
            free_at = max(free_at, rig.ms) + CALL_MS + ITEM_MS * len(call.requests)
            calls[call.id] = call
            heapq.heappush(running, (free_at, call.id))

    while due or running or rig.engine.pending:
        at = min(due[0][0] if due else float("inf"), running[0][0] if running else float("inf"))
        wake = rig.engine.next_wakeup()
        if wake is not None and wake * 1e3 < at:
            rig.now = max(rig.now, wake)  # to the last digit, else it would ask again for ever
            rig.engine.advance(rig.now)
        elif running and running[0][0] <= at:
            rig.ms, number = heapq.heappop(running)
            call = calls.pop(number)
            made(rig.finish(call, inference_ms=CALL_MS + ITEM_MS * len(call.requests)))
            continue
        else:
            rig.ms, _, fields = heapq.heappop(due)
            rig.send(**fields)
        made(rig.settle())


@settings(max_examples=40, deadline=None)
@given(
    firsts=st.lists(st.floats(0.0, 99.0), min_size=1, max_size=15),
    others=st.integers(20, 250),
    budget=st.sampled_from([30.0, 50.0, 120.0]),
    lower_budget=st.sampled_from([50.0, 200.0]),
    staging=st.booleans(),
    seed=st.randoms(use_true_random=False),
)
def test_priority_0_is_in_time_under_any_load_of_lower_ones(firsts, others, budget, lower_budget, staging, seed):
    rig = Rig(
        replicas=[Replica("gpu", "m", 1, 64, "direct" if staging else "handle")],
        scheduling__early_refusal="predictive",
        scheduling__deadline_margin_ms=0.0,
        model__call_ms=CALL_MS,
        model__item_ms=ITEM_MS,
    )
    begin = rig.now
    due = []
    for client in range(others):
        phase = seed.random() * 100.0
        fields = {"client": f"other{client}", "priority": 1, "budget": lower_budget}
        due += [(phase + 100.0 * turn, fields) for turn in range(int(FOR_MS / 100))]
    for client, phase in enumerate(firsts):
        fields = {"client": f"first{client}", "priority": 0, "budget": budget}
        due += [(phase + 100.0 * turn, fields) for turn in range(int(FOR_MS / 100))]
    play(rig, due)
    assert len(rig.outcomes) == len(due)
    counted = [
        o for o in rig.outcomes if o.request.arrival >= begin + 0.5
    ]  # what comes, and how much, is learned before
    missed = [
        o
        for o in counted
        if o.request.observation.priority == 0
        and not (o.status is Status.OK and o.queue_ms + CALL_MS + ITEM_MS * o.batch_size <= budget + 1e-6)
    ]
    assert not missed, [(o.request.observation.client_id, o.status.name, o.error, o.request.arrival) for o in missed]
    served = sum(o.status is Status.OK for o in counted if o.request.observation.priority == 1)
    sent = sum(o.request.observation.priority == 1 for o in counted)
    high = sum(o.request.observation.priority == 0 for o in counted)
    assert served >= min(sent, 0.05 * high)
