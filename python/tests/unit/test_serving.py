"""Servable classes outside of a replica: what was decorated."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle

from inferential import serving
from inferential.errors import ConfigError
from inferential.serving import servable


@servable
class Policy:
    """Doubles."""

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        return {"y": obs["x"] * self.factor}

    def record_autoscaling_stats(self) -> dict[str, float]:
        return {"mine": 1.0}


def test_is_the_class_that_was_decorated() -> None:
    policy = Policy(factor=3.0)
    assert policy.infer({"x": np.float64(2)}) == {"y": 6.0}
    assert (Policy.__name__, Policy.__doc__, Policy.__module__) == ("Policy", "Doubles.", __name__)
    assert policy.record_autoscaling_stats() == {"mine": 1.0}
    del policy  # nothing to drain


def test_survives_pickling_by_value() -> None:
    def make() -> type:
        @servable
        class Local:
            def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
                return obs

        return Local

    again = cloudpickle.loads(cloudpickle.dumps(make()))
    assert again().infer({"a": 1}) == {"a": 1}
    assert again.__inferential_servable__


def test_async_init_is_awaited_by_serve_alone() -> None:
    @servable
    class Slow:
        async def __init__(self) -> None:  # type: ignore[misc]
            self.ready = True

        async def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            return obs

    async def main() -> None:
        model = Slow.__new__(Slow)
        await model.__init__()  # type: ignore[misc]
        assert model.ready

    asyncio.run(main())


def test_own_destructor_still_runs() -> None:
    ended: list[str] = []

    @servable
    class Ending:
        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            return obs

        def __del__(self) -> None:
            ended.append("yes")

    model = Ending()
    del model
    assert ended == ["yes"]


def test_what_is_not_servable() -> None:
    with pytest.raises(ConfigError, match=r"below @serve\.deployment"):
        servable(lambda obs: obs)  # type: ignore[type-var]

    class Nothing:
        pass

    with pytest.raises(ConfigError, match="neither infer, infer_batch nor __call__"):
        servable(Nothing)


NICE = """
import os, sys, threading
from inferential import serving
os.environ.pop("RAY_worker_niceness", None)
os.environ.update(dict(pair.split("=") for pair in sys.argv[1:]))
end = threading.Event()
threads = [threading.Thread(target=end.wait) for _ in range(2)]
os.nice(15)
for thread in threads: thread.start()
serving._normal_priority()
after = {os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir("/proc/self/task")}
end.set()
print("threads", len(threads) + 1, "niceness", *after)
"""


RAISE = "import os; os.nice(1); os.setpriority(os.PRIO_PROCESS, 0, 0)"


def test_a_replica_ends_the_low_priority_that_ray_gives_it() -> None:
    if subprocess.run([sys.executable, "-c", RAISE], stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("this user may not raise a priority again")
    result = subprocess.run([sys.executable, "-c", NICE], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == ["threads", "3", "niceness", "0"], result.stderr


def test_a_niceness_that_the_user_chose_stands() -> None:
    command = [sys.executable, "-c", NICE, "RAY_worker_niceness=10"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == ["threads", "3", "niceness", str(min(19, os.nice(0) + 15))], result.stderr


def test_a_replica_that_may_not_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    monkeypatch.setattr(os, "getpriority", lambda *_: 15)
    monkeypatch.setattr(os, "setpriority", refuse)
    with caplog.at_level(logging.WARNING, "inferential.replica"):
        serving._normal_priority()
    assert "niceness 15" in caplog.text
    assert "RAY_worker_niceness=0" in caplog.text


def test_a_priority_that_was_raised_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpriority", lambda *_: -5)
    monkeypatch.setattr(os, "setpriority", lambda *_: pytest.fail("there is nothing to raise"))
    serving._normal_priority()
