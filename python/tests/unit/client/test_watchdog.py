"""What a robot does without a fresh answer, by docs/protocol.md, section 6.7."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from inferential import images, wire
from inferential.client.reply import Reply
from inferential.client.watchdog import Action, Decay, Fallback, Hold, Source, Watchdog, Zero
from inferential.errors import ObservationError, WireError
from inferential.types import EncodedImage, Status

SENT_S, ARRIVED_S = 10.0, 10.030
TENSORS = {
    "actions": np.array([[8.0, -4.0]], np.float32),
    "gripper": np.array([1, 2], np.int32),
    "scale": np.array([2.0], ml_dtypes.bfloat16),
}


def fresh(step_ms: float = 20.0, tensors: Mapping[str, Any] = TENSORS) -> Reply:
    frames = wire.encode_response(
        client_id="r", client_type="", model_id="m", response_id="1", timestamp_ns=1, request_id=1,
        observation_timestamp_ns=1, body=wire.encode_body(tensors, several_frames=False),
    )  # fmt: skip
    response = wire.parse_response(frames[1], frames[2:])
    return Reply("m", 1, "", Status.OK, step_ms=step_ms, sent_s=SENT_S, received_s=ARRIVED_S, response=response)


def fall_back(fallback: Fallback | None, since_arrival_ms: float, *, reply: Reply | None = None) -> Action:
    dog = Watchdog(fallback)
    dog.fresh(reply or fresh(), ARRIVED_S)
    return dog.fall_back(Status.LINK_LOST, ARRIVED_S + since_arrival_ms / 1e3)


def test_a_fresh_answer() -> None:
    reply = fresh()
    action = Watchdog(Hold(100)).fresh(reply, ARRIVED_S + 0.015)
    assert action.source is Source.FRESH
    assert action.status == Status.OK
    assert action.reply is reply
    assert action.age_ms == pytest.approx(45)
    assert action.steps_late == 2
    np.testing.assert_array_equal(action.tensors["actions"], [[8, -4]])


@pytest.mark.parametrize("fallback", [None, Decay(half_life_ms=50), Hold(max_ms=0)], ids=str)
def test_a_tensor_that_cannot_be_read_here_is_left_out(fallback: Fallback | None) -> None:
    image = images.encode_png(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    broken = EncodedImage(image.data[:-200], image.shape, image.encoding)
    reply = fresh(tensors={"actions": TENSORS["actions"], "image": broken})
    with pytest.raises(WireError):
        reply["image"]
    action = fall_back(fallback, 10, reply=reply)
    assert action.source in (Source.ZERO, Source.DECAY)
    assert action.tensors.keys() == {"actions"}


def test_hold_keeps_the_last_tensors_for_a_while_and_then_gives_zeros() -> None:
    held = fall_back(Hold(max_ms=100), 100)
    assert (held.source, held.status) == (Source.HOLD, Status.LINK_LOST)
    assert held.age_ms == pytest.approx(130)
    assert held.steps_late == 6
    np.testing.assert_array_equal(held.tensors["actions"], [[8, -4]])
    over = fall_back(Hold(max_ms=100), 100.1)
    assert over.source is Source.ZERO
    assert over.age_ms == pytest.approx(130.1)
    np.testing.assert_array_equal(over.tensors["actions"], [[0, 0]])
    assert over.tensors["gripper"].dtype == np.int32


def test_decay_halves_floating_point_tensors_and_holds_others() -> None:
    action = fall_back(Decay(half_life_ms=50), 100)
    assert action.source is Source.DECAY
    np.testing.assert_allclose(action.tensors["actions"], [[2, -1]], rtol=1e-6)
    assert action.tensors["actions"].dtype == np.float32
    assert action.tensors["scale"].dtype == ml_dtypes.bfloat16
    assert float(action.tensors["scale"][0]) == 0.5
    np.testing.assert_array_equal(action.tensors["gripper"], [1, 2])


def test_zero_is_shaped_like_the_last_fresh_answer() -> None:
    action = fall_back(Zero(template={"other": np.ones(3)}), 1)
    assert action.source is Source.ZERO
    assert set(action.tensors) == set(TENSORS)
    assert action.tensors["actions"].shape == (1, 2)
    assert not action.tensors["actions"].any()


@pytest.mark.parametrize(
    "make", [Zero, lambda **t: Hold(50, **t), lambda **t: Decay(50, **t)], ids=["zero", "hold", "decay"]
)
def test_before_the_first_answer_the_template_counts(make: Any) -> None:
    action = Watchdog(make(template={"actions": np.ones((1, 2), np.float32)})).fall_back(Status.TIMED_OUT, 5.0)
    assert (action.source, action.age_ms, action.steps_late, action.reply) == (Source.ZERO, 0.0, 0, None)
    np.testing.assert_array_equal(action.tensors["actions"], np.zeros((1, 2), np.float32))
    nothing = Watchdog(make()).fall_back(Status.TIMED_OUT, 5.0)
    assert (nothing.source, dict(nothing.tensors), nothing.age_ms) == (Source.NONE, {}, 0.0)


def test_a_callback_gets_the_last_reply_and_its_age() -> None:
    seen: list[tuple[Reply | None, float]] = []

    def callback(reply: Reply | None, age_ms: float) -> Mapping[str, Any]:
        seen.append((reply, age_ms))
        return {"actions": np.ones(1)}

    dog = Watchdog(callback)
    assert dog.fall_back(None, 5.0).source is Source.CALLBACK
    reply = fresh()
    dog.fresh(reply, ARRIVED_S)
    action = dog.fall_back(None, ARRIVED_S + 0.010)
    assert (action.age_ms, action.steps_late) == (0.0, 0)
    assert list(action.tensors) == ["actions"]
    assert seen == [(None, 0.0), (reply, pytest.approx(40))]


def test_without_step_ms_nothing_is_late() -> None:
    assert fall_back(Hold(100), 50, reply=fresh(step_ms=0.0)).steps_late == 0


def test_an_empty_template_is_none() -> None:
    assert Watchdog(Zero({})).fall_back(None, 1.0).source is Source.NONE


def test_a_template_may_be_anything_that_makes_an_array() -> None:
    action = Watchdog(Hold(1, {"actions": [[1.0, 2.0]]})).fall_back(None, 1.0)
    assert action.tensors["actions"].tolist() == [[0.0, 0.0]]


def test_without_a_declared_fallback_it_is_zero() -> None:
    assert fall_back(None, 10).source is Source.ZERO


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Hold(-1), "max_ms=-1"),
        (lambda: Hold(float("nan")), "max_ms=nan"),
        (lambda: Hold("x"), "max_ms='x'"),  # type: ignore[arg-type]
        (lambda: Decay(0), "half_life_ms=0"),
        (lambda: Decay(float("inf")), "half_life_ms=inf"),
        (lambda: Decay("x"), "half_life_ms='x'"),  # type: ignore[arg-type]
        (lambda: Watchdog("hold"), "'hold'"),  # type: ignore[arg-type]
        (lambda: Watchdog(Hold), "Hold(...)"),
        (lambda: Watchdog(Zero(5)), "template is 5; it must be a dict"),  # type: ignore[arg-type]
        (lambda: Watchdog(Zero({5: np.zeros(1)})), "the name 5"),  # type: ignore[dict-item]
        (lambda: Watchdog(Zero({"actions": "stand still"})), "template['actions'] is 'stand still'"),
        (lambda: Watchdog(Hold(1, {"actions": object()})), "template['actions'] is <object"),
        (lambda: Watchdog(Hold(1, {"actions": [[1], [2, 3]]})), "template['actions'] is [[1], [2, 3]]"),
    ],
)
def test_a_fallback_that_is_none_is_refused(make: Any, says: str) -> None:
    with pytest.raises(ObservationError, match=re.escape(says)):
        make()


@pytest.mark.parametrize("step_ms", [1e-310, 1e-46, 1e-20])
def test_a_step_that_lasts_next_to_no_time(step_ms: float) -> None:
    assert fall_back(Hold(100), 50, reply=fresh(step_ms=step_ms)).steps_late == 10**18


def test_a_bare_array_of_a_callback_is_named_as_a_models() -> None:
    action = Watchdog(lambda reply, age_ms: np.ones(7)).fall_back(None, 5.0)
    np.testing.assert_array_equal(action.tensors["actions"], np.ones(7))
