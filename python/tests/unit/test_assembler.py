from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferential import images, wire
from inferential.assembler import CLOCK_WINDOW_S, Assembly, ClockOffset, assemble
from inferential.errors import WireError
from inferential.types import Observation

MS = 1_000_000
SECOND = 1000 * MS


def frames_of(
    observation: Observation,
    tensors: dict[str, Any],
    stamps: dict[str, int] | None = None,
    claims: tuple[int, ...] | None = None,
) -> list[bytes]:
    """`claims`: the shape that the envelope says the first tensor has."""
    packed = wire.pack_tensors(tensors, several_frames=False, timestamps_ns=stamps)
    if claims is not None:
        packed.tensors[0]["shape"] = claims
    return [wire.encode_observation(observation, packed), *(bytes(f) for f in packed.frames)]


def assembled(
    sent_ns: int, arrived_ns: int, clock: ClockOffset, now: float, stamps: dict[str, int] | None = None
) -> Assembly:
    tensors = {key: np.ones(2) for key in (stamps or {"x": 0})}
    frames = frames_of(Observation("c", "t", "m", 1, sent_ns), tensors, stamps)
    return assemble(frames, clock, now, max_message_bytes=10**6, wall_ns=arrived_ns)


@pytest.mark.parametrize("skew_s", [-3600, 0, 7, 10**6])
def test_a_skewed_clock_does_not_lie_about_age(skew_s: int) -> None:
    clock = ClockOffset()
    start = 10**18
    for i, delay_ms in enumerate([5, 1, 4, 31]):
        sent = start + i * SECOND
        found = assembled(sent + skew_s * SECOND, sent + delay_ms * MS, clock, float(i))
    # The quickest took 1 ms; against it, the last one was 30 ms late.
    assert found.staleness_ms == pytest.approx(30.0)


def test_a_drifting_clock_is_followed() -> None:
    clock = ClockOffset()
    ages = []
    for i in range(600):  # one hour, the client's clock loses 100 microseconds a second
        sent = i * 6 * SECOND
        drift = i * 6 * 100_000
        ages.append(assembled(10**18 + sent - drift, 10**18 + sent + MS, clock, i * 6.0).staleness_ms)
    assert max(a for a in ages if a is not None) < 2.5 * CLOCK_WINDOW_S * 0.1


@given(st.lists(st.integers(-(10**12), 10**12), min_size=1, max_size=50))
def test_no_age_is_negative(delays: list[int]) -> None:
    clock = ClockOffset()
    for i, delay in enumerate(delays):
        age = assembled(10**18, 10**18 + delay, clock, i * 10.0).staleness_ms
        assert age is not None
        assert age >= 0


def test_age_counts_from_the_oldest_measurement() -> None:
    clock = ClockOffset()
    start = 10**18
    found = assembled(start, start + MS, clock, 0.0, {"a": start - 40 * MS, "b": start - 10 * MS})
    assert found.staleness_ms == pytest.approx(40.0)
    assert found.spread_ms == pytest.approx(30.0)


def test_without_timestamps_nothing_is_said() -> None:
    found = assembled(0, 10**18, ClockOffset(), 0.0)
    assert found.staleness_ms is None
    assert found.spread_ms is None


def test_sizes() -> None:
    frames = frames_of(Observation("c", "t", "m", 1), {"x": np.ones(4)})
    found = assemble(frames, ClockOffset(), 0.0, max_message_bytes=10**6)
    assert found.payload_bytes == 32
    assert found.size_bytes == 32 + len(frames[0])
    request = found.request(b"conn", frames, 3.0)
    assert (request.connection, request.arrival, request.size_bytes) == (b"conn", 3.0, found.size_bytes)
    assert request.frames is frames


def test_the_bound_holds_for_all_frames_together() -> None:
    frames = frames_of(Observation("c", "t", "m", 5), {"x": np.ones(4)})
    with pytest.raises(WireError, match="message") as caught:
        assemble([*frames, bytes(1000)], ClockOffset(), 0.0, max_message_bytes=500)
    assert caught.value.request_id == 5


def test_images_are_looked_at_before_they_are_decoded() -> None:
    image = images.encode_png(np.zeros((8, 8, 3), np.uint8))
    lying = frames_of(Observation("c", "t", "m", 5), {"cam": image}, claims=(8, 9, 3))
    with pytest.raises(WireError, match=r"tensor 'cam'.*\[8, 8, 3\]") as caught:
        assemble(lying, ClockOffset(), 0.0, max_message_bytes=10**6)
    assert caught.value.request_id == 5


def test_a_small_file_that_claims_to_be_a_huge_image() -> None:
    image = images.encode_png(np.zeros((8, 8, 3), np.uint8))
    bomb = frames_of(Observation("c", "t", "m", 5), {"cam": image}, claims=(16384, 16384, 3))
    with pytest.raises(WireError, match="decodes to 805306368 bytes"):
        assemble(bomb, ClockOffset(), 0.0, max_message_bytes=2**28)
