"""What both ends of the direct path share."""

from __future__ import annotations

import json

import pytest
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
