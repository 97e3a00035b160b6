"""The exceptions of this package: one class for each thing a caller can do about it."""

from __future__ import annotations


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
