"""Serve many robots and game agents from a few shared models: observations in over ZMQ, scheduled, inferred, actions out.

Names are imported when first used, so that a robot that only connects loads pyzmq, protobuf and numpy and nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from inferential._version import __version__

if TYPE_CHECKING:
    from inferential.client.aio import AsyncConnection as AsyncConnection
    from inferential.client.aio import AsyncModel as AsyncModel
    from inferential.client.blocking import Connection as Connection
    from inferential.client.blocking import Model as Model
    from inferential.client.rate import AsyncRate as AsyncRate
    from inferential.client.rate import Rate as Rate
    from inferential.client.reply import PingResult as PingResult
    from inferential.client.reply import Reply as Reply
    from inferential.client.reply import Sent as Sent
    from inferential.client.session import LinkState as LinkState
    from inferential.client.session import Stats as Stats
    from inferential.client.watchdog import Action as Action
    from inferential.client.watchdog import Decay as Decay
    from inferential.client.watchdog import Hold as Hold
    from inferential.client.watchdog import Source as Source
    from inferential.client.watchdog import Zero as Zero
    from inferential.server import Server as Server
    from inferential.types import EncodedImage as EncodedImage
    from inferential.types import Reason as Reason
    from inferential.types import Status as Status

_MODULES = {
    "AsyncConnection": "client.aio",
    "AsyncModel": "client.aio",
    "Connection": "client.blocking",
    "Model": "client.blocking",
    "AsyncRate": "client.rate",
    "Rate": "client.rate",
    "PingResult": "client.reply",
    "Reply": "client.reply",
    "Sent": "client.reply",
    "LinkState": "client.session",
    "Stats": "client.session",
    "Action": "client.watchdog",
    "Decay": "client.watchdog",
    "Hold": "client.watchdog",
    "Source": "client.watchdog",
    "Zero": "client.watchdog",
    "Server": "server",
    "EncodedImage": "types",
    "Reason": "types",
    "Status": "types",
}

__all__ = ["__version__", *sorted(_MODULES)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as e:
        if module != "server" or (e.name or "").startswith(__name__):
            raise
        from inferential.errors import MissingDependencyError

        raise MissingDependencyError(
            f"{name} needs the package {e.name!r}, which comes with an extra: pip install 'inferential[server]'"
        ) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
