"""The server's alarm, on timers of both kinds."""

from __future__ import annotations

import asyncio
import sys

import pytest

from inferential import alarm
from inferential.alarm import Alarm


@pytest.fixture(params=["descriptor", "loop"])
def kind(request, monkeypatch):
    if request.param == "loop":
        monkeypatch.setattr(alarm.sys, "platform", "other")
    elif sys.platform != "linux":
        pytest.skip("there are none")
    return request.param


def run(main):
    asyncio.run(asyncio.wait_for(main(), 20.0))


def test_rings_when_it_was_last_set_to_and_not_before(kind):
    async def main():
        loop = asyncio.get_running_loop()
        rung: asyncio.Future[float] = loop.create_future()
        clock = Alarm(loop, lambda: rung.set_result(loop.time()))
        at = loop.time() + 0.02
        clock.set(loop.time() + 3600.0)
        clock.set(at)
        assert clock.at == at
        assert await rung >= at - loop._clock_resolution - 1e-6
        assert clock.at is None
        clock.close()

    run(main)


def test_what_is_past_rings_at_once_and_it_can_be_set_while_it_rings(kind):
    async def main():
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        rung: list[float] = []

        def ring():
            rung.append(loop.time())
            if len(rung) < 3:
                clock.set(0.0)
            else:
                done.set()

        clock = Alarm(loop, ring)
        clock.set(loop.time() - 5.0)
        await done.wait()
        assert len(rung) == 3
        clock.close()

    run(main)


def test_closed_it_rings_no_more(kind):
    async def main():
        loop = asyncio.get_running_loop()
        rung: list[int] = []
        clock = Alarm(loop, lambda: rung.append(1))
        clock.set(loop.time() + 0.01)
        clock.close()
        clock.close()
        await asyncio.sleep(0.05)
        assert not rung

    run(main)


def test_a_loop_that_takes_no_descriptors(monkeypatch):
    async def main():
        loop = asyncio.get_running_loop()

        def refuse(*_):
            raise NotImplementedError

        monkeypatch.setattr(loop, "add_reader", refuse)
        done = asyncio.Event()
        clock = Alarm(loop, done.set)
        clock.set(loop.time() + 0.005)
        await done.wait()
        clock.close()

    run(main)
