"""Inferential: many robots and game agents served from a few shared models.

The names below are imported when they are first used, so that a client on a robot loads neither the server nor its dependencies.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from inferential._version import __version__

if TYPE_CHECKING:
    from inferential.backends.local import local
    from inferential.client.aio import AsyncConnection, AsyncModel
    from inferential.client.blocking import Connection, Model
    from inferential.client.rate import AsyncRate, Rate
    from inferential.client.reply import PingResult, Reply, Sent
    from inferential.client.session import LinkState, Stats
    from inferential.client.watchdog import Action, Decay, Hold, Source, Zero
    from inferential.errors import (
        ConcurrentWaitError,
        ConfigError,
        ConnectionClosedError,
        InferentialError,
        MissingDependencyError,
        ModelError,
        ObservationError,
    )
    from inferential.images import encode_jpeg, encode_png
    from inferential.model_call import Context
    from inferential.scheduling.base import register_scheduler
    from inferential.scheduling.order import register_policy
    from inferential.server import Server
    from inferential.types import EncodedImage, Reason, Status

__all__ = [
    "Action",
    "AsyncConnection",
    "AsyncModel",
    "AsyncRate",
    "ConcurrentWaitError",
    "ConfigError",
    "Connection",
    "ConnectionClosedError",
    "Context",
    "Decay",
    "EncodedImage",
    "Hold",
    "InferentialError",
    "LinkState",
    "MissingDependencyError",
    "Model",
    "ModelError",
    "ObservationError",
    "PingResult",
    "Rate",
    "Reason",
    "Reply",
    "Sent",
    "Server",
    "Source",
    "Stats",
    "Status",
    "Zero",
    "__version__",
    "encode_jpeg",
    "encode_png",
    "local",
    "register_policy",
    "register_scheduler",
]

_MODULES = {
    "Action": "client.watchdog",
    "AsyncConnection": "client.aio",
    "AsyncModel": "client.aio",
    "AsyncRate": "client.rate",
    "ConcurrentWaitError": "errors",
    "ConfigError": "errors",
    "Connection": "client.blocking",
    "ConnectionClosedError": "errors",
    "Context": "model_call",
    "Decay": "client.watchdog",
    "EncodedImage": "types",
    "Hold": "client.watchdog",
    "InferentialError": "errors",
    "LinkState": "client.session",
    "MissingDependencyError": "errors",
    "Model": "client.blocking",
    "ModelError": "errors",
    "ObservationError": "errors",
    "PingResult": "client.reply",
    "Rate": "client.rate",
    "Reason": "types",
    "Reply": "client.reply",
    "Sent": "client.reply",
    "Server": "server",
    "Source": "client.watchdog",
    "Stats": "client.session",
    "Status": "types",
    "Zero": "client.watchdog",
    "encode_jpeg": "images",
    "encode_png": "images",
    "local": "backends.local",
    "register_policy": "scheduling.order",
    "register_scheduler": "scheduling.base",
}
_OF_THE_SERVER = {"Server", "local", "register_policy", "register_scheduler"}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'inferential' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"inferential.{module}"), name)
    except ModuleNotFoundError as e:
        missing = (e.name or "").partition(".")[0]
        if name not in _OF_THE_SERVER or missing == "inferential":
            raise
        from inferential.errors import MissingDependencyError

        raise MissingDependencyError(f"{name} needs {missing}: pip install 'inferential[server]'") from e
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
