"""The way of calls and results between a server and a replica on its machine: a Unix socket for headers, shared memory for payload frames.

No thread stands between its ends, and the kernel copies no tensor (docs/adr/0002-direct-path.md). Linux only; ZMQ carries whatever does
not fit, and everything about the link. An instance belongs to one thread at a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from inferential.backends.link import pb, size_bytes
from inferential.types import Buffer

__all__ = [
    "BACKLOG",
    "MESSAGE_BYTES",
    "RING_BYTES",
    "SHARED_BYTES",
    "LinkClosedError",
    "UnixLink",
    "connect",
    "introduced",
    "listen",
]

MESSAGE_BYTES = 65_536
"""Longest header."""
SHARED_BYTES = 1024 * 1024
"""Most that the frames of one message may have; libzmq's threads copy what is larger beside the Python."""
RING_BYTES = 8 * 1024 * 1024
"""For the frames of each direction. Pages that were never written take no memory, and the first ones are used anew whenever all is read."""
BACKLOG = 64
"""Connections that wait to be accepted; one more finds no room."""
_ALIGNMENT_BYTES = 64
_LAST_POSITION = 2**63
# Of Linux. A Python that was built for an older libc has no names for them, nor `os.memfd_create`.
_MFD_CLOEXEC, _MFD_ALLOW_SEALING = 1, 2
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW = 1, 2, 4


class LinkClosedError(Exception):
    """The other end has closed the link, or sent what makes no sense."""


class UnixLink:
    """One end.

    Frames lie in rings, one for each direction, that the replica makes. Who sends a message tells how far it has read the other's ring, so
    what was read is free again with the next message the other way.
    """

    def __init__(self, connection: socket.socket, memory: mmap.mmap | None, server: bool) -> None:
        self._connection: Any = connection
        self._memory: Any = memory
        self._incoming: Any = pb.ToServer if server else pb.ToReplica
        self._ours = 0 if server else RING_BYTES
        self._theirs = RING_BYTES - self._ours
        # Positions only grow; the place of one in its ring is the remainder.
        self._written = 0
        self._free = 0
        """All before this was read by the other end."""
        self._read = 0
        self._shared = server and memory is not None
        """The other end has the memory too: the server by being there, the replica hears of it with the first message."""
        self._tell = self._shared
        """The other end has yet to hear of that, or of `_read`."""

    def fileno(self) -> int:
        """The socket's descriptor."""
        return int(self._connection.fileno())

    def close(self) -> None:
        """Ends the link for both."""
        self._connection.close()
        if self._memory is not None:
            self._memory.close()

    def send(self, header: bytes, frames: Sequence[Buffer]) -> bool:
        """Sends a message whole, or not at all: it is too long, or the socket or the memory is full, or the link closed."""
        at, end, sizes = 0, self._written, []
        try:
            if frames:
                sizes = list(map(size_bytes, frames))
                length = sum(map(_aligned, sizes))
                if not self._shared or length > SHARED_BYTES:
                    return False
                at = self._place(length)
                end = at + length
                if end - self._free > RING_BYTES:
                    return False
                place = self._ours + at % RING_BYTES
                for frame, size in zip(frames, sizes, strict=True):
                    self._memory[place : place + size] = frame
                    place += _aligned(size)
            if frames or self._tell:
                header += self._position(at, sizes)
            if len(header) > MESSAGE_BYTES:
                return False
            self._connection.send(header)
        except (OSError, ValueError, BufferError):
            return False
        self._written = end
        self._tell = False
        return True

    def tell(self) -> None:
        """To be called where messages go another way: tells how far the ring was read if the other end has yet to hear of it."""
        if self._tell:
            with contextlib.suppress(OSError):
                self._connection.send(self._position(0, ()))
                self._tell = False

    def _position(self, at: int, sizes: Sequence[int]) -> bytes:
        message = pb.ToReplica()  # the same in either direction; field by field, as protobuf is slower with keywords
        shared = message.shared
        shared.at = at
        shared.bytes.extend(sizes)
        shared.read = self._read
        return message.SerializeToString()

    def _place(self, length: int) -> int:
        """The position for so many bytes in one piece."""
        at = self._written
        if self._free == at:  # all is read: from the beginning, which is in the processors' caches
            at = self._written = self._free = _next(at, RING_BYTES)
        elif at % RING_BYTES + length > RING_BYTES:
            at = _next(at, RING_BYTES)
        return at

    def receive(self) -> tuple[Any, list[bytes]] | None:
        """A message and copies of its payload frames; None: there is none.

        Raises:
            LinkClosedError: there will be no more.
        """
        header = _receive(self._connection)
        if header is None:
            return None
        if not header:
            raise LinkClosedError("its Unix socket was closed")
        try:
            message = self._incoming.FromString(header)
        except Exception:
            raise LinkClosedError("what came from its Unix socket is no message") from None
        return message, self._frames(message.shared) if message.HasField("shared") else []

    def _frames(self, shared: Any) -> list[bytes]:
        sizes = shared.bytes
        self._shared = self._memory is not None
        if self._free < shared.read <= self._written:
            self._free = shared.read
        if not sizes:
            return []
        length = sum(map(_aligned, sizes))
        at = shared.at
        if (
            self._memory is None
            or at < self._read
            or at >= _LAST_POSITION
            or length > SHARED_BYTES
            or at % RING_BYTES + length > RING_BYTES
        ):
            raise LinkClosedError(
                f"{len(sizes)} frames of {length} bytes at position {at} of its ring, read up to {self._read}, cannot be"
            )
        place = self._theirs + at % RING_BYTES
        frames = []
        for size in sizes:
            frames.append(self._memory[place : place + size])
            place += _aligned(size)
        self._read = at + length
        self._tell = True
        return frames


