"""In which order requests go: one number per request, fixed at its arrival.

Everything that waits ages at the same rate, so an order of absolute times never changes while waiting.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from inferential.config.schema import SchedulingConfig
from inferential.errors import ConfigError
from inferential.scheduling.request import Request
from inferential.types import by_fields

logger = logging.getLogger("inferential.scheduling")


@dataclass(frozen=True, slots=True)
class Weights:
    """The settings of the order, in seconds."""

    urgency_s: float = 0.020
    overdue: float = 1.0
    overdue_cap_s: float = 0.050

    @classmethod
    def of(cls, config: SchedulingConfig) -> Weights:
        """From the settings."""
        return cls(config.urgency_weight_ms / 1e3, config.overdue_weight, config.overdue_cap_ms / 1e3)

    def __reduce__(self) -> Any:
        return by_fields(self)


Policy = Callable[[Request, float, Weights], float]
"""(request with its expiry and dry_at set, seconds its client is overdue, weights) -> key in seconds; the smallest goes first."""


def deadline(request: Request, overdue_s: float, weights: Weights) -> float:
    """When its actions run out, else when it expires; earlier by its urgency and by how overdue its client is."""
    base = request.expiry if request.dry_at is None else request.dry_at
    key = base - request.observation.urgency * weights.urgency_s
    if overdue_s > 0.0:
        key -= min(weights.overdue_cap_s, overdue_s * weights.overdue)
    return key


def expiry(request: Request, overdue_s: float, weights: Weights) -> float:  # noqa: ARG001
    """Plain earliest deadline first."""
    return request.expiry


def fifo(request: Request, overdue_s: float, weights: Weights) -> float:  # noqa: ARG001
    """First come, first served."""
    return request.arrival


_POLICIES: dict[str, Policy] = {"deadline": deadline, "expiry": expiry, "fifo": fifo}


def register_policy(name: Any, policy: Any) -> None:
    """Makes a Policy known by name (`scheduling.policy`). Replaces one of the same name. Not thread-safe: call it at start.

    Where it raises, or returns what is no finite number, the request goes by `deadline`; that is logged once.

    Raises:
        ConfigError: it cannot be called, or its name is no string.
    """
    if not isinstance(name, str):
        raise ConfigError(f"a policy's name is {name!r}; it must be a string")
    if not callable(policy):
        raise ConfigError(f"policy {name!r} is {policy!r}; it must be a function of (request, overdue_s, weights)")
    failed = False

    def guarded(request: Request, overdue_s: float, weights: Weights) -> float:
        nonlocal failed
        try:
            key = float(policy(request, overdue_s, weights))
            if not math.isfinite(key):
                raise ValueError(f"it returned {key}")
        except Exception:
            if not failed:
                failed = True
                logger.exception("policy %r failed (shown once); requests go by their deadlines", name)
            return deadline(request, overdue_s, weights)
        return key

    _POLICIES[name] = guarded


def find_policy(name: str) -> Policy:
    """The policy of that name.

    Raises:
        ConfigError: there is none.
    """
    found = _POLICIES.get(name)
    if found is None:
        raise ConfigError(f"scheduling.policy: {name!r} is unknown; known are {', '.join(sorted(_POLICIES))}")
    return found
