"""The ROUTER socket that clients reach: bursts of messages in, replies out, connections that come and go.

A plain socket on the event loop, not one of pyzmq's asyncio sockets (docs/adr/0001-one-asyncio-loop.md). Everything here
belongs to the loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import zmq
import zmq.utils.monitor

from inferential.config.load import with_transport
from inferential.config.schema import TransportConfig
from inferential.errors import ConfigError
from inferential.types import COPIED_BYTES, MAX_TENSORS, Buffer

logger = logging.getLogger("inferential.transport")

BURST = 256  # messages taken before the loop may do something else
MAX_FRAMES = MAX_TENSORS + 1  # of a message, its envelope included; of one that has more, one more is kept to tell
SKIPPED_AT_ONCE = 4096
# Messages per connection inside ZMQ; what is beyond waits in this module's queue. That many copied frames are 64 MiB at most,
# and larger ones are counted.
SEND_HWM = 256
RECEIVE_HWM = 1000
RETRY_MIN_S = 0.001
RETRY_MAX_S = 0.050
LINGER_MS = 500

# Plain numbers: pyzmq's flags are enums, which are slow to combine.
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_SEND = int(zmq.NOBLOCK)
_SEND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)


class Peer:
    """One connection, and what is kept for it."""

    __slots__ = (
        "client_id",
        "clock",
        "encoded",
        "fd",
        "in_zmq",
        "last_seen",
        "outbound",
        "outbound_bytes",
        "routing_id",
    )

    def __init__(self, routing_id: bytes, now: float) -> None:
        self.routing_id = routing_id
        self.last_seen = now
        self.fd = -1
        """Its file descriptor, where it can be told (v2 clients)."""
        self.client_id: str | None = None
        """As its first valid message said."""
        self.clock: Any = None
        """The assembler's estimate of its clock."""
        self.encoded: Any = None
        """What the server keeps for writing its replies."""
        self.outbound: deque[Sequence[Buffer]] = deque()
        self.outbound_bytes = 0
        self.in_zmq: deque[tuple[zmq.MessageTracker, int]] = deque()
        """Large frames that ZMQ has and may not have sent yet, with their sizes: ZMQ itself knows no bound in bytes."""


class TransportEvents(Protocol):
    """What the transport tells the server."""

    def received(self, peer: Peer, frames: list[zmq.Frame] | None, now: float) -> None:
        """A message: the envelope and the payload frames; None for one that is not framed as it should be."""

    def burst_ended(self) -> None:
        """No more messages for now."""

    def disconnected(self, peer: Peer, reason: str) -> None:
        """A connection went away or was evicted; `peer` is forgotten."""

    def send_failed(self, peer: Peer, reason: str) -> None:
        """A reply could not be delivered."""


