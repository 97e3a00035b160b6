"""Reply as a mapping."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from inferential import images, wire
from inferential.backends.local import local
from inferential.client.reply import PingResult, Reply, Sent
from inferential.errors import MissingDependencyError, WireError
from inferential.scheduling.order import Weights
from inferential.scheduling.request import Replica
from inferential.types import EncodedImage, Encoding, Status


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


COPIES = [copy.copy, copy.deepcopy, pickled]


def make(
    tensors: dict[str, Any], status: Status = Status.OK, error: str = "", metadata: dict[str, str] | None = None
) -> Reply:
    packed = wire.pack_tensors(tensors, several_frames=True)
    frames = wire.encode_response(
        client_id="r", client_type="", model_id="policy", response_id="1", timestamp_ns=1, request_id=1,
        observation_timestamp_ns=1, body=wire.encode_body({}, several_frames=False),
    )  # fmt: skip
    message = wire.pb.ModelResponse.FromString(frames[1])
    for entry in packed.tensors:
        message.tensors.add(**entry)
    message.metadata.update(metadata or {})
    response = wire.parse_response(message.SerializeToString(), packed.frames or [b""])
    return Reply("policy", 1, "", status, error=error, response=response)


def test_it_is_a_mapping_of_read_only_arrays() -> None:
    big = np.arange(30_000, dtype=np.float32)
    found = make({"a": np.arange(3), "big": big, "none": np.zeros((0, 2), np.uint8), "one": np.float64(2)})
    assert list(found) == ["a", "big", "none", "one"]
    assert len(found) == 4
    assert "a" in found
    assert "b" not in found
    assert found.get("b") is None
    assert dict(found.items())["one"].shape == ()
    assert found["none"].shape == (0, 2)
    assert found["a"] is found["a"]
    np.testing.assert_array_equal(found["big"], big)
    assert np.shares_memory(found["big"], big)  # a view of its frame, not a copy
    with pytest.raises(ValueError, match="read-only"):
        found["a"][0] = 1


def test_a_reply_is_true_and_hashable_even_without_arrays() -> None:
    found = make({})
    assert len(found) == 0
    assert found
    assert {found: 1}[found] == 1


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (make({"actions": np.zeros(2), "value": np.zeros(1)}), ["'action'", "'policy'", "'actions', 'value'"]),
        (make({}), ["'action'", "none"]),
        (make({}, Status.EXPIRED, "50 ms have passed"), ["EXPIRED", "50 ms have passed"]),
        (make({}, metadata={"action": "x"}), ["metadata['action']"]),
    ],
)
def test_a_missing_array_says_what_there_is(reply: Reply, says: list[str]) -> None:
    with pytest.raises(KeyError) as e:
        reply["action"]
    for words in says:
        assert words in e.value.args[0]


def test_an_array_whose_type_is_not_installed_fails_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = make({"a": np.zeros(2, np.float32), "b": np.zeros(2, ml_dtypes.bfloat16)})
    monkeypatch.setattr(wire, "_NUMPY", {k: v for k, v in wire._NUMPY.items() if v.name != "bfloat16"})
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert found["a"].shape == (2,)
    with pytest.raises(MissingDependencyError, match=r"inferential\[dtypes\]"):
        found["b"]


def test_an_image_is_decoded_when_asked_for() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    encoded = images.encode_png(picture)
    found = make({"camera": encoded, "broken": EncodedImage(encoded.data[:40], encoded.shape, encoded.encoding)})
    np.testing.assert_array_equal(found["camera"], picture)
    with pytest.raises(WireError, match="broken"):
        found["broken"]


@pytest.mark.parametrize("key", [0, None, 2.5, ("a",)])
def test_what_is_no_name_is_no_key(key: Any) -> None:
    found = make({"a": np.zeros(2)})
    with pytest.raises(KeyError, match="holds 'a'"):
        found[key]
    assert found.get(key, "nothing") == "nothing"
    assert key not in found


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_holds_all_that_the_reply_does(copied: Callable[[Any], Any]) -> None:
    tensors = {"a": np.arange(3), "big": np.zeros(30_000, np.float32), "none": np.zeros((0, 2), np.uint8)}
    reply = make(tensors, metadata={"note": "x"})
    reply.age_ms = 12.5
    found = copied(reply)
    assert list(found) == list(reply)
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(found[key], tensor)
    names = (name for name in dir(reply) if not name.startswith("_"))
    told = [name for name in names if not callable(getattr(reply, name))]
    assert {"status", "local", "age_ms", "metadata", "timing", "response_id"} <= set(told)
    assert [getattr(found, name) for name in told] == [getattr(reply, name) for name in told]


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_of_a_reply_that_was_made_here(copied: Callable[[Any], Any]) -> None:
    found = copied(Reply("policy", 3, "left", Status.TIMED_OUT, error="late", sent_s=1.0, received_s=2.0))
    assert (found.request_id, found.slot, found.status, found.error) == (3, "left", Status.TIMED_OUT, "late")
    assert (found.local, found.age_ms, len(found)) == (True, 1000.0, 0)
    assert copied(Reply("policy", 3, "", Status(4321))).status.name == "UNKNOWN_4321"


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize(
    "value",
    [
        Sent(3, Status.REJECTED, "busy"),
        PingResult(1.5, "2.0.0", {"m": True}, 2),
        EncodedImage(b"xyz", (8, 6, 3), Encoding.PNG),
        local(len, max_batch_size=4),
        Weights(0.5),
        Replica("r", "m", 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_frozen_values_can_be_copied(value: Any, copied: Callable[[Any], Any]) -> None:
    found = copied(value)
    assert found == value
    assert type(found) is type(value)


def test_repr_names_what_matters() -> None:
    assert "EXPIRED 'late'" in repr(make({}, Status.EXPIRED, "late"))
    assert "actions: FLOAT32[2]" in repr(make({"actions": np.zeros(2, np.float32)}))


def test_sent_is_true_where_one_reply_follows() -> None:
    assert Sent(1)
    assert Sent(1, Status.REJECTED)
    assert not Sent(1, Status.NOT_SENT)
