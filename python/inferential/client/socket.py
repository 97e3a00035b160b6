"""The client's ZMQ sockets: a DEALER and the monitor that tells of its link. Not thread-safe."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
from collections.abc import Sequence
from typing import Any

import zmq
from zmq import zmq_poll

from inferential.client.options import Options
from inferential.errors import ConfigError
from inferential.types import COPIED_BYTES, Buffer

logger = logging.getLogger("inferential.client")

_UP = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
_DOWN = int(zmq.EVENT_DISCONNECTED)
_REFUSED = int(
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.SNDMORE | zmq.NOBLOCK)
_RECEIVED = 65_536
"""Replies that ZMQ keeps for a program that does not read them: as many as an inbox. With a full queue it would read no heartbeats either,
and lose the link with all that has arrived."""
_CONNECT_TIMEOUT_MS = (
    1000  # of one attempt: a host that comes back is found within two seconds, whatever TCP's own backoff
)


_monitors = itertools.count()


class _SharedContext:
    """One ZMQ context (one I/O thread) for all connections of a process, ended with the last of them."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a garbage collection inside may close another connection
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._pid = 0
        self._users = 0

    def acquire(self) -> zmq.Context[zmq.Socket[bytes]]:
        with self._lock:
            if self._context is None or self._pid != os.getpid():  # a fork inherits nothing of it
                self._context, self._pid, self._users = zmq.Context(), os.getpid(), 0
                # A connection takes three sockets; the default of 1,023 would end at some 340 robots in a process.
                self._context.set(zmq.MAX_SOCKETS, self._context.get(zmq.SOCKET_LIMIT))
            self._users += 1
            return self._context

    def release(self, *, wait: bool) -> None:
        with self._lock:
            self._users -= 1
            if self._users or not wait or self._context is None:
                return
            context, self._context = self._context, None
        context.term()  # returns when what was sent has left, or after the linger time


_shared = _SharedContext()


