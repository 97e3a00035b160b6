"""What both ends of the direct path share."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from inferential.backends import link
from inferential.backends.link import Endpoint

SECRET = "5e" * 32
ENDPOINT = Endpoint("s1", "node", "tcp://127.0.0.1:1", "", ["a", "b"], SECRET, 3)


def test_endpoint_as_stored() -> None:
    assert Endpoint.from_json(ENDPOINT.to_json()) == ENDPOINT
    later = json.loads(ENDPOINT.to_json()) | {"invented": "later"}
    assert Endpoint.from_json(json.dumps(later).encode()) == ENDPOINT


@pytest.mark.parametrize("data", [b"", b"nonsense", b"[]", b"{}", b'{"server": "s"}'])
def test_what_is_no_endpoint(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"no endpoint|Expecting value"):
        Endpoint.from_json(data)


def test_proof_depends_on_everything() -> None:
    proofs = {
        link.proof(SECRET, "server", b"a", b"b"),
        link.proof(SECRET, "replica", b"a", b"b"),
        link.proof(SECRET, "server", b"ab", b""),
        link.proof(SECRET, "server", b"", b"ab"),
        link.proof(SECRET, "server", b"b", b"a"),
        link.proof("00" * 32, "server", b"a", b"b"),
    }
    assert len(proofs) == 6
    assert link.same(link.proof(SECRET, "x"), link.proof(SECRET, "x"))


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_parts_are_kept_apart(a: list[bytes], b: list[bytes]) -> None:
    assert (link.proof(SECRET, *a) == link.proof(SECRET, *b)) == (a == b)


def test_a_message_whose_link_breaks_midway_swallows_none_of_the_next_link() -> None:
    """The Hello that a replica sends on a new link, after a result that broke off on the last one."""
    address = f"ipc://@inferential-test-{os.getpid()}"
    contexts = [zmq.Context(), zmq.Context(), zmq.Context()]
    try:
        first, second = contexts[1].socket(zmq.ROUTER), contexts[2].socket(zmq.ROUTER)
        dealer = contexts[0].socket(zmq.DEALER)
        for option, value in ((zmq.IMMEDIATE, 1), (zmq.LINGER, 0), (zmq.RECONNECT_IVL, 10), (zmq.SNDTIMEO, 10_000)):
            dealer.setsockopt(option, value)
        monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_CONNECT_RETRIED)

        def until(event: int) -> None:
            seen = None
            while seen != event:
                assert monitor.poll(10_000)
                seen = int.from_bytes(monitor.recv_multipart()[0][:2], "little")

        first.bind(address)
        dealer.connect(address)
        until(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        dealer.send(b"hello")

        class Breaks:
            """The frames of a result; the link is gone when the first is to be sent."""

            def __len__(self) -> int:
                return 2

            def __iter__(self) -> Iterator[Any]:
                first.close(0)
                contexts[1].term()
                until(zmq.EVENT_CONNECT_RETRIED)  # said once the link is given up
                return iter([bytes(100_000), bytes(100_000)])

        with contextlib.suppress(zmq.Again):  # nearly always: the socket may already know that it drops the rest
            link.send(dealer, b"result", Breaks())  # type: ignore[arg-type]
        second.bind(address)
        until(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        dealer.send(b"hello again")
        assert second.poll(10_000)
        assert second.recv_multipart()[1:] == [b"hello again"]
    finally:
        for context in contexts:
            context.destroy(linger=0)
