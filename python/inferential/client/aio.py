"""The asyncio client: the blocking client's session and sockets, driven by the loop that its first await runs in.

The sockets' file descriptors are watched with add_reader. They are edge-triggered: they tell only that something happened, and any use of
a socket may swallow that, so every use is followed by reading until nothing is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import math
import operator
import time
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from inferential.client.base import BaseConnection, BaseModel
from inferential.client.core import deadline_after
from inferential.client.observation import Defaults, Encode, draft
from inferential.client.options import Options
from inferential.client.reply import PingResult, Reply, Sent
from inferential.client.session import WAIT, Inbox, LinkState, Stats, Verdict
from inferential.client.watchdog import Action, Fallback, by_name
from inferential.errors import ConcurrentWaitError


class AsyncConnection(BaseConnection):
    """A connection to a server for asyncio. Constructing it never blocks and never fails for want of a server.

    Arguments and ConfigError are those of Connection. It belongs to the event loop of its first await. Any number of tasks may use it, one
    waiting per model. A wait may be cancelled: it then abandons no request and loses no reply.

    Thread-safety: none; use it from its loop only.
    """

    def __init__(
        self,
        server: str,
        client_id: str,
        client_type: str = "",
        *,
        connect_timeout_ms: float = 1000.0,
        request_timeout_ms: float = 30_000.0,
        heartbeat_ms: int = 1000,
        linger_ms: int = 200,
        max_message_bytes: int = 256 * 1024 * 1024,
        high_water_mark: int = 1000,
        hold_off: bool = True,
        zero_copy: bool = True,
        on_link: Callable[[LinkState], None] | None = None,
    ) -> None:
        options = Options(
            server,
            client_id,
            client_type,
            connect_timeout_ms,
            request_timeout_ms,
            heartbeat_ms,
            linger_ms,
            max_message_bytes,
            high_water_mark,
            hold_off,
            zero_copy,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._descriptors: tuple[int, int] | None = None
        self._waiters: dict[asyncio.Future[None], Callable[[], bool]] = {}  # future -> whether it has waited enough
        self._waiting_models: set[str] = set()
        self._reading = False
        super().__init__(options, on_link)

    def model(
        self,
        model_id: str,
        latency_budget_ms: float = 50.0,
        priority: int = 1,
        step_ms: float | None = None,
        *,
        slot: str = "",
        latest_only: bool = False,
        fallback: Fallback | None = None,
    ) -> AsyncModel:
        """A handle on a model; arguments and errors as Connection.model(). A fallback callback may be a coroutine function."""
        self._core.session.check_open()
        defaults = Defaults(
            model_id, latency_budget_ms, priority, 0.0 if step_ms is None else step_ms, slot, latest_only
        )
        return AsyncModel(self, self._core.session.inbox(model_id), defaults, fallback)

    @property
    def link_state(self) -> LinkState:
        """The link, as of now."""
        self._read_and_wake()
        return self._core.session.link

    async def wait_until_up(self, timeout_ms: float | None = None) -> bool:
        """As Connection.wait_until_up()."""
        deadline = deadline_after(timeout_ms, time.monotonic())
        self._attach()
        self._read_and_wake()
        await self._until(lambda: self._core.session.link in (LinkState.UP, LinkState.CLOSED), deadline)
        return self._core.session.link is LinkState.UP

    @property
    def stats(self) -> Stats:
        """A copy of the counters, as of now."""
        self._read_and_wake()
        return self._core.session.stats

    async def ping(self, timeout_ms: float = 1000.0) -> PingResult | None:
        """As Connection.ping(). Several may be under way."""
        self._core.session.check_open()
        self._attach()
        deadline = deadline_after(timeout_ms, time.monotonic())
        self._read_and_wake()
        await self._await_handshake(deadline)
        self._core.session.check_open()
        ping = self._core.send_ping()
        self._read_and_wake()  # sending may have swallowed the sockets' signal, also where it failed
        if ping is None:
            return None
        try:
            await self._until(lambda: ping.ended, deadline)
        finally:
            self._core.session.end_ping(ping)
        return ping.result

    async def close(self) -> None:
        """Ends outstanding requests LINK_LOST, so that whoever waits returns, and closes the sockets. Takes at most linger_ms.

        Closing twice is no error. Replies that have arrived can still be taken.
        """
        if self._core.in_its_process:
            self._read_and_wake()
        self._detach()
        if not self._core.shut() or not self._core.in_its_process:  # a forked child has no running loop
            return
        self._core.tell_link()
        self._wake()
        # Where this is the process's last connection, its last messages may still be leaving.
        await asyncio.get_running_loop().run_in_executor(None, lambda: self._core.release(wait=True))

    async def __aenter__(self) -> AsyncConnection:
        self._attach()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # it may not have been constructed, or the interpreter ends
            self._detach()
            if self._core.shut():
                self._core.release(wait=False)

    def _attach(self) -> None:
        """Has the running loop watch the sockets, where it doesn't yet."""
        loop = asyncio.get_running_loop()
        if self._loop is loop or self._core.session.link is LinkState.CLOSED:
            return
        self._core.check_process()
        if self._loop is not None and not self._loop.is_closed():
            raise ConcurrentWaitError(
                "this AsyncConnection belongs to another event loop that still runs; use one connection per loop"
            )
        self._loop = loop
        self._waiters.clear()
        self._waiting_models.clear()
        self._core.mend()  # an exception may have ended the loop before
        self._descriptors = self._core.socket.file_descriptors
        # A connection that was forgotten must not live as long as its loop.
        readable = weakref.WeakMethod(self._read_and_wake)
        for descriptor in self._descriptors:
            loop.add_reader(descriptor, _call, readable)
        self._read_and_wake()

    def _detach(self) -> None:
        loop, descriptors = self._loop, self._descriptors
        self._descriptors = None
        if not self._core.in_its_process:
            return  # what a fork inherits shares the parent's epoll: the parent would not hear of its replies
        if loop is not None and descriptors is not None and not loop.is_closed():
            for descriptor in descriptors:
                loop.remove_reader(descriptor)

    def _read_and_wake(self) -> None:
        if self._core.session.link is LinkState.CLOSED or self._reading:
            return  # on_link may ask for the link's state: what it would read belongs after what is being taken in
        self._core.check_process()
        self._reading = True
        try:
            drained = self._core.read()
        finally:
            self._reading = False
        if not drained and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon(_call, weakref.WeakMethod(self._read_and_wake))  # the loop would not hear of it again
        self._wake()

    def _wake(self) -> None:
        for future, enough in self._waiters.items():
            if not future.done() and enough():
                future.set_result(None)

    async def _until(self, enough: Callable[[], bool], until_s: float) -> None:
        """Waits until `enough()`, at most until then."""
        loop = asyncio.get_running_loop()
        while not enough():
            now = time.monotonic()
            if now >= until_s:
                return
            wake_s = min(until_s, self._core.next_event())
            future: asyncio.Future[None] = loop.create_future()
            timer = None
            if wake_s < math.inf:
                timer = loop.call_later(max(0.0, wake_s - now), _end_wait, future)
            self._waiters[future] = enough
            try:
                await future
            finally:
                self._waiters.pop(future, None)
                if timer is not None:
                    timer.cancel()
            if time.monotonic() >= wake_s:
                self._read_and_wake()

    async def _await_handshake(self, until_s: float) -> None:
        """Before a send: where it is the first and the link has never been up, waits for that, at most until then. What is sent
        meanwhile by other tasks waits with it."""
        if self._core.session.link is LinkState.CONNECTING:
            until_s = min(until_s, self._core.handshake_deadline(time.monotonic()))
            await self._until(lambda: self._core.session.link is not LinkState.CONNECTING, until_s)
            self._core.first_send_waited()


