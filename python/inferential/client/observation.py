"""The arguments of observe(), checked before anything is sent (docs/protocol.md, sections 3 and 6.2). No I/O, no clock."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from inferential.errors import ObservationError
from inferential.types import MAX_METADATA, MAX_NAME_BYTES, MAX_PRIORITY, MAX_TENSORS, EncodedImage, as_float, is_number

ImageFormat: TypeAlias = "str | tuple[str, int]"
"""`"jpeg"`, `"png"`, or `("jpeg", quality)`."""
Encode: TypeAlias = "ImageFormat | Mapping[str, ImageFormat]"
"""One format for every image among the tensors, or a format by name."""

_MAX_FLOAT32 = float(np.finfo(np.float32).max)  # a greater one would travel as infinity


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a model handle says with each observation that does not say otherwise. Fields: see Connection.model()."""

    model_id: str
    latency_budget_ms: float = 50.0
    priority: int = 1
    step_ms: float = 0.0
    slot: str = ""
    latest_only: bool = False

    def __post_init__(self) -> None:
        check_name("model_id", self.model_id)
        if not self.model_id:
            raise ObservationError("model_id must not be empty")
        budget = check_number("latency_budget_ms", self.latency_budget_ms, 0.0, _MAX_FLOAT32)
        object.__setattr__(self, "latency_budget_ms", budget)
        object.__setattr__(self, "priority", check_priority(self.priority))
        object.__setattr__(self, "step_ms", check_number("step_ms", self.step_ms, 0.0, _MAX_FLOAT32))
        check_name("slot", self.slot)
        object.__setattr__(self, "latest_only", check_flag("latest_only", self.latest_only))


@dataclass(slots=True)
class Draft:
    """An observation whose arguments were checked, before it has a request_id."""

    urgency: float
    steps_remaining: int | None
    latency_budget_ms: float
    priority: int
    step_ms: float
    slot: str
    latest_only: bool
    timestamp_ns: int | None
    timestamps_ns: Mapping[str, int] | None
    tensors: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def draft(
    defaults: Defaults,
    values: Mapping[str, Any],
    *,
    urgency: float = 0.0,
    steps_remaining: int | None = None,
    latency_budget_ms: float | None = None,
    priority: int | None = None,
    step_ms: float | None = None,
    slot: str | None = None,
    latest_only: bool | None = None,
    timestamp_ns: int | None = None,
    timestamps_ns: Mapping[str, int] | None = None,
    tensors: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    encode: Encode | None = None,
) -> Draft:
    """Sorts values into tensors and metadata and checks everything that a server would refuse.

    Raises:
        ObservationError: names the argument, what it is and what would be right.
        MissingDependencyError: `encode` needs an image codec.
    """
    d = Draft(
        check_number("urgency", urgency, 0.0, 1.0),
        None if steps_remaining is None else check_integer("steps_remaining", steps_remaining, 2**32 - 1),
        defaults.latency_budget_ms
        if latency_budget_ms is None
        else check_number("latency_budget_ms", latency_budget_ms, 0.0, _MAX_FLOAT32),
        defaults.priority if priority is None else check_priority(priority),
        defaults.step_ms if step_ms is None else check_number("step_ms", step_ms, 0.0, _MAX_FLOAT32),
        defaults.slot if slot is None else check_name("slot", slot),
        defaults.latest_only if latest_only is None else check_flag("latest_only", latest_only),
        None if timestamp_ns is None else check_integer("timestamp_ns", timestamp_ns, 2**64 - 1),
        None,
    )
    for key, value in values.items():
        if isinstance(value, np.ndarray):
            d.tensors[key] = value
        elif isinstance(value, str):
            d.metadata[key] = value
        else:
            d.tensors[key] = _tensor(key, value, "strings (metadata)")
    if tensors is not None:
        _add_tensors(d, tensors)
    if metadata is not None:
        _add_metadata(d, metadata)
    if len(d.tensors) > MAX_TENSORS:
        raise ObservationError(f"{len(d.tensors)} tensors; an observation may have {MAX_TENSORS}")
    if len(d.metadata) > MAX_METADATA:
        raise ObservationError(f"{len(d.metadata)} metadata strings; an observation may have {MAX_METADATA}")
    for key in d.metadata:
        if key in d.tensors:
            raise ObservationError(f"{key!r} is the name of a tensor and of a metadata string; rename one")
    if timestamps_ns is not None:
        if not isinstance(timestamps_ns, Mapping):
            raise ObservationError(
                f"timestamps_ns is a {type(timestamps_ns).__name__}; it must map names of tensors to nanoseconds"
            )
        d.timestamps_ns = measured = {}
        for key, value in timestamps_ns.items():
            if key not in d.tensors:
                raise ObservationError(f"timestamps_ns names {key!r}, but the tensors are {_names(d.tensors)}")
            measured[key] = check_integer(f"timestamps_ns[{key!r}]", value, 2**64 - 1)
    if encode is not None:
        _encode(d.tensors, encode)
    return d


def _add_tensors(d: Draft, tensors: Mapping[str, Any]) -> None:
    if not isinstance(tensors, Mapping):
        raise ObservationError(f"tensors is a {type(tensors).__name__}; it must map names to arrays")
    for key, value in tensors.items():
        if not isinstance(key, str) or not key:
            raise ObservationError(f"tensors has the key {key!r}; names are non-empty strings")
        if key in d.tensors:
            raise ObservationError(f"tensor {key!r} is given twice, as a keyword and in tensors")
        d.tensors[key] = value if isinstance(value, np.ndarray) else _tensor(key, value, "")


