from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import numpy as np
import pytest

from inferential import images, wire
from inferential.errors import MAX_DESCRIPTION, ConfigError, ModelError
from inferential.model_call import Context, Item, ModelCall
from inferential.scheduling.request import CallResult, ItemError
from inferential.types import Body, EncodedImage, Observation, Status


def item(x: Any = 1.0, deadline: float = float("inf"), **fields: Any) -> Item:
    defaults: dict[str, Any] = {"request_id": 3, "timestamp_ns": 9, "priority": 2, "metadata": {"task": "fold"}}
    packed = wire.pack_tensors(
        {"x": x if isinstance(x, EncodedImage) else np.asarray(x)}, several_frames=False, timestamps_ns={"x": 8}
    )
    envelope = wire.encode_observation(Observation("c", "franka", "m", **(defaults | fields)), packed)
    frames = [bytes(f) for f in packed.frames]
    return Item(wire.parse_observation(envelope, [len(f) for f in frames]), frames, deadline)


def values(result: CallResult) -> list[Any]:
    """Arrays by name of each item, or its error text."""
    out: list[Any] = []
    for body in result.items:
        if isinstance(body, ItemError):
            out.append(body.message)
            continue
        assert isinstance(body, Body)
        r = wire.parse_response(body.envelope, body.frames or [b""])
        out.append({t.key: wire.tensor_array(t, r.frames).tolist() for t in r.tensors} | dict(r.metadata))
    return out


def run(model: Any, *items: Item) -> list[Any]:
    call = ModelCall(model, "m")
    return values(asyncio.run(call.run_async(items)) if call.is_async else call.run(items))


class Infer:
    def infer(self, obs: dict[str, Any]) -> Any:
        return {"y": obs["x"] * 2, "note": obs["task"]}


class InferAsync:
    async def infer(self, obs: dict[str, Any]) -> Any:
        await asyncio.sleep(0)
        return {"y": obs["x"] * 2, "note": obs["task"]}


class Callable:
    def __call__(self, obs: dict[str, Any]) -> Any:
        return {"y": obs["x"] * 2, "note": obs["task"]}


class CallableAsync:
    async def __call__(self, obs: dict[str, Any]) -> Any:
        return {"y": obs["x"] * 2, "note": obs["task"]}


class Both(Infer):
    def __call__(self, obs: dict[str, Any]) -> Any:
        raise AssertionError("infer goes first")


@pytest.mark.parametrize("model", [Infer(), InferAsync(), Callable(), CallableAsync(), Both(), Callable().__call__])
def test_all_kinds_of_models(model: Any) -> None:
    assert run(model, item(2.0)) == [{"y": 4.0, "note": "fold"}]


def test_a_bare_array_is_named_actions() -> None:
    assert run(lambda obs: [1, 2], item()) == [{"actions": [1, 2]}]
    assert run(lambda obs: obs["x"], item(5)) == [{"actions": 5}]


def test_inputs_are_read_only() -> None:
    def cheat(obs: dict[str, Any]) -> Any:
        obs["x"][...] = 1

    assert "read-only" in run(cheat, item())[0]


def test_a_second_argument_is_the_context() -> None:
    seen: list[Context] = []

    def model(obs: dict[str, Any], context: Context) -> Any:
        seen.append(context)
        return obs["x"]

    run(model, item(deadline=time.monotonic() + 100, urgency=0.5, steps_remaining=4, step_ms=10.0, slot="arm"))
    (context,) = seen
    assert (context.client_id, context.client_type, context.model_id, context.request_id) == ("c", "franka", "m", 3)
    assert (context.timestamp_ns, dict(context.tensor_timestamps_ns), context.priority) == (9, {"x": 8}, 2)
    assert (context.urgency, context.steps_remaining, context.step_ms, context.slot) == (0.5, 4, 10.0, "arm")
    assert 90_000 < context.remaining_ms < 100_000


def test_a_second_argument_with_a_default_is_the_models_own() -> None:
    def model(obs: dict[str, Any], gain: float = 2.0) -> Any:
        return obs["x"] * gain

    def named(obs: dict[str, Any], context: Context | None = None) -> Any:
        assert context is not None
        return context.priority

    assert run(model, item(3.0)) == [{"actions": 6.0}]
    assert run(named, item()) == [{"actions": 2}]


