"""What a scheduler is. Strategies differ in three things: the order within a model, who goes first among models, and how long a
batch waits for more. Everything else (bounds, expiry, slots, batches, retries) is the engine's and the same for all.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

from inferential.config.schema import SchedulingConfig
from inferential.errors import ConfigError
from inferential.scheduling.request import Request


class Order(Protocol):
    """The waiting requests of one model (of one replica of it, with affinity) in the order in which they go."""

    def push(self, request: Request) -> object:
        """A request begins to wait. Its key, expiry and stream are set. What it returns is ignored."""

    def first(self, contended: bool) -> Request | None:
        """The one that goes next; it stays. `contended`: not everything that waits can be in time."""

    def rivals(self, request: Request) -> int:
        """How many wait that are as important as this one or more, itself included: only for them may it be given up."""

    def discard(self, request: Request, served: bool) -> object:
        """A request that was pushed waits no more (`queued` is already False); `served`: because it went to a model. What it returns
        is ignored.
        """


class Batch(Protocol):
    """What a scheduler may ask about a batch that could leave now."""

    @property
    def size(self) -> int:
        """Requests that would go."""

    @property
    def limit(self) -> int:
        """The most that a call takes."""

    @property
    def oldest_arrival(self) -> float:
        """When the one that waits longest arrived, monotonic seconds."""

    def deadline_window(self, now: float) -> float:
        """Until when waiting for expected observations pays and every deadline still holds (`now`: not at all)."""


class Scheduler:
    """Base of all strategies. Options are the keyword arguments of a subclass's __init__.

    Attributes:
        takes_turns: models that compete for a slot go in turn; False: the one whose first request has the smallest key goes.
    """

    takes_turns = False

    def __init__(self, config: SchedulingConfig) -> None:
        self.config = config

    def order(self) -> Order:
        """A new, empty order for one model."""
        raise NotImplementedError

    def hold_until(self, batch: Batch, now: float) -> float:
        """Until when a batch waits for more; `now` or earlier: it leaves."""
        if self.config.batch_window == "off":
            return now
        return batch.deadline_window(now)


_SCHEDULERS: dict[str, type[Scheduler]] = {}


def register_scheduler(name: str, scheduler: type[Scheduler]) -> None:
    """Makes a strategy known by name (`scheduling.strategy`). Replaces one of the same name. Not thread-safe: call it at start.

    Raises:
        ConfigError: it is no subclass of Scheduler, or its name is no string.
    """
    if not isinstance(name, str):
        raise ConfigError(f"a strategy's name is {name!r}; it must be a string")
    if not (inspect.isclass(scheduler) and issubclass(scheduler, Scheduler)):
        raise ConfigError(
            f"strategy {name!r} is {scheduler!r}; it must be a subclass of inferential.scheduling.Scheduler"
        )
    _SCHEDULERS[name] = scheduler


def make_scheduler(name: str, options: Mapping[str, Any], config: SchedulingConfig) -> Scheduler:
    """A scheduler by name.

    Raises:
        ConfigError: unknown name or option, or an option's value is wrong.
    """
    found = _SCHEDULERS.get(name)
    if found is None:
        raise ConfigError(f"scheduling.strategy: {name!r} is unknown; known are {', '.join(sorted(_SCHEDULERS))}")
    known = list(inspect.signature(found).parameters)[1:]
    for option in options:
        if option not in known:
            what = f"known are {', '.join(known)}" if known else "it has none"
            raise ConfigError(f"scheduling.options: {name} has no option {option!r}; {what}")
    return found(config, **options)