def _add_metadata(d: Draft, metadata: Mapping[str, str]) -> None:
    if not isinstance(metadata, Mapping):
        raise ObservationError(f"metadata is a {type(metadata).__name__}; it must map names to strings")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ObservationError(f"metadata[{key!r}] is {_described(value)}; names and values are strings")
        if key in d.metadata:
            raise ObservationError(f"{key!r} is given twice, as a keyword and in metadata")
        d.metadata[key] = value


def _tensor(key: str, value: Any, or_else: str) -> Any:
    if isinstance(value, (np.ndarray, np.generic, EncodedImage)):
        return value
    if hasattr(value, "__array__"):
        try:
            return np.asarray(value)
        except Exception as e:
            raise ObservationError(f"{key!r} is a {_described(value)} that does not become an array: {e}") from e
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except Exception as e:
            raise ObservationError(f"{key!r} is a {_described(value)} that does not become an array: {e}") from e
    wanted = f"arrays (tensors) or {or_else}" if or_else else "arrays"
    if value is None:
        hint = "leave it out"
    elif isinstance(value, (bytes, bytearray, memoryview)):
        hint = f"np.frombuffer({key}, np.uint8) makes it one"
    elif or_else and isinstance(value, (bool, int)):
        hint = f"np.int32({key}) makes it a tensor, str({key}) makes it metadata"
    else:
        hint = f"np.asarray({key}, dtype=np.float32) makes it one"
    raise ObservationError(f"argument {key!r} is {_described(value)}; observe() takes {wanted}: {hint}")


def _encode(tensors: dict[str, Any], encode: Encode) -> None:
    if isinstance(encode, Mapping):
        for key, how in encode.items():
            if key not in tensors:
                raise ObservationError(f"encode names {key!r}, but the tensors are {_names(tensors)}")
            tensors[key] = _encoded(key, tensors[key], how)
        return
    found = [key for key, value in tensors.items() if _is_image(value)]
    if not found:
        raise ObservationError(
            f"encode={encode!r}, but none of {_names(tensors)} is an image: uint8 of shape (height, width, 1, 3 or 4)"
        )
    for key in found:
        tensors[key] = _encoded(key, tensors[key], encode)


def _is_image(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] in (1, 3, 4)


def _encoded(key: str, value: Any, how: ImageFormat) -> EncodedImage:
    from inferential import images

    name, setting = how if isinstance(how, tuple) and len(how) == 2 else (how, None)
    if isinstance(value, EncodedImage):
        raise ObservationError(f"tensor {key!r} is encoded already; leave it out of encode")
    try:
        if name == "jpeg":
            return images.encode_jpeg(value) if setting is None else images.encode_jpeg(value, quality=setting)
        if name == "png":
            return images.encode_png(value) if setting is None else images.encode_png(value, compress_level=setting)
    except (ObservationError, TypeError, ValueError) as e:
        raise ObservationError(f"tensor {key!r}: {e}") from None
    raise ObservationError(f"encode for {key!r} is {how!r}; it is 'jpeg', 'png', ('jpeg', quality) or ('png', level)")


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """`value` as a float in low..high."""
    if type(value) is not float:
        if not is_number(value):
            hint = f"; an array of that name goes into tensors={{{name!r}: ...}}" if hasattr(value, "__array__") else ""
            raise ObservationError(f"{name} is {_described(value)}; it must be a number{hint}")
        value = as_float(value)
    if not low <= value <= high:  # NaN too
        wanted = f"{low:g}..{high:g}"
        raise ObservationError(f"{name} is {value!r}; it must be {wanted}")
    found: float = value
    return found


def check_integer(name: str, value: Any, high: int) -> int:
    """`value` as an int in 0..high."""
    if type(value) is not int:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
            hint = f"; an array of that name goes into tensors={{{name!r}: ...}}" if hasattr(value, "__array__") else ""
            raise ObservationError(f"{name} is {_described(value)}; it must be a whole number{hint}")
        value = int(value)
    if not 0 <= value <= high:
        raise ObservationError(f"{name} is {value}; it must be 0..{high}")
    found: int = value
    return found


def check_flag(name: str, value: Any) -> bool:
    """True or False, nothing that is merely taken for one."""
    if not isinstance(value, (bool, np.bool_)):
        raise ObservationError(f"{name} is {_described(value)}; it must be True or False")
    return bool(value)


def check_priority(value: Any) -> int:
    """A priority: 0 (highest) to MAX_PRIORITY."""
    return check_integer("priority", value, MAX_PRIORITY)


def check_name(name: str, value: Any) -> str:
    """A string that fits its field."""
    if not isinstance(value, str):
        raise ObservationError(f"{name} is {_described(value)}; it must be a string")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ObservationError(f"{name} is {value!r}, which is not valid Unicode text") from None
    if size > MAX_NAME_BYTES:
        raise ObservationError(f"{name} has {size} bytes; it may have {MAX_NAME_BYTES}")
    return value


def _described(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"


def _names(tensors: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, tensors)) or "none"
