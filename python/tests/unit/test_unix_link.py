"""Both ends of the Unix socket and the shared memory beside ZMQ, in one process."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import secrets
import socket
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferential.backends import unix_link
from inferential.backends.link import pb
from inferential.backends.unix_link import RING_BYTES, SHARED_BYTES, LinkClosedError, UnixLink

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the abstract namespace is Linux's")


@contextlib.contextmanager
def listener() -> Iterator[tuple[str, socket.socket]]:
    name = f"inferential-test-{secrets.token_hex(8)}"
    listening = unix_link.listen(name)
    assert listening is not None
    with listening:
        yield name, listening


def accept(listening: socket.socket) -> socket.socket:
    connection, _ = listening.accept()
    connection.setblocking(False)
    return connection


@contextlib.contextmanager
def linked() -> Iterator[tuple[UnixLink, UnixLink]]:
    """The server's end and the replica's."""
    with listener() as (name, listening):
        theirs = unix_link.connect(name, b"key")
        assert theirs is not None
        key, ours = unix_link.introduced(accept(listening), lambda key: key == b"key")
        assert key == b"key"
        assert ours is not None
        try:
            yield ours, theirs
        finally:
            ours.close()
            theirs.close()


def take(end: UnixLink) -> tuple[int, list[bytes]] | None:
    """A message: its number and its frames."""
    received = end.receive()
    if received is None:
        return None
    message, frames = received
    (numbered,) = message.calls if isinstance(message, pb.ToReplica) else message.results
    return numbered.id, frames


def header(number: int) -> bytes:
    """Calls and results have the same fields for it."""
    return pb.ToReplica(calls=[pb.Call(id=number)]).SerializeToString()


frame_sizes = st.lists(
    st.one_of(st.integers(0, 300), st.integers(4000, 160_000), st.just(SHARED_BYTES // 2)), max_size=3
)
Step = tuple[int, list[int] | None]
"""Who sends a message with frames of these sizes, or reads one."""


def follow(steps: list[Step]) -> int:
    """Checks what arrives, and that all is sent for which there is room; how many bytes were."""
    with linked() as ends:
        assert ends[0].send(header(0), [])
        assert take(ends[1]) == (0, [])
        # Of each end: what is on its way to it, with what its sender had read by then; messages sent, read, known to be read.
        inbox: tuple[deque[Any], deque[Any]] = (deque(), deque())
        sent, read, known = [0, 0], [0, 0], [0, 0]
        total = 0

        def check_next(me: int) -> None:
            expected = None
            if inbox[me]:
                expected, known[me] = inbox[me].popleft()
                read[me] += 1
            assert take(ends[me]) == expected

        for number, (me, sizes) in enumerate(steps, 1):
            if sizes is None:
                check_next(me)
                continue
            frames = [bytes([(number + i) % 256]) * size for i, size in enumerate(sizes)]
            if ends[me].send(header(number), frames):
                inbox[1 - me].append(((number, frames), read[me]))
                sent[me] += 1
                total += sum(sizes)
            else:
                # Each takes a mebibyte at most, and so may what is left out at the end of the ring.
                assert sum(sizes) > SHARED_BYTES - 1000 or sent[me] - known[me] > 6
        for me in (0, 1):
            while inbox[me]:
                check_next(me)
            check_next(me)
        return total


@given(st.lists(st.tuples(st.integers(0, 1), st.one_of(st.none(), frame_sizes)), max_size=120))
@settings(max_examples=100, deadline=None)
def test_every_message_arrives_once_in_order_with_its_own_frames(steps: list[Step]) -> None:
    """Whoever sends and reads when. What did not fit was not sent, and leaves no trace."""
    follow(steps)


@pytest.mark.parametrize("seed", range(4))
def test_rings_go_round(seed: int) -> None:
    """As above, for long, with more reading than sending."""
    draw = random.Random(seed)
    steps: list[Step] = []
    for _ in range(1500):
        sizes = [draw.choice([0, 100, 5_000, 100_000, 300_000]) for _ in range(draw.randint(0, 3))]
        steps.append((draw.randrange(2), draw.choice([sizes, None, None])))
    assert follow(steps) > 6 * RING_BYTES


def test_a_full_ring_is_free_again_once_the_other_end_has_answered() -> None:
    with linked() as (ours, theirs):
        frame = bytes(SHARED_BYTES)
        sent = 0
        while ours.send(header(sent), [frame]):
            sent += 1
        assert sent == RING_BYTES // SHARED_BYTES
        assert ours.send(header(99), [])  # the socket has room
        assert take(theirs) == (0, [frame])
        assert not ours.send(header(sent), [frame])  # it was read, which this end has not heard of
        assert theirs.send(header(0), [])
        assert take(ours) == (0, [])
        assert ours.send(header(sent), [frame])
        assert not ours.send(header(sent), [frame])
        for n in [*range(1, sent), 99, sent]:
            assert take(theirs) == (n, [] if n == 99 else [frame])


def test_too_large_is_not_sent() -> None:
    with linked() as (ours, theirs):
        assert not ours.send(header(1), [bytes(SHARED_BYTES + 1)])
        assert not ours.send(header(1), [bytes(SHARED_BYTES // 2)] * 3)
        assert not ours.send(header(1) + bytes(unix_link.MESSAGE_BYTES), [])
        assert take(theirs) is None
        assert ours.send(header(2), [bytes(SHARED_BYTES)])
        assert take(theirs) == (2, [bytes(SHARED_BYTES)])


def test_a_replica_shares_frames_once_it_knows_that_the_server_does() -> None:
    with linked() as (ours, theirs):
        assert not theirs.send(header(1), [b"frame"])
        assert theirs.send(header(2), [])
        assert take(ours) == (2, [])
        assert ours.send(header(3), [])
        assert take(theirs) == (3, [])
        assert theirs.send(header(4), [b"frame"])
        assert take(ours) == (4, [b"frame"])


def memory(size: int, seal: bool) -> int:
    import fcntl

    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    if seal:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor


@pytest.mark.parametrize("what", ["nothing", "a pipe", "could shrink", "too small"])
def test_without_proper_memory_messages_without_frames_go_all_the_same(what: str) -> None:
    """As with a replica of a version that had none."""
    with listener() as (name, listening), contextlib.ExitStack() as stack:
        theirs = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        theirs.connect("\0" + name)
        pipe = os.pipe()
        passed = {
            "nothing": list,
            "a pipe": lambda: [pipe[0]],
            "could shrink": lambda: [memory(2 * RING_BYTES, seal=False)],
            "too small": lambda: [memory(mmap.PAGESIZE, seal=True)],
        }[what]()
        for descriptor in {*pipe, *passed}:
            stack.callback(os.close, descriptor)
        socket.send_fds(theirs, [b"key"], passed)
        before = len(os.listdir("/proc/self/fd"))
        connection = accept(listening)
        _, ours = unix_link.introduced(connection, lambda _: True)
        assert ours is not None
        stack.callback(ours.close)
        assert len(os.listdir("/proc/self/fd")) == before + 1  # the connection
        assert not ours.send(header(1), [b"frame"])
        assert ours.send(header(2), [])
        assert theirs.recv(1000) == header(2)
        theirs.send(header(3) + pb.ToServer(shared=pb.Shared(at=0, bytes=[64])).SerializeToString())
        with pytest.raises(LinkClosedError, match="cannot be"):
            ours.receive()


def test_a_stranger_leaves_nothing_open() -> None:
    with listener() as (name, listening):
        before = len(os.listdir("/proc/self/fd"))
        stranger = unix_link.connect(name, b"no key of anybody's")
        assert stranger is not None
        connection = accept(listening)
        assert unix_link.introduced(connection, lambda _: False) == (b"no key of anybody's", None)
        connection.close()
        with pytest.raises(LinkClosedError):
            stranger.receive()
        assert not stranger.send(header(1), [])
        stranger.close()
        assert len(os.listdir("/proc/self/fd")) == before


def test_nobody_listens() -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert unix_link.connect("nobody", b"key") is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_nothing_said_yet() -> None:
    with listener() as (name, listening), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as theirs:
        theirs.connect("\0" + name)
        with accept(listening) as connection:
            assert unix_link.introduced(connection, lambda _: True) == (None, None)
            theirs.close()
            assert unix_link.introduced(connection, bool) == (b"", None)


def test_what_came_before_it_was_closed_is_read() -> None:
    """Also where the one who closed it had not read all: that is an error, which Linux reports first."""
    with linked() as (ours, theirs):
        assert ours.receive() is None
        assert ours.send(header(1), [])
        assert take(theirs) == (1, [])
        assert ours.send(header(2), [b"nobody reads this"])
        assert theirs.send(header(1), [b"result 1"])
        assert theirs.send(header(2), [b"result 2"])
        theirs.close()
        assert [take(ours) for _ in range(2)] == [(1, [b"result 1"]), (2, [b"result 2"])]
        for _ in range(2):
            with pytest.raises(LinkClosedError, match="closed"):
                ours.receive()
        assert not ours.send(header(3), [])


def test_frames_outlive_the_link() -> None:
    """A model keeps an observation, a client that is slow has its answer to come: neither keeps memory mapped or a descriptor open."""
    before = len(os.listdir("/proc/self/fd"))
    with linked() as (ours, theirs):
        assert ours.send(header(1), [b"a" * 10_000, b"b"])
        received = theirs.receive()
    assert received is not None
    assert received[1] == [b"a" * 10_000, b"b"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_other_end_hears_of_what_was_read_though_messages_go_another_way() -> None:
    with linked() as (ours, theirs):
        frame = bytes(SHARED_BYTES)
        for n in range(3 * RING_BYTES // SHARED_BYTES):
            assert ours.send(header(n), [frame])
            assert take(theirs) == (n, [frame])
            assert not theirs.send(header(n), [frame, frame])
            theirs.tell()
            theirs.tell()  # it has
            received = ours.receive()
            assert received is not None
            assert not received[0].results
            assert ours.receive() is None


@pytest.mark.parametrize("frame", [memoryview(bytes(10))[::2], memoryview(np.zeros((4, 3), np.uint8).T)])
def test_what_cannot_be_copied_is_left_to_others(frame: Any) -> None:
    with linked() as (ours, theirs):
        assert not ours.send(header(1), [frame])
        assert ours.send(header(2), [np.arange(3, dtype=np.float32).data])
        assert take(theirs) == (2, [np.arange(3, dtype=np.float32).tobytes()])


@pytest.mark.parametrize(
    "shared",
    [
        {"at": RING_BYTES - 64, "bytes": [1000]},
        {"at": 2**64 - 64, "bytes": [64]},
        {"at": 0, "bytes": [64]},  # it was read
        {"at": 64, "bytes": [2**63]},
        {"at": 64, "bytes": [SHARED_BYTES + 1]},
        {"at": 64, "bytes": [64] * (SHARED_BYTES // 64 + 1)},
    ],
)
def test_a_message_with_impossible_frames_ends_the_link(shared: dict[str, Any]) -> None:
    with linked() as (ours, theirs):
        assert ours.send(header(1), [])
        assert take(theirs) == (1, [])
        assert theirs.send(header(1), [bytes(64)])
        assert take(ours) == (1, [bytes(64)])
        assert theirs.send(header(2) + pb.ToServer(shared=pb.Shared(**shared)).SerializeToString(), [])
        with pytest.raises(LinkClosedError, match="cannot be"):
            ours.receive()
        assert ours.send(header(2), [bytes(64)])  # that did not spoil what this end tells


def test_what_is_no_message_ends_the_link() -> None:
    with linked() as (ours, theirs):
        assert theirs.send(b"\xff\xff", [])
        with pytest.raises(LinkClosedError, match="no message"):
            ours.receive()


def test_positions_that_were_never_written_are_not_believed() -> None:
    with linked() as (ours, theirs):
        assert theirs.send(header(1) + pb.ToServer(shared=pb.Shared(read=10**9)).SerializeToString(), [])
        assert take(ours) == (1, [])
        sent = 0
        while ours.send(header(sent), [bytes(SHARED_BYTES)]):
            sent += 1
        assert sent == RING_BYTES // SHARED_BYTES