def listen(name: str) -> socket.socket | None:
    """A Unix socket in the abstract namespace; None where there can be none."""

    def prepare(made: socket.socket) -> None:
        made.bind("\0" + name)
        made.listen(BACKLOG)

    return _socket(prepare)


def connect(name: str, key: bytes) -> UnixLink | None:
    """Connects to one, says who this is and shares memory with it; None where that cannot be done at once."""
    memory, descriptor = _new_memory()

    def prepare(made: socket.socket) -> None:
        made.connect("\0" + name)
        socket.send_fds(made, [key], [] if memory is None else [descriptor])

    connection = _socket(prepare)
    if memory is not None:
        os.close(descriptor)
    if connection is not None:
        return UnixLink(connection, memory, server=False)
    if memory is not None:
        memory.close()
    return None


def introduced(connection: socket.socket, known: Callable[[bytes], bool]) -> tuple[bytes | None, UnixLink | None]:
    """What `connect` said at the other end (None: nothing so far; empty: it is closed), and this end of the link if that is known."""
    try:
        key, descriptors, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        return None, None
    except OSError:
        return b"", None
    try:
        if not known(key):
            return key, None
        return key, UnixLink(connection, _map(descriptors[0]) if descriptors else None, server=True)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _socket(prepare: Callable[[socket.socket], None]) -> socket.socket | None:
    """One that was prepared; None where that failed."""
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        made = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK))
        prepare(made)
        stack.pop_all()
        return made
    return None


def _receive(connection: socket.socket) -> bytes | None:
    try:
        return connection.recv(MESSAGE_BYTES)
    except BlockingIOError:
        return None
    except ConnectionResetError:  # the other end had not read all; said once, and before what came from it earlier
        return _receive(connection)
    except OSError:
        return b""


def _new_memory() -> tuple[mmap.mmap | None, int]:
    """Memory whose size nobody can change any more, and its descriptor; None where there is none to be had."""
    import fcntl  # not everywhere

    with contextlib.ExitStack() as stack, contextlib.suppress(OSError, AttributeError):
        descriptor = ctypes.CDLL(None).memfd_create(b"inferential-frames", _MFD_CLOEXEC | _MFD_ALLOW_SEALING)
        if descriptor >= 0:
            stack.callback(os.close, descriptor)
            os.ftruncate(descriptor, 2 * RING_BYTES)
            fcntl.fcntl(descriptor, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_SEAL)
            memory = _map(descriptor)
            if memory is not None:
                stack.pop_all()
                return memory, descriptor
    return None, -1


def _map(descriptor: int) -> mmap.mmap | None:
    """The memory behind a descriptor; None where it is not what `_new_memory` makes."""
    import fcntl

    with contextlib.suppress(OSError, ValueError):
        # Memory that its maker could make smaller would be a way to end this process: to touch what is gone raises SIGBUS.
        sealed = fcntl.fcntl(descriptor, _F_GET_SEALS) & _F_SEAL_SHRINK
        if sealed and os.fstat(descriptor).st_size == 2 * RING_BYTES:
            return mmap.mmap(descriptor, 2 * RING_BYTES)
    return None


def _next(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _aligned(size: int) -> int:
    return _next(size, _ALIGNMENT_BYTES)
