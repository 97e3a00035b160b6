"""A 50 Hz control loop that always has something sensible to do. Usage: control_loop.py [ADDRESS [SECONDS]]

The policy returns a chunk of several steps. While answers come in time the robot plays the first step of each; an answer that took
longer than a step is entered further on, because its first steps have gone by; without an answer the last chunk is played on for at
most 200 ms, then the robot stands still.
"""

import sys
from collections import Counter

import numpy as np

from inferential import Connection, Hold, Rate

HZ = 50.0
address = sys.argv[1] if len(sys.argv) > 1 else "tcp://localhost:5555"
seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 5.0

joints = np.random.default_rng(0).normal(size=7).astype(np.float32)
stand_still = {"actions": np.zeros((1, 7), np.float32)}
sources: Counter[str] = Counter()
missed = 0

with Connection(address, client_id="arm-01", client_type="franka") as conn:
    model = conn.model(
        "manipulation-policy",
        latency_budget_ms=15.0,
        step_ms=1000.0 / HZ,
        latest_only=True,
        fallback=Hold(max_ms=200.0, template=stand_still),
    )
    rate = Rate(HZ)
    for _ in range(int(seconds * HZ)):
        model.observe(state=joints)
        action = model.act(timeout_ms=15.0)
        chunk = action.tensors["actions"]
        step = min(action.steps_late, len(chunk) - 1)
        joints += chunk[step] / np.float32(HZ)
        sources[action.source.name] += 1
        missed += rate.sleep()

print(
    f"{sum(sources.values())} steps: {dict(sources)}, {missed} ticks missed, joints within {np.abs(joints).max():.3f}"
)
print(conn.stats)
