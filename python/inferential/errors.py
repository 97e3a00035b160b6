"""The exceptions of this package: one class for each thing a caller can do about it."""

from __future__ import annotations

MAX_DESCRIPTION = 2000


def describe(error: BaseException) -> str:
    """What an exception says, as a reply can carry it: UTF-8 and at most MAX_DESCRIPTION characters, whatever the model put into it."""
    name = type(error).__name__
    try:
        text = str(error)
    except Exception:
        text = ""
    if not text:
        return name
    if not isinstance(error, InferentialError):
        text = f"{name}: {text}"
    if len(text) > MAX_DESCRIPTION:
        text = text[: MAX_DESCRIPTION - 3] + "..."
    return text.encode(errors="replace").decode()


class InferentialError(Exception):
    """Root of every exception that this package raises on purpose."""


class ConfigError(InferentialError):
    """A setting is wrong. The message names the setting, its value and what it may be."""


class WireError(InferentialError):
    """A message breaks the protocol.

    Attributes:
        field: name of the offending field or tensor, as in docs/protocol.md.
        request_id: the request it belongs to, 0 where it could not be read.
    """

    def __init__(self, field: str, message: str, request_id: int = 0) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.request_id = request_id


class ObservationError(InferentialError, ValueError):
    """An argument of observe() is wrong: a program's mistake, found before anything is sent."""


class ConnectionClosedError(InferentialError):
    """The connection was closed; make a new one."""


class ConcurrentWaitError(InferentialError):
    """Two waiters on one model, or two threads on one connection at the same time."""


class MissingDependencyError(InferentialError, ImportError):
    """An optional package is needed. The message names the extra to install."""


class ModelError(InferentialError):
    """A model raised, or returned what is no result."""


class UnavailableError(InferentialError):
    """No live replica of a model can take a call now."""
