"""The one Ray session of the suite: started here, outlives every server process, dies with this one."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

MODELS = ("inspector", "gate", "odd", "policy-v2")
ABSENT = "absent"  # configured, never deployed


class Cluster:
    """Ray with the models of models.py deployed on the direct path, and `plain`, an Inspector behind a plain handle."""

    def __init__(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        from inferential.backends.cluster import prepare_environment

        prepare_environment()
        import ray
        from ray import serve

        # A folder of its own: other clusters on this machine are none of ours, nor is this one theirs.
        self._folder = tempfile.mkdtemp(prefix="icf-", dir="/tmp")
        ray.init(
            address="local",
            namespace="serve",
            num_cpus=16,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="warning",
            _temp_dir=self._folder,
        )
        serve.start(proxy_location="Disabled")
        from suite import models

        self.address: str = ray.get_runtime_context().gcs_address
        self.control: Any = models.Control.options(name=models.CONTROL).remote()  # type: ignore[attr-defined]
        direct = {"inspector": models.Inspector, "gate": models.Gate, "odd": models.Odd, "policy-v2": models.Inspector}
        targets = [models.target(name, model, direct=True) for name, model in direct.items()]
        serve.run_many([*targets, models.target("plain", models.Inspector, direct=False)])

    def close(self) -> None:
        """Stops Ray; everything that ran in it is gone."""
        import ray

        ray.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)


class Gate:
    """The model `gate`: closed while a case arranges what waits, opened when it wants to see what happens."""

    model = "gate"

    def __init__(self, control: Any) -> None:
        self._control = control

    def close(self) -> None:
        self._get(self._control.close.remote(self.model))

    def open(self) -> None:
        self._get(self._control.open.remote(self.model))

    def entered(self, at_least: int, timeout_s: float = 20.0) -> list[str]:
        """Labels of those who entered, in order, once there are `at_least`."""
        found: list[str] = self._get(self._control.entered.remote(self.model, at_least, timeout_s))
        assert len(found) >= at_least, f"only {found} entered within {timeout_s} s"
        return found

    @staticmethod
    def _get(reference: Any) -> Any:
        import ray

        return ray.get(reference, timeout=60)
