"""One observation, one answer."""

import numpy as np

from inferential import Connection

conn = Connection(server="tcp://localhost:5555", client_id="agent-01", client_type="franka")
# priority=0 is highest; lower-priority clients yield GPU slots under contention
model = conn.model("manipulation-policy", latency_budget_ms=30.0, priority=0)
state = np.random.randn(7).astype(np.float32)
model.observe(urgency=0.8, steps_remaining=50, state=state)
result = model.get_result(timeout_ms=50)
if result is not None:
    actions = result["actions"]  # np.ndarray
    print(f"actions of shape {actions.shape} after {result.age_ms:.1f} ms")
else:
    print(f"no answer (link: {conn.link_state.value}): {model.last_error}")
