"""A round trip by the package that is installed where this runs: `round_trip.py ADDRESS MODEL VERSION`. Prints `ok`."""

import sys

import inferential
import numpy as np

address, model_id, version = sys.argv[1:]
assert inferential.__version__ == version, inferential.__version__
assert "site-packages" in inferential.__file__, inferential.__file__
with inferential.Connection(address, client_id="installed", client_type="package") as conn:
    model = conn.model(model_id, latency_budget_ms=60_000.0)
    state = np.arange(7, dtype=np.float32)
    assert model.observe(state=state)
    result = model.get_result(timeout_ms=60_000)
    assert result is not None, model.last_error
    assert (result["state"] == state).all()
assert not {"ray", "pydantic"} & sys.modules.keys()
print("ok")
