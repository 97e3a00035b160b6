"""When processors are kept awake (docs/adr/0008-processors-kept-awake.md): a file stands for the device, a list for the loop's timers."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferential import Server, cpu_latency, local
from inferential.config.schema import InferentialConfig
from inferential.cpu_latency import HOLD_S, CpuLatency
from inferential.errors import ConfigError

NO_LIMIT = 2**31 - 1


class Timer:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at, self._call = at, call

    def cancel(self) -> None:
        self.at = float("inf")

    def ring(self) -> None:
        self.cancel()
        self._call()


class Loop:
    """Time passes where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + delay, call))
        return self.timers[-1]

    def pass_to(self, until: float) -> None:
        while self.timers and min(t.at for t in self.timers) <= until:
            timer = min(self.timers, key=lambda t: t.at)
            self.now = timer.at
            timer.ring()
        self.now = until


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("dev") / "cpu_dma_latency"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_latency, "DEVICE", str(path))
        yield path


def opened(device: Path, limit_us: int) -> tuple[CpuLatency, Any, Callable[[], list[int]]]:
    device.write_bytes(b"")
    loop: Any = Loop()
    return CpuLatency(limit_us, loop), loop, lambda: [n for (n,) in struct.iter_unpack("=i", device.read_bytes())]


def test_from_the_first_request_until_none_came_for_a_while(device: Path) -> None:
    cpu, loop, written = opened(device, 7)
    assert written() == []
    cpu.used()
    assert written() == [7]
    loop.pass_to(0.9 * HOLD_S)
    cpu.used()
    loop.pass_to(1.9 * HOLD_S)
    assert written() == [7]
    loop.pass_to(3 * HOLD_S)
    assert written() == [7, NO_LIMIT]
    loop.pass_to(10 * HOLD_S)
    assert written() == [7, NO_LIMIT]  # and nothing is set while nobody asks
    cpu.used()
    assert written() == [7, NO_LIMIT, 7]
    cpu.close()
    cpu.close()
    loop.pass_to(20 * HOLD_S)
    assert written() == [7, NO_LIMIT, 7]


@given(gaps=st.lists(st.floats(0.0, 3 * HOLD_S), min_size=1, max_size=30))
def test_it_holds_at_each_request_and_ends_within_two_holds(device: Path, gaps: list[float]) -> None:
    cpu, loop, written = opened(device, 0)
    for gap in gaps:
        loop.pass_to(loop.now + gap)
        if gap > 2 * HOLD_S:
            assert written()[-1:] in ([], [NO_LIMIT])
        cpu.used()
        assert written()[-1] == 0
        assert all(a != b for a, b in zip(written(), written()[1:], strict=False))
    loop.pass_to(loop.now + 2 * HOLD_S)
    assert written()[-1] == NO_LIMIT
    cpu.close()


def test_a_server_on_a_machine_without_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_latency, "DEVICE", str(tmp_path / "cpu_dma_latency"))
    config = InferentialConfig()
    config.cpu.max_wakeup_latency_us = 0
    server = Server(config, models={"m": local(lambda obs: 0, inline=True)}, bind="tcp://127.0.0.1:0")
    wanted = r"cpu\.max_wakeup_latency_us: cannot open .* for writing \(No such file or directory\)"
    with pytest.raises(ConfigError, match=wanted), server.run_in_thread():
        pass
