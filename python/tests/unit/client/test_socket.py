"""What cannot be brought about with real sockets at will."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import zmq

from inferential.client.options import Options
from inferential.client.socket import ClientSocket


class Breaking:
    """A DEALER that does not take some of the parts it is given, counted from 0."""

    def __init__(self, refused: Sequence[int]) -> None:
        self.refused = refused
        self.parts: list[bytes] = []

    def send(self, part: bytes, flags: int, **options: Any) -> None:
        self.parts.append(part)
        if len(self.parts) - 1 in self.refused:
            raise zmq.Again


def transmit(refused: Sequence[int]) -> tuple[bool, list[bytes]]:
    """Whether a message got through, and what the socket was given of it."""
    socket = ClientSocket(Options("localhost:1", "robot"))
    dealer = Breaking(refused)
    socket._send = dealer.send
    try:
        return socket.transmit(b"envelope", [b"a", b"b"]), dealer.parts
    finally:
        socket.close()
        socket.release(wait=True)


@pytest.mark.parametrize("breaks_at", [1, 2, 3])
def test_a_message_in_whose_midst_the_link_breaks_is_finished_all_the_same(breaks_at: int) -> None:
    """Libzmq drops parts up to a last one: were it not this message's, it would be the next one's."""
    assert transmit([breaks_at]) == (False, [b"", b"envelope", b"a", b"b"])


def test_a_full_queue_takes_nothing() -> None:
    assert transmit([0, 1]) == (False, [b"", b""])


def test_room_that_zmq_had_not_heard_of_yet_is_found() -> None:
    assert transmit([0]) == (True, [b"", b"", b"envelope", b"a", b"b"])