class ClientSocket:
    """A DEALER socket with the options of docs/protocol.md, section 1, connecting in the background.

    Raises:
        ConfigError: the address is none.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._zero_copy = options.zero_copy
        self._refusal_logged = False
        self._context = _shared.acquire()
        try:
            self._open()
        except BaseException as e:  # no more sockets, or no such address
            self.release(wait=isinstance(e, ConfigError))
            raise

    def _open(self) -> None:
        options = self._options
        self._message_news = self._link_news = self._link_read = False
        dealer = self._dealer = self._context.socket(zmq.DEALER)
        # pyzmq's own send only looks for options that are never given here, which takes as long as sending.
        self._send: Any = super(zmq.Socket, dealer).send
        heartbeat_ms = int(options.heartbeat_ms)
        for option, value in (
            (zmq.IMMEDIATE, 1),
            (zmq.SNDHWM, options.high_water_mark),
            (zmq.RCVHWM, _RECEIVED),
            (zmq.HEARTBEAT_IVL, heartbeat_ms),
            (zmq.HEARTBEAT_TIMEOUT, 3 * heartbeat_ms),
            (zmq.HEARTBEAT_TTL, 3 * heartbeat_ms),
            (zmq.RECONNECT_IVL, 50),
            (zmq.RECONNECT_IVL_MAX, 500),
            (zmq.CONNECT_TIMEOUT, _CONNECT_TIMEOUT_MS),
            (zmq.LINGER, options.linger_ms),
            (zmq.MAXMSGSIZE, options.max_message_bytes),
        ):
            dealer.set(option, value)
        if options.is_ipv6:
            dealer.set(zmq.IPV6, 1)  # not always: it would look up the IPv6 addresses of names, too
        dealer.copy_threshold = COPIED_BYTES
        # Not get_monitor_socket(), whose queue is bounded: a program that is idle reads no events, and where it was full ZMQ's thread would
        # wait for room, and with it all connections of the process.
        endpoint = f"inproc://inferential-link-{next(_monitors)}"
        dealer.monitor(endpoint, _UP | _DOWN | _REFUSED)
        self._monitor = self._context.socket(zmq.PAIR)
        self._monitor.set(zmq.RCVHWM, 0)
        self._monitor.connect(endpoint)
        self._poll_set = [(dealer, _POLLIN), (self._monitor, _POLLIN)]
        try:
            dealer.connect(options.server)
        except zmq.ZMQError as e:
            self.close()
            raise ConfigError(
                f"server is {options.server!r}: {e}; it must be an address as in 'tcp://localhost:5555'"
            ) from None

    def reopen(self) -> None:
        """Makes new sockets. What the old ones still hold is lost."""
        self._close(0)
        self._open()

    def connect_anew(self) -> None:
        """Gives up the connection, or the attempt to make one, and begins again."""
        with contextlib.suppress(zmq.ZMQError):  # an exception of the user's may have struck after it
            self._dealer.disconnect(self._options.server)
        self._dealer.connect(self._options.server)

    def poll(self, timeout_ms: int) -> bool:
        """Whether anything has arrived, a message or a link event; waits for it up to `timeout_ms`."""
        ready = zmq_poll(self._poll_set, timeout_ms)
        if not ready:
            return False
        self._message_news = ready[0][0] is self._dealer
        self._link_news = ready[-1][0] is self._monitor
        return True

    def link_events(self) -> list[bool]:
        """What the link did until the last poll(): True for up, False for down, in order."""
        found: list[bool] = []
        if not self._link_news:
            return found
        self._link_news = False
        self._link_read = True
        with contextlib.suppress(zmq.Again):
            while True:
                event = int.from_bytes(self._monitor.recv_multipart(_NOBLOCK)[0][:2], "little")
                if event in (_UP, _DOWN):
                    found.append(event == _UP)
                elif event & _REFUSED and not self._refusal_logged:
                    self._refusal_logged = True
                    logger.warning(
                        "what listens at the server's address refused the handshake: is it an inferential server?"
                    )
        return found

    def next_message(self) -> list[Buffer] | None:
        """A message that poll() saw, payload frames uncopied; then None. After link_events() found something: all that had arrived
        before, one after the other.
        """
        if self._message_news:
            self._message_news = False
            return self._message()
        if self._link_read:
            if int(self._dealer.get(_EVENTS)) & _POLLIN:
                return self._message()
            self._link_read = False
        return None

    def _message(self) -> list[Buffer]:
        receive: Any = self._dealer.recv
        frame = receive(_NOBLOCK, copy=False)
        frames: list[Buffer] = [frame.bytes]
        if frame.more:
            frame = receive(_NOBLOCK, copy=False)
            frames.append(frame.bytes)
            while frame.more:
                frame = receive(_NOBLOCK, copy=False)
                frames.append(frame)
        return frames

    def transmit(self, envelope: bytes, payload: Sequence[Buffer]) -> bool:
        """Sends one message without waiting. Returns False where the link or the queue has no room."""
        send = self._send
        try:
            send(b"", _MORE)
        except zmq.Again:
            # Asked for its events ZMQ sees to all its commands, of room in the queue among them. When sending it does so but once a
            # millisecond.
            self._dealer.get(_EVENTS)
            try:
                send(b"", _MORE)
            except zmq.Again:
                return False
        # Room for the first part is room for the message, but the link may break in its midst.
        through = True
        try:
            send(envelope, _MORE)
        except zmq.Again:
            through = False
        last = len(payload) - 1
        copy = not self._zero_copy
        for i, frame in enumerate(payload):
            try:
                send(frame, _MORE if i < last else _NOBLOCK, copy=copy)
            except zmq.Again:
                # Go on: libzmq drops what follows up to the last part, of this message or else of the next one.
                through = False
        return through

    @property
    def file_descriptors(self) -> tuple[int, int]:
        """Become readable when something may have arrived (edge-triggered: read until poll(0) is False)."""
        return int(self._dealer.get(zmq.FD)), int(self._monitor.get(zmq.FD))

    def close(self) -> None:
        """Closes the sockets; what was sent still has the linger time to leave."""
        self._close(self._options.linger_ms)

    def _close(self, linger_ms: int) -> None:
        if not self._dealer.closed:  # reopen() may not have come to an end
            self._dealer.disable_monitor()
        self._monitor.close(0)
        self._dealer.close(linger_ms)

    def release(self, *, wait: bool) -> None:
        """Gives back the shared context, once. Where this was the last connection, `wait` waits until what was sent has left, at most
        for the linger time."""
        _shared.release(wait=wait)