class Transport:
    """Owns the socket, the connections and the replies that wait for them."""

    def __init__(self, config: TransportConfig, events: TransportEvents) -> None:
        self._config = config
        self._events = events
        self._peers: dict[bytes, Peer] = {}
        self._by_fd: dict[int, Peer] = {}
        self._waiting: dict[bytes, Peer] = {}  # those with an outbound queue
        self._retry_s = RETRY_MIN_S
        self._retry: asyncio.TimerHandle | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._again: asyncio.Handle | None = None
        self._skipping = False
        """Whether what is read next is the rest of a message that has too many frames."""
        self._sent = False  # since it was last asked whether there is something to read
        self._is_open = False
        self._is_receiving = False
        self.endpoint = ""

    # --- life cycle ---

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Binds the socket and begins to receive.

        Raises:
            ConfigError: the endpoint cannot be bound; says why.
        """
        self._loop = loop
        _raise_file_limit()
        self._context = zmq.Context(io_threads=1)
        try:
            self._open_socket()
        except BaseException:
            self._context.destroy(linger=0)
            raise
        # Idle sweeps are the only thing that a quiet server wakes up for.
        self._sweep_s = min(30.0, max(0.05, self._config.idle_client_timeout_s / 4))
        self._sweep = loop.call_later(self._sweep_s, self._evict_idle)
        loop.add_reader(self._fd, self._readable)
        loop.add_reader(self._monitor_fd, self._monitor_readable)
        # What came before the readers were there has had its signal.
        self._again = loop.call_soon(self._readable)
        self._monitor_readable()
        self._is_open = self._is_receiving = True

    def _open_socket(self) -> None:
        bind = with_transport(self._config.bind)
        socket = self._context.socket(zmq.ROUTER)
        self._socket: Any = socket  # its methods' types are those of every option and every kind of socket
        # pyzmq's own send only looks for options that are never given here, which takes as long as sending.
        self._send = super(zmq.Socket, socket).send
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, self._config.max_message_bytes)
        socket.setsockopt(zmq.SNDHWM, SEND_HWM)
        socket.setsockopt(zmq.RCVHWM, RECEIVE_HWM)
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        if "[" in bind:
            socket.setsockopt(zmq.IPV6, 1)
        # A message's file descriptor tells which connection a disconnect event is about.
        self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            socket.bind(bind)
        except zmq.ZMQError as e:
            raise ConfigError(f"transport.bind: cannot bind {bind!r}: {_why(e)}") from None
        self.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._fd = int(socket.get(zmq.FD))
        self._monitor_fd = int(self._monitor.get(zmq.FD))
        if is_public(self.endpoint):
            logger.warning(
                "%s can be reached from other machines, and clients are not authenticated: "
                "whoever reaches the port can use the models",
                self.endpoint,
            )

    def stop_receiving(self) -> None:
        """Takes no further messages; replies can still be sent."""
        if not self._is_receiving:
            return
        self._is_receiving = False
        self._loop.remove_reader(self._fd)
        for handle in (self._again, self._sweep):
            if handle is not None:
                handle.cancel()
        self._again = self._sweep = None

    async def deliver(self, timeout_s: float) -> None:
        """Waits for outbound queues to empty, for so long at most."""
        if not self._is_open:
            return
        end = self._loop.time() + timeout_s
        while self._waiting and self._loop.time() < end:
            await asyncio.sleep(RETRY_MIN_S)

    def close(self) -> None:
        """Closes the socket; blocks until what was sent is delivered, for half a second at most."""
        if not self._is_open:
            return
        self.stop_receiving()
        self._is_open = False
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._monitor_fd)
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=LINGER_MS)
        self._context.term()

    # --- receiving ---

    @property
    def active_clients(self) -> int:
        """Connections that are not evicted."""
        return len(self._peers)

    @property
    def waiting_replies(self) -> int:
        """Replies in outbound queues."""
        return sum(len(p.outbound) for p in self._waiting.values())

    def peer(self, routing_id: bytes) -> Peer | None:
        """A connection that is not gone."""
        return self._peers.get(routing_id)

    def _readable(self) -> None:
        # The descriptor signals a change, not a state: read until there is nothing, or come back by ourselves.
        if self._again is not None:
            self._again.cancel()
            self._again = None
        recv, received, more, alone = self._socket.recv, self._events.received, True, True
        events = self._socket.get
        try:
            if self._skipping and not self._skip():
                return  # others have their turn first
            for _ in range(BURST):
                routing_id = recv(_SEND)
                frames = []
                frame = recv(_SEND, False)
                framed = not len(frame)
                while frame.more:
                    frame = recv(_SEND, False)
                    frames.append(frame)
                    if len(frames) > MAX_FRAMES:
                        self._skipping = bool(frame.more)
                        break
                now = time.monotonic()
                peer = self._peers.get(routing_id)
                if peer is None:
                    peer = self._arrived(routing_id, frame, now)
                peer.last_seen = now
                received(peer, frames if framed and len(frames) >= 2 else None, now)
                if self._skipping and not self._skip():
                    break
                if alone:
                    # Asking costs less than an attempt that fails, and most messages come alone.
                    alone = False
                    if not events(_EVENTS) & _POLLIN:
                        more = False
                        break
        except zmq.Again:
            more = False
        finally:
            if more:
                self._again = self._loop.call_soon(self._readable)
            self._events.burst_ended()

    def _skip(self) -> bool:
        """Goes on with the rest of a message that has too many frames; whether that was all of it."""
        recv = self._socket.recv
        for _ in range(SKIPPED_AT_ONCE):
            if not recv(_SEND, False).more:
                self._skipping = False
                return True
        return False

    def check_readable(self) -> None:
        """To be called when a round of sending is over: a send may use up the signal that there is something to read."""
        if self._sent:
            self._sent = False
            if self._again is None and self._is_receiving and self._socket.get(_EVENTS) & _POLLIN:
                self._again = self._loop.call_soon(self._readable)

    # --- connections ---

    def _arrived(self, routing_id: bytes, frame: zmq.Frame, now: float) -> Peer:
        peer = self._peers[routing_id] = Peer(routing_id, now)
        if routing_id[:1] == b"\0":
            # Ids that ZMQ made up are unique, those that v1 clients choose come back on another descriptor. Old disconnect
            # events are read first, so that none of an earlier owner of this descriptor hits the new one.
            self._monitor_readable()
            peer.fd = int(frame.get(zmq.SRCFD))
            self._by_fd[peer.fd] = peer
        return peer

    def _monitor_readable(self) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                event = zmq.utils.monitor.parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
                peer = self._by_fd.get(event["value"])
                if peer is not None:
                    self.forget(peer, "the connection was closed")

    def forget(self, peer: Peer, reason: str) -> None:
        """Frees a connection's state and tells the server; nothing if that was done before."""
        if self._peers.get(peer.routing_id) is not peer:
            return
        del self._peers[peer.routing_id]
        self._waiting.pop(peer.routing_id, None)
        if self._by_fd.get(peer.fd) is peer:
            del self._by_fd[peer.fd]
        self._events.disconnected(peer, reason)
        for _ in peer.outbound:
            self._events.send_failed(peer, reason)
        peer.outbound.clear()

    def _evict_idle(self) -> None:
        oldest = time.monotonic() - self._config.idle_client_timeout_s
        idle = [p for p in self._peers.values() if p.last_seen < oldest]
        for peer in idle:
            self.forget(peer, f"nothing came for {self._config.idle_client_timeout_s:g} s")
        if idle:
            self._events.burst_ended()
        self._sweep = self._loop.call_later(self._sweep_s, self._evict_idle)

    # --- sending ---

    def send(self, peer: Peer, frames: Sequence[Buffer]) -> None:
        """Sends a reply (the frames from the empty one on), or has it wait for a connection that is full."""
        if peer.outbound or not self._try_send(peer, frames):
            self._enqueue(peer, frames)

    def _try_send(self, peer: Peer, frames: Sequence[Buffer]) -> bool:
        """False: the connection is full. A connection that is gone is forgotten."""
        large = len(frames) > 3 or _size(frames[-1]) >= COPIED_BYTES
        if large and peer.in_zmq and not self._has_room(peer, sum(map(_size, frames))):
            return False
        send = self._send
        self._sent = True
        try:
            send(peer.routing_id, _SEND_MORE)
        except zmq.Again:
            return False
        except zmq.ZMQError as e:
            if e.errno != zmq.EHOSTUNREACH:
                raise
            self._events.send_failed(peer, "the connection is gone")
            self.forget(peer, "the connection is gone")
            return True
        # Once the first part is taken, the rest of the message is.
        if not large:
            for frame in frames[:-1]:
                send(frame, _SEND_MORE)
            send(frames[-1], _SEND)
            return True
        last = len(frames) - 1
        for i, frame in enumerate(frames):
            flags, size = _SEND if i == last else _SEND_MORE, _size(frame)
            if size < COPIED_BYTES:
                send(frame, flags)
            else:
                # A frame that a replica sent cannot be tracked itself; the view of it can, and is no copy either.
                data = frame.buffer if isinstance(frame, zmq.Frame) else frame
                peer.in_zmq.append((send(data, flags, copy=False, track=True), size))
        return True

    def _has_room(self, peer: Peer, size: int) -> bool:
        """Whether what ZMQ has not sent yet, and `size` more, are within the bound."""
        in_zmq = peer.in_zmq
        while in_zmq and in_zmq[0][0].done:
            in_zmq.popleft()
        return not in_zmq or sum(s for _, s in in_zmq) + size <= self._config.outbound_queue_bytes

    def _enqueue(self, peer: Peer, frames: Sequence[Buffer]) -> None:
        size = sum(map(_size, frames))
        bound = self._config.outbound_queue_bytes
        if (
            len(peer.outbound) >= self._config.outbound_queue_messages
            or (peer.outbound and peer.outbound_bytes + size > bound)  # a single large one may always wait
            or self._peers.get(peer.routing_id) is not peer
        ):
            self._events.send_failed(peer, "its outbound queue is full")
            return
        peer.outbound.append(frames)
        peer.outbound_bytes += size
        self._waiting[peer.routing_id] = peer
        if self._retry is None:
            self._retry_s = RETRY_MIN_S
            self._retry = self._loop.call_later(self._retry_s, self._send_waiting)

    def _send_waiting(self) -> None:
        # A ROUTER does not tell when one of its peers can take more, so it is tried, less and less often.
        self._retry = None
        progress = False
        for peer in list(self._waiting.values()):
            while peer.outbound and self._try_send(peer, peer.outbound[0]):
                progress = True
                if peer.outbound:  # else it was forgotten
                    peer.outbound_bytes -= sum(map(_size, peer.outbound.popleft()))
            if not peer.outbound:
                self._waiting.pop(peer.routing_id, None)
        if self._waiting:
            self._retry_s = RETRY_MIN_S if progress else min(2 * self._retry_s, RETRY_MAX_S)
            self._retry = self._loop.call_later(self._retry_s, self._send_waiting)
        self._events.burst_ended()
        self.check_readable()


def _size(frame: Buffer) -> int:
    return len(frame) if type(frame) is bytes else memoryview(frame).nbytes


def is_public(endpoint: str) -> bool:
    """Whether other machines can reach an endpoint."""
    if not endpoint.startswith("tcp://"):
        return False
    host = endpoint[len("tcp://") :].rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def _why(e: zmq.ZMQError) -> str:
    hints = {
        errno.EADDRINUSE: "another process uses this port; stop it, or choose another port (0 picks a free one)",
        errno.EADDRNOTAVAIL: "this machine has no such address",
        errno.ENODEV: "this machine has no such address or network interface",
        errno.EACCES: "no permission; ports below 1024 are for root",
        errno.EINVAL: "it is no endpoint; write it like tcp://127.0.0.1:5555, tcp://*:5555 or ipc:///run/inferential.sock",
    }
    return hints.get(e.errno or 0, str(e))


def _raise_file_limit() -> None:
    """Every connection takes a descriptor, and the usual soft limit of 1024 is soon used up."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
