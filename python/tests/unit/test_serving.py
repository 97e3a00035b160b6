"""Servable classes outside of a replica: what was decorated."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle

from inferential import Server, serving
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


async def made_by_serve(cls: type, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any]]:
    """An instance as a Serve replica makes it, and what its links got."""
    got: dict[str, Any] = {}

    class Links:
        def __init__(self, model: Any, identity: Any, **options: Any) -> None:
            got.update(options, model=model)

        def start(self, ready: Any) -> None:
            got["started"] = True

        closed = True

    context = SimpleNamespace(app_name="m", deployment="d", replica_tag="r")
    monkeypatch.setattr(serving, "_replica_context", lambda: context)
    monkeypatch.setattr(serving, "_normal_priority", lambda: None)
    monkeypatch.setattr(serving.gc, "freeze", lambda: None)
    monkeypatch.setattr(serving, "keep_freed_memory", lambda: got.update(keeps_memory=True))
    monkeypatch.setattr("inferential.replica.ReplicaLinks", Links)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "n"))
    model = cls.__new__(cls)
    initialised = model.__init__()
    if asyncio.iscoroutine(initialised):
        await initialised
    return model, got


def test_a_sync_model_is_warmed_up_in_its_thread_and_may_change_there(monkeypatch: pytest.MonkeyPatch) -> None:
    @servable
    class Compiles:
        def infer_batch(self, batch: list[Any]) -> list[Any]:
            return batch

        def warm_up(self) -> None:
            self.where = threading.current_thread().name
            self.max_batch_size = 7
            self.infer_batch = lambda batch: ["compiled" for _ in batch]  # type: ignore[method-assign]

    async def main() -> None:
        model, got = await made_by_serve(Compiles, monkeypatch)
        assert model.where == "inferential-model-0"
        assert got["max_batch_size"] == 7
        assert got["started"]
        assert got["keeps_memory"]
        where = await asyncio.wrap_future(got["thread"].submit(lambda: threading.current_thread().name))
        assert where == model.where, "the links go on in that thread"
        got["thread"].close()
        model_call = got["model"]
        prepared = model_call.prepare([])
        prepared.observations, prepared.results = [{}, {}], [None, None]
        model_call.execute_sync(prepared)
        assert prepared.results == ["compiled", "compiled"]

    asyncio.run(main())


@pytest.mark.parametrize("async_init", [False, True])
@pytest.mark.parametrize("async_infer", [False, True])
def test_an_async_warm_up_runs_on_serves_loop(
    monkeypatch: pytest.MonkeyPatch, async_init: bool, async_infer: bool
) -> None:
    class Model:
        def infer(self, obs: Any) -> Any:
            return obs

        async def warm_up(self) -> None:
            self.loop = asyncio.get_running_loop()

    if async_init:

        async def init(self: Any) -> None:
            self.task = asyncio.get_running_loop().create_task(asyncio.sleep(0, "weights"))

        Model.__init__ = init  # type: ignore[method-assign, assignment]
    if async_infer:

        async def infer(self: Any, obs: Any) -> Any:
            return obs

        Model.infer = infer  # type: ignore[method-assign]

    async def main() -> None:
        model, got = await made_by_serve(servable(Model), monkeypatch)
        assert model.loop is asyncio.get_running_loop()
        assert got["thread"] is None
        assert got["started"]
        if async_init:
            assert await model.task == "weights"

    asyncio.run(main())


def test_a_failed_warm_up_fails_the_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    @servable
    class Broken:
        def infer(self, obs: Any) -> Any:
            return obs

        def warm_up(self) -> None:
            self.thread = threading.current_thread()
            threads.append(self.thread)
            raise ValueError("no such weights")

    threads: list[threading.Thread] = []

    async def main() -> None:
        with pytest.raises(ValueError, match="no such weights"):
            await made_by_serve(Broken, monkeypatch)
        threads[0].join(10.0)
        assert not threads[0].is_alive()

    asyncio.run(main())


def test_a_warm_up_that_nobody_would_await_fails_the_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    @servable
    class Disguised:
        def infer(self, obs: Any) -> Any:
            return obs

        def warm_up(self) -> Any:
            return asyncio.sleep(0)

    async def main() -> None:
        with pytest.raises(ConfigError, match="async def"):
            await made_by_serve(Disguised, monkeypatch)

    asyncio.run(main())


@pytest.mark.parametrize("size", [0, -3, 2.5, True, "many", 2**32])
def test_a_batch_size_that_is_none_fails_the_replica(monkeypatch: pytest.MonkeyPatch, size: Any) -> None:
    @servable
    class Odd:
        max_batch_size = size

        def infer_batch(self, batch: list[Any]) -> list[Any]:
            return batch

    async def main() -> None:
        with pytest.raises(
            ConfigError, match=f"max_batch_size is {size!r}, must be a whole number from 1 to 4294967295"
        ):
            await made_by_serve(Odd, monkeypatch)

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


def test_a_deployment_that_is_not_bound_is_told_so() -> None:
    from ray import serve

    with pytest.raises(ConfigError, match=r"give the application, Unbound\.bind\(\)"):
        Server(models={"m": serve.deployment(type("Unbound", (), {"infer": lambda self, obs: obs}))})
