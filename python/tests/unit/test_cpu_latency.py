"""When processors are kept awake (docs/adr/0008-processors-kept-awake.md): a file stands for the device, a list for the loop's timers."""

from __future__ import annotations

import logging
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


class Rig:
    """Time passes where a test says so."""

    def __init__(self, device: Path, limit_us: int) -> None:
        device.write_bytes(b"")
        self.device = device
        self.now = 0.0
        self.busy = False
        self.timers: list[Timer] = []
        loop: Any = self
        self.cpu = CpuLatency(limit_us, loop, lambda: self.busy, lambda: self.now)

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + delay, call))
        return self.timers[-1]

    def used(self) -> None:
        self.cpu.used(self.now)

    def pass_to(self, until: float) -> None:
        while self.timers and min(t.at for t in self.timers) <= until:
            timer = min(self.timers, key=lambda t: t.at)
            self.now = timer.at
            timer.ring()
        self.now = until

    @property
    def written(self) -> list[int]:
        return [n for (n,) in struct.iter_unpack("=i", self.device.read_bytes())]


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("dev") / "cpu_dma_latency"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_latency, "DEVICE", str(path))
        yield path


def test_from_the_first_request_until_none_came_for_a_while(device: Path) -> None:
    rig = Rig(device, 7)
    assert rig.written == []
    rig.used()
    assert rig.written == [7]
    rig.pass_to(0.75 * HOLD_S)
    rig.used()
    rig.pass_to(1.74 * HOLD_S)
    assert rig.written == [7]
    rig.pass_to(1.75 * HOLD_S)
    assert rig.written == [7, NO_LIMIT]
    rig.pass_to(10 * HOLD_S)
    assert rig.written == [7, NO_LIMIT]  # and nothing is set while nobody asks
    rig.used()
    assert rig.written == [7, NO_LIMIT, 7]


def test_as_long_as_a_request_is_not_answered(device: Path) -> None:
    rig = Rig(device, 0)
    rig.busy = True
    rig.used()
    rig.pass_to(5.5 * HOLD_S)
    assert rig.written == [0]
    rig.busy = False
    rig.pass_to(7 * HOLD_S)
    assert rig.written == [0, NO_LIMIT]


def test_closing_ends_it_also_for_whoever_has_inherited_the_device(device: Path) -> None:
    rig = Rig(device, 7)
    rig.used()
    rig.cpu.close()
    rig.cpu.close()
    rig.pass_to(10 * HOLD_S)
    assert rig.written == [7, NO_LIMIT]


def test_a_child_lets_go_of_it_and_changes_nothing(device: Path) -> None:
    rig = Rig(device, 7)
    rig.used()
    rig.cpu.forked()
    rig.used()
    rig.pass_to(10 * HOLD_S)
    rig.cpu.close()
    assert rig.written == [7]


@given(gaps=st.lists(st.floats(0.0, 3 * HOLD_S), min_size=1, max_size=30))
def test_it_holds_at_each_request_and_for_so_long_after(device: Path, gaps: list[float]) -> None:
    rig = Rig(device, 0)
    for gap in gaps:
        rig.pass_to(rig.now + gap)
        if gap > 1.001 * HOLD_S:
            assert rig.written[-1:] in ([], [NO_LIMIT])
        rig.used()
        assert rig.written[-1] == 0
        assert all(a != b for a, b in zip(rig.written, rig.written[1:], strict=False))
        rig.pass_to(rig.now + 0.999 * HOLD_S)
        assert rig.written[-1] == 0
    rig.pass_to(rig.now + 0.002 * HOLD_S)
    assert rig.written[-1] == NO_LIMIT
    rig.cpu.close()


@pytest.mark.parametrize(("driver", "says"), [("none\n", True), ("intel_idle\n", False), (None, False)])
def test_a_machine_that_knows_no_limit(
    device: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    driver: str | None,
    says: bool,
) -> None:
    monkeypatch.setattr(cpu_latency, "DRIVER", str(tmp_path / "current_driver"))
    if driver is not None:
        (tmp_path / "current_driver").write_text(driver)
    with caplog.at_level(logging.WARNING):
        Rig(device, 0).cpu.close()
    assert ("changes nothing on this machine" in caplog.text) is says


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("nowhere", r"\(No such file or directory\); it is Linux's, and a container has it with --device"),
        ("", r"\(Is a directory\); only root may, unless a udev rule"),
    ],
)
def test_a_server_that_cannot_open_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, wanted: str
) -> None:
    monkeypatch.setattr(cpu_latency, "DEVICE", str(tmp_path / name))
    config = InferentialConfig()
    config.cpu.max_wakeup_latency_us = 0
    server = Server(config, models={"m": local(lambda obs: 0, inline=True)}, bind="tcp://127.0.0.1:0")
    message = rf"cpu\.max_wakeup_latency_us: cannot open .* for writing {wanted}"
    with pytest.raises(ConfigError, match=message), server.run_in_thread():
        pass