class AsyncModel(BaseModel):
    """A model on an asyncio connection, made by AsyncConnection.model(). One task at a time may wait for its replies."""

    def __init__(
        self, connection: AsyncConnection, inbox: Inbox, defaults: Defaults, fallback: Fallback | None
    ) -> None:
        super().__init__(inbox, defaults, fallback)
        self._connection = connection

    async def observe(
        self,
        /,
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
        **values: Any,
    ) -> Sent:
        """Sends an observation; arguments and errors as Model.observe(). Suspends only while the connection's first send waits for the
        handshake: sends of other tasks meanwhile wait with it, no later one ever does. Images are encoded in the calling thread.
        """
        d = draft(
            self._defaults,
            values,
            urgency=urgency,
            steps_remaining=steps_remaining,
            latency_budget_ms=latency_budget_ms,
            priority=priority,
            step_ms=step_ms,
            slot=slot,
            latest_only=latest_only,
            timestamp_ns=timestamp_ns,
            timestamps_ns=timestamps_ns,
            tensors=tensors,
            metadata=metadata,
            encode=encode,
        )
        connection, core = self._connection, self._connection._core
        core.session.check_open()
        connection._attach()
        connection._read_and_wake()
        await connection._await_handshake(math.inf)
        packed = core.pack(d)
        try:
            return core.send(self._inbox, d, packed)
        finally:
            connection._read_and_wake()  # sending may have swallowed the sockets' signal

    async def get_result(self, timeout_ms: float | None = 100.0) -> Reply | None:
        """As Model.get_result(). Cancelled, it abandons nothing.

        Raises:
            ConcurrentWaitError: another task waits for this model's replies.
            ValueError: the timeout is no number of 0 or more.
        """
        return await self._await(self._connection._core.session.result, timeout_ms, abandon=True)

    async def next_reply(self, timeout_ms: float | None = 100.0) -> Reply | None:
        """As Model.next_reply(). Cancelled, it loses no reply.

        Raises:
            ConcurrentWaitError: another task waits for this model's replies.
            ValueError: the timeout is no number of 0 or more.
        """
        return await self._await(self._connection._core.session.next_reply, timeout_ms, abandon=False)

    async def act(self, timeout_ms: float = 100.0) -> Action:
        """As Model.act()."""
        reply = await self.get_result(timeout_ms)
        if reply is not None:
            return self._watchdog.fresh(reply, time.monotonic())
        action = self._watchdog.fall_back(self._inbox.last_status, time.monotonic())
        if inspect.isawaitable(action.tensors):
            return dataclasses.replace(action, tensors=by_name(await action.tensors))
        return action

    async def cancel(self, request_id: int) -> bool:
        """As Model.cancel()."""
        number = operator.index(request_id)  # numpy's integers too
        connection = self._connection
        connection._attach()
        connection._read_and_wake()
        sent = connection._core.send_cancel(self._inbox, number)
        connection._read_and_wake()
        return sent

    async def _await(
        self, take: Callable[[Inbox, float], Verdict], timeout_ms: float | None, *, abandon: bool
    ) -> Reply | None:
        connection, inbox = self._connection, self._inbox
        started = time.monotonic()
        deadline = deadline_after(timeout_ms, started)
        if inbox.model_id in connection._waiting_models:
            raise ConcurrentWaitError(
                f"another task already waits for replies of model {inbox.model_id!r}; only one may at a time"
            )
        connection._attach()
        connection._read_and_wake()
        verdict = take(inbox, time.monotonic())  # read after the socket: a reply is never handed out before it came
        if verdict is not WAIT:
            return verdict
        if deadline == started:  # only to look
            return None
        connection._waiting_models.add(inbox.model_id)
        try:
            while True:
                await connection._until(lambda: bool(inbox.replies) or not inbox.outstanding, deadline)
                connection._read_and_wake()  # a busy loop may run the timer before it reads
                now = time.monotonic()
                verdict = take(inbox, now)
                if verdict is not WAIT:
                    return verdict
                if now >= deadline:
                    if abandon:
                        connection._core.session.abandon(inbox)
                        connection._wake()
                    return None
        finally:
            connection._waiting_models.discard(inbox.model_id)


def _end_wait(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _call(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    found = method()
    if found is not None:
        found()
