"""What the blocking and the asyncio client have in common for their users."""

from __future__ import annotations

from collections.abc import Callable

from inferential.client.core import Core
from inferential.client.observation import Defaults
from inferential.client.options import Options
from inferential.client.session import Inbox, LinkState
from inferential.client.watchdog import Fallback, Watchdog
from inferential.types import Status


class BaseConnection:
    """A connection; the subclasses wait."""

    def __init__(self, options: Options, on_link: Callable[[LinkState], None] | None) -> None:
        self._core = Core(options, on_link)

    def __repr__(self) -> str:
        o = self._core.options
        return f"<{type(self).__name__} {o.client_id!r} to {o.server}: {self._core.session.link.value}>"

    @property
    def client_id(self) -> str:
        """As given."""
        return self._core.options.client_id

    @property
    def server(self) -> str:
        """The server's address."""
        return self._core.options.server

    @property
    def server_version(self) -> int | None:
        """The protocol the server speaks, 1 or 2; None until a reply on this link has told."""
        return self._core.session.server_version


class BaseModel:
    """A model on a connection: its inbox, what observations say by default, and its fallback."""

    def __init__(self, inbox: Inbox, defaults: Defaults, fallback: Fallback | None) -> None:
        self._inbox = inbox
        self._defaults = defaults
        self._watchdog = Watchdog(fallback)

    def __repr__(self) -> str:
        d = self._defaults
        return f"<{type(self).__name__} {d.model_id!r} latency_budget_ms={d.latency_budget_ms:g} priority={d.priority}>"

    @property
    def model_id(self) -> str:
        """The model's name."""
        return self._inbox.model_id

    @property
    def last_status(self) -> Status | None:
        """How the last get_result or act ended: OK, the status of the reply that ended it, TIMED_OUT; None where nothing was
        outstanding or it only looked."""
        return self._inbox.last_status

    @property
    def last_error(self) -> str:
        """The words that came with last_status."""
        return self._inbox.last_error

    @property
    def outstanding(self) -> int:
        """How many requests of this model have no outcome yet, as far as has been read."""
        return len(self._inbox.outstanding)

    def take_phase_shift_ms(self) -> float:
        """The server's last phase shift hint that was not taken yet, 0 without one. Rate(follow=model) uses it."""
        return self._inbox.take_phase_shift_ms()