class Batch:
    """Counts its calls; fails for a batch that does not stack or has a negative value in it."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def infer_batch(self, batch: list[dict[str, Any]]) -> list[Any]:
        self.sizes.append(len(batch))
        stacked = np.stack([o["x"] for o in batch])
        if (stacked < 0).any():
            raise ValueError("negative")
        return list(stacked * 2)


class BatchAsync(Batch):
    async def infer_batch(self, batch: list[dict[str, Any]]) -> list[Any]:  # type: ignore[override]
        return super().infer_batch(batch)


@pytest.mark.parametrize("kind", [Batch, BatchAsync])
def test_a_batch_is_one_call(kind: type[Batch]) -> None:
    model = kind()
    assert run(model, item(1.0), item(2.0), item(3.0)) == [{"actions": 2.0}, {"actions": 4.0}, {"actions": 6.0}]
    assert model.sizes == [3]
    assert run(model, item(1.0)) == [{"actions": 2.0}]


@pytest.mark.parametrize("kind", [Batch, BatchAsync])
def test_shapes_that_do_not_stack_run_in_groups(kind: type[Batch]) -> None:
    model = kind()
    found = run(model, item([1.0]), item([1.0, 2.0]), item([3.0]))
    assert found == [{"actions": [2.0]}, {"actions": [2.0, 4.0]}, {"actions": [6.0]}]
    assert model.sizes == [3, 2, 1]


@pytest.mark.parametrize("kind", [Batch, BatchAsync])
def test_one_bad_item_fails_alone(kind: type[Batch]) -> None:
    found = run(kind(), item(1.0), item(-1.0), item(3.0))
    assert found == [{"actions": 2.0}, "ValueError: negative", {"actions": 6.0}]


def test_an_item_whose_result_is_an_exception_or_no_result_fails_alone() -> None:
    class Model:
        def infer_batch(self, batch: list[Any]) -> list[Any]:
            return [1, ValueError("mine"), object(), 4][: len(batch)]

    found = run(Model(), item(), item(), item(), item())
    assert found[0] == {"actions": 1}
    assert found[1] == "ValueError: mine"
    assert "no result" in found[2]
    assert found[3] == {"actions": 4}


def test_a_batch_of_the_wrong_length_is_retried_singly_and_told() -> None:
    class Model:
        def infer_batch(self, batch: list[Any]) -> list[Any]:
            return []

    assert run(Model(), item(), item()) == ["infer_batch returned 0 results for 1 observations"] * 2


def test_contexts_of_a_batch_are_a_list() -> None:
    class Model:
        def infer_batch(self, batch: list[Any], contexts: list[Context]) -> list[Any]:
            return [c.request_id for c in contexts]

    assert run(Model(), item(request_id=5), item(request_id=6)) == [{"actions": 5}, {"actions": 6}]


@pytest.mark.parametrize("model", [Infer(), InferAsync()])
def test_a_model_that_raises_is_logged_once(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    call = ModelCall(model, "m")
    for _ in range(5):
        result = asyncio.run(call.run_async([item(metadata={})]))
        assert values(result) == ["KeyError: 'task'; the observation holds 'x'"]
    assert len([r for r in caplog.records if "failed" in r.message]) == 1


class Exits:
    """A model that thinks it owns its process."""

    def infer(self, obs: dict[str, Any]) -> Any:
        sys.exit("no weights")


class ExitsAsync:
    async def infer(self, obs: dict[str, Any]) -> Any:
        sys.exit("no weights")


class ExitsBatch:
    def infer_batch(self, batch: list[Any]) -> Any:
        sys.exit("no weights")


@pytest.mark.parametrize(
    "model",
    [Exits(), ExitsAsync(), ExitsBatch(), type("WithContext", (), {"infer": lambda s, o, c: sys.exit("no weights")})()],
)
def test_a_model_that_exits_has_failed(model: Any) -> None:
    assert run(model, item()) == ["SystemExit: no weights"]
    assert run(model, item(), item()) == ["SystemExit: no weights"] * 2


class Panic(BaseException):
    """As extensions in other languages raise it where they are broken."""


def panics(*_: Any) -> Any:
    raise Panic("at the disco")


@pytest.mark.parametrize("method", ["infer", "infer_batch"])
def test_nothing_that_a_model_raises_gets_past_it(method: str) -> None:
    async def panics_async(*_: Any) -> Any:
        panics()

    for function in (panics, panics_async):
        model = type("Model", (), {method: function})()
        assert run(model, item()) == ["Panic: at the disco"]
        assert run(model, item(), item()) == ["Panic: at the disco"] * 2


def test_what_a_batch_has_changed_is_not_what_is_tried_again() -> None:
    class Model:
        def infer(self, obs: dict[str, Any]) -> Any:
            if obs["x"] < 0:
                raise ValueError("negative")
            return obs["x"]

        def infer_batch(self, batch: list[Any]) -> Any:
            for obs in batch:
                obs["x"] = obs.pop("x") * 2
            if min(obs["x"] for obs in batch) < 0:
                raise ValueError("one of them is negative")
            return [obs["x"] for obs in batch]

    assert run(Model(), item(1.0), item(2.0)) == [{"actions": 2.0}, {"actions": 4.0}]
    assert run(Model(), item(1.0), item(-1.0)) == [{"actions": 1.0}, "ValueError: negative"]


@pytest.mark.parametrize("result", [{"actions": np.zeros((1, 7))}, {"a": 1, "b": 2}, "a", "ab", b"a"], ids=str)
def test_a_batch_of_results_is_no_mapping_and_no_text(result: Any) -> None:
    model = type("Model", (), {"infer_batch": lambda self, batch: result})()
    for found in run(model, *[item()] * len(result)):
        assert f"infer_batch returned a {type(result).__name__}" in found


def test_an_error_is_text_that_a_reply_can_carry() -> None:
    class UnspeakableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def raises(error: BaseException) -> Any:
        def model(obs: dict[str, Any]) -> Any:
            raise error

        [text] = run(model, item())
        wire.encode_response(
            client_id="c",
            client_type="",
            model_id="m",
            response_id="r",
            timestamp_ns=1,
            request_id=1,
            observation_timestamp_ns=1,
            status=Status.MODEL_ERROR,
            error=text,
        )
        return text

    assert raises(ValueError("half a \ud800 character")) == "ValueError: half a ? character"
    assert raises(UnspeakableError()) == "UnspeakableError"
    assert raises(KeyError()) == "KeyError"
    assert len(raises(ValueError("x" * 100_000))) == MAX_DESCRIPTION


def test_text_that_is_no_utf_8_fails_alone() -> None:
    class Model:
        def infer_batch(self, batch: list[Any]) -> list[Any]:
            return [{"note": o["task"].replace("!", "\ud800")} for o in batch]

    found = run(Model(), item(), item(metadata={"task": "!"}))
    assert found[0] == {"note": "fold"}
    assert "no result" in found[1]


def test_a_model_that_returns_nothing_is_told_so() -> None:
    [error] = run(lambda obs: None, item())
    assert "returned None" in error


def test_a_broken_image_fails_alone() -> None:
    good = images.encode_png(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    bad = EncodedImage(good.data[:-200], good.shape, good.encoding)

    class Model:
        def infer_batch(self, batch: list[Any]) -> list[Any]:
            return [o["x"].shape[0] for o in batch]

    found = run(Model(), item(good), item(bad))
    assert found[0] == {"actions": 16}
    assert "tensor 'x'" in found[1]
    (found_alone,) = run(Model(), item(bad))  # nor is a model called for nothing
    assert "tensor 'x'" in found_alone


def test_sync_code_that_hands_out_a_coroutine_is_told_what_to_do() -> None:
    async def later() -> int:
        await asyncio.sleep(0)
        return 1

    for items in ([item()], [item(), item()]):
        found = values(ModelCall(lambda obs: later(), "m").run(items))
        assert all("async" in error for error in found)


def test_inference_time_is_the_model_alone() -> None:
    def model(obs: dict[str, Any]) -> Any:
        time.sleep(0.02)
        return 1

    assert 0.02 <= ModelCall(model, "m").run([item()]).inference_s < 5.0


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (Infer, "the class Infer"),
        (object(), "neither"),
        (type("T", (), {"infer": 3})(), "infer is int"),
        (3, "neither"),
    ],
)
def test_what_is_no_model(model: Any, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        ModelCall(model, "m")


def test_warm_up() -> None:
    class Model(Infer):
        warm = False

        async def warm_up(self) -> None:
            self.warm = True

    model = Model()
    asyncio.run(ModelCall(model, "m").warm_up())
    assert model.warm


def test_a_warm_up_that_exits_has_failed() -> None:
    class Model(Infer):
        def warm_up(self) -> None:
            sys.exit("no weights")

    with pytest.raises(ModelError, match="no weights"):
        asyncio.run(ModelCall(Model(), "m").warm_up())
