"""What cannot be brought about with real sockets at will."""

from __future__ import annotations

from typing import Any

import pytest
import zmq

from inferential.client.options import Options
from inferential.client.socket import ClientSocket


class Breaking:
    """A DEALER whose link breaks in the midst of a message."""

    def __init__(self, breaks_at: int) -> None:
        self.breaks_at = breaks_at
        self.parts: list[bytes] = []

    def send(self, part: bytes, flags: int, **options: Any) -> None:
        self.parts.append(part)
        if len(self.parts) - 1 == self.breaks_at:
            raise zmq.Again


@pytest.mark.parametrize(("breaks_at", "parts"), [(0, 1), (1, 4), (2, 4), (3, 4)])
def test_a_message_in_whose_midst_the_link_breaks_is_finished_all_the_same(breaks_at: int, parts: int) -> None:
    """Libzmq drops parts up to a last one: were it not this message's, it would be the next one's."""
    socket = ClientSocket(Options("localhost:1", "robot"))
    dealer = Breaking(breaks_at)
    socket._send = dealer.send
    try:
        assert not socket.transmit(b"envelope", [b"a", b"b"])
        assert len(dealer.parts) == parts
    finally:
        socket.close()
        socket.release(wait=True)
