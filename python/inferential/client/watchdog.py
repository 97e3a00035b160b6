"""What a robot does without a fresh answer (docs/protocol.md, section 6.7): the declared fallback. No I/O, no clock, no thread."""

from __future__ import annotations

import enum
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from inferential.client.reply import Reply
from inferential.errors import MissingDependencyError, ObservationError, WireError
from inferential.types import DType, Status, is_number
from inferential.wire import wire_dtype

logger = logging.getLogger("inferential.client")

Array = npt.NDArray[Any]

_MOST_STEPS = 1e18  # where a step lasts next to no time
_FLOATS = frozenset(
    {DType.FLOAT16, DType.FLOAT32, DType.FLOAT64, DType.BFLOAT16, DType.FLOAT8_E4M3FN, DType.FLOAT8_E5M2}
)


class Source(enum.Enum):
    """Where an action's tensors come from."""

    FRESH = "fresh"
    HOLD = "hold"
    DECAY = "decay"
    ZERO = "zero"
    CALLBACK = "callback"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Zero:
    """Zeros shaped like the last fresh tensors, before the first like `template` (name -> array)."""

    template: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """The last fresh tensors for at most `max_ms` since they arrived, then as Zero."""

    max_ms: float
    template: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not (is_number(self.max_ms) and self.max_ms >= 0):  # NaN too
            raise ObservationError(f"Hold(max_ms={self.max_ms!r}): it must be 0 or more")


@dataclass(frozen=True, slots=True)
class Decay:
    """The last fresh tensors, floating point ones halved every `half_life_ms` since they arrived; before the first as Zero."""

    half_life_ms: float
    template: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not (is_number(self.half_life_ms) and 0 < self.half_life_ms < math.inf):  # NaN too
            raise ObservationError(f"Decay(half_life_ms={self.half_life_ms!r}): it must be above 0")


Callback: TypeAlias = "Callable[[Reply | None, float], Mapping[str, Any]]"
"""Called with the last fresh reply (None before the first) and its age in ms; returns name -> array."""
Fallback: TypeAlias = "Hold | Decay | Zero | Callback"


@dataclass(frozen=True, slots=True)
class Action:
    """What to do now.

    Attributes:
        tensors: name -> array; empty with NONE.
        source: where they come from.
        age_ms: since the observation that they answer was sent; 0 with CALLBACK, and without any reply.
        steps_late: how many entries of an action chunk have gone by since then; 0 without step_ms.
        reply: the reply they come from, None where there is none.
        status: OK when fresh, else why not: the status that ended this act's wait (LINK_LOST, TIMED_OUT, REJECTED, ...);
            None where nothing was outstanding, or a timeout of 0 found nothing yet.
    """

    tensors: Mapping[str, Array]
    source: Source
    age_ms: float
    steps_late: int
    reply: Reply | None
    status: Status | None


class Watchdog:
    """The fallback of one model handle, and the last fresh reply that it works from."""

    def __init__(self, fallback: Fallback | None) -> None:
        declared = isinstance(fallback, (Hold, Decay, Zero))
        if not (fallback is None or declared or callable(fallback)) or isinstance(fallback, type):
            raise ObservationError(
                f"fallback is {fallback!r}; it must be a callable or one of Hold(...), Decay(...) and Zero()"
            )
        self._fallback: Fallback = Zero() if fallback is None else fallback
        self._last: Reply | None = None
        self._unreadable: set[str] = set()  # told once
        template = getattr(fallback, "template", None) if declared else None
        if not isinstance(template, Mapping | None):
            raise ObservationError(f"fallback: template is {template!r}; it must be a dict of name -> array")
        self._template = {} if template is None else {key: _template_array(key, v) for key, v in template.items()}

    def fresh(self, reply: Reply, now: float) -> Action:
        """A fresh answer."""
        self._last = reply
        return self._action(reply, Source.FRESH, reply, Status.OK, now)

    def fall_back(self, status: Status | None, now: float) -> Action:
        """What was declared for this case."""
        last, fallback = self._last, self._fallback
        if isinstance(fallback, (Hold, Decay, Zero)):
            if last is not None and not isinstance(fallback, Zero):
                since_ms = (now - last.received_s) * 1e3
                if isinstance(fallback, Decay):
                    factor = 0.5 ** (since_ms / fallback.half_life_ms)
                    return self._action(
                        {k: _scaled(v, factor) for k, v in self._arrays(last).items()}, Source.DECAY, last, status, now
                    )
                if since_ms <= fallback.max_ms:
                    return self._action(last, Source.HOLD, last, status, now)
            if last is None and not self._template:
                return Action({}, Source.NONE, 0.0, 0, None, status)
            return self._action(
                _zeros_like(self._template if last is None else self._arrays(last)), Source.ZERO, last, status, now
            )
        age_ms = 0.0 if last is None else (now - last.sent_s) * 1e3
        return Action(by_name(fallback(last, age_ms)), Source.CALLBACK, 0.0, 0, last, status)

    def _arrays(self, reply: Reply) -> dict[str, Array]:
        """A reply's tensors, without those that cannot be read here: a robot that does not use them must have an action all the same."""
        arrays: dict[str, Array] = {}
        for key in reply:
            try:
                arrays[key] = reply[key]
            except (WireError, MissingDependencyError) as e:
                if key not in self._unreadable:
                    self._unreadable.add(key)
                    logger.warning("fallback: left out of actions: %s", e)
        return arrays

    def _action(
        self, tensors: Mapping[str, Array], source: Source, reply: Reply | None, status: Status | None, now: float
    ) -> Action:
        if reply is None:
            return Action(tensors, source, 0.0, 0, None, status)
        age_ms = (now - reply.sent_s) * 1e3
        late = min(age_ms // reply.step_ms, _MOST_STEPS) if reply.step_ms else 0.0
        return Action(tensors, source, age_ms, int(late), reply, status)


def _scaled(array: Array, factor: float) -> Array:
    if wire_dtype(array.dtype) not in _FLOATS:
        return array
    return (array.astype(np.float64) * factor).astype(array.dtype)


def by_name(tensors: Any) -> Any:
    """What a callback returned; a bare array is `actions`, as from a model."""
    return {"actions": tensors} if isinstance(tensors, np.ndarray) else tensors


def _template_array(key: str, value: Any) -> Array:
    if not isinstance(key, str):
        raise ObservationError(f"fallback: template has the name {key!r}; it must be a string")
    try:
        array = np.asarray(value)
    except ValueError:  # nested lists of different lengths
        raise ObservationError(f"fallback: template[{key!r}] is {value!r}; it must be an array") from None
    if wire_dtype(array.dtype.newbyteorder("=")) is None:
        raise ObservationError(
            f"fallback: template[{key!r}] is {value!r}, of dtype {array.dtype}; it must be an array of one of the wire's "
            "types, as in np.zeros(7, np.float32)"
        )
    return array


def _zeros_like(template: Mapping[str, Array]) -> dict[str, Array]:
    return {key: np.zeros_like(array) for key, array in template.items()}
