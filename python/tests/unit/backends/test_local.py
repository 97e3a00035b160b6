"""The options of models in the server's own process."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from inferential.backends.local import LocalBackend, local
from inferential.errors import ConfigError


def test_options_are_kept_as_plain_values() -> None:
    found = local(len, inline=np.bool_(True), max_batch_size=np.int64(4), concurrency=np.uint8(3))
    assert (found.inline, found.max_batch_size, found.concurrency) == (True, 4, 3)
    assert [type(v) for v in (found.inline, found.max_batch_size, found.concurrency)] == [bool, int, int]
    assert (local(len).inline, local(len).max_batch_size, local(len).concurrency) == (False, None, None)


@pytest.mark.parametrize(("inline", "kept"), [(1, True), (0, False), (None, False), (np.bool_(False), False)])
def test_inline_is_true_or_false(inline: Any, kept: bool) -> None:
    assert local(len, inline=inline).inline is kept


@pytest.mark.parametrize("value", [0, -1, 4.0, np.float64(2), "4", True, [4], float("nan")], ids=repr)
@pytest.mark.parametrize("name", ["max_batch_size", "concurrency"])
def test_what_is_no_count_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as e:
        local(len, **{name: value})
    assert f"{name} is {value!r}, must be a whole number from 1 to 4294967295" in str(e.value)


def test_a_batch_is_as_large_as_the_model_says() -> None:
    class Model:
        max_batch_size = 3

        def infer_batch(self, batch: list[Any]) -> list[Any]:
            return batch

    async def size_of(model: Any) -> int:
        up: list[Any] = []
        backend = LocalBackend({"m": model})
        await backend.start(SimpleNamespace(replica_up=up.append))  # type: ignore[arg-type]
        await backend.stop(5.0)
        return int(up[0].max_batch_size)

    assert asyncio.run(size_of(Model())) == 3
    assert asyncio.run(size_of(local(Model(), max_batch_size=2))) == 2
    assert asyncio.run(size_of(len)) == 1


@pytest.mark.parametrize(("inline", "on_loop"), [(1, True), (np.bool_(True), True), (None, False)])
def test_a_backend_takes_anything_for_inline(inline: Any, on_loop: bool) -> None:
    ran: list[str] = []

    class Model:
        def warm_up(self) -> None:
            ran.append(threading.current_thread().name)

        def infer(self, observation: Any) -> Any:
            return 0

    async def main() -> None:
        backend = LocalBackend({"m": Model()}, inline=inline)
        up: list[Any] = []
        await backend.start(SimpleNamespace(replica_up=up.append))  # type: ignore[arg-type]
        assert [replica.id for replica in up] == ["m/local"]
        await backend.stop(1.0)

    asyncio.run(main())
    assert ran == [threading.current_thread().name if on_loop else "model-m-0"]
