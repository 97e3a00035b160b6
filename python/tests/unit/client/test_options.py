"""A connection's settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from inferential import AsyncConnection, Connection
from inferential.client import core
from inferential.client.options import Options
from inferential.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ("localhost:5555", "tcp://localhost:5555"),
        ("tcp://10.0.0.2:1", "tcp://10.0.0.2:1"),
        (" robot.local:65535 ", "tcp://robot.local:65535"),
        ("\t tcp://my-robot_2.local:0005555\r\n", "tcp://my-robot_2.local:5555"),
        ("[::1]:5555", "tcp://[::1]:5555"),
        ("tcp://[fe80::1%eth0]:05555", "tcp://[fe80::1%eth0]:5555"),
        ("[::ffff:10.0.0.2]:5555", "tcp://[::ffff:10.0.0.2]:5555"),
        (" ipc:///run/inferential ", "ipc:///run/inferential"),
        ("ipc://@abstract", "ipc://@abstract"),
    ],
)
def test_an_address_is_made_what_zmq_wants(given: str, means: str) -> None:
    assert Options(given, "robot").server == means


# As in the tests of the other SDKs.
@pytest.mark.parametrize(
    "address",
    ["", " ", "localhost", "tcp://localhost", "localhost:", "localhost:0", "localhost:00", "localhost:65536", "host:99999999999",
     "host:5555x", "host:5555/x", "host:-1", "host:+5", "host: 5555", "host:\u0665", "host:5555:6", "10.0.0.2:5555:6", ":5555",
     "tcp://:5555", "*:5555", "tcp://*:5555", "a b:5555", "ü:5555", "_a:5555", "host/x:5555", "host\0:5555", "::1:5555", "[::1]",
     "[::1:5555", "::1]:5555", "[::1]x:5555", "[]:5555", "[[::1]]:5555", "[1:2]:5555", "[127.0.0.1]:5555", "[::1%]:5555",
     "[::1%e h]:5555", "[%eth0]:5555", "lo:0;host:5555", "a;b:5555", "ipc://", "ipc://a\0b",
     "TCP://host:5555", "udp://host:5555", "inproc://x", "http://host:80/x", "://host:5555", "tcp:host:5555"],
)  # fmt: skip
def test_an_address_that_can_never_connect_is_refused(address: str) -> None:
    with pytest.raises(ConfigError) as e:
        Options(address, "robot")
    assert str(e.value) == (
        f"server is {address!r}; it must be tcp://HOST:PORT, with a port of 1 to 65535 and an IPv6 address in brackets, or ipc://PATH"
    )


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"server": 5555}, ["server", "5555"]),
        ({"client_id": ""}, ["client_id", "empty"]),
        ({"client_id": "é" * 129}, ["client_id", "258", "256"]),
        ({"client_id": "\ud800"}, ["client_id", "Unicode"]),
        ({"client_type": 3}, ["client_type", "3"]),
        ({"connect_timeout_ms": -1}, ["connect_timeout_ms", "-1"]),
        ({"request_timeout_ms": 0}, ["request_timeout_ms"]),
        ({"request_timeout_ms": float("nan")}, ["request_timeout_ms", "nan", "1 or more"]),
        ({"heartbeat_ms": 200}, ["heartbeat_ms", "300", "1000"]),
        ({"heartbeat_ms": True}, ["heartbeat_ms"]),
        ({"linger_ms": -1}, ["linger_ms"]),
        ({"max_message_bytes": "1MB"}, ["max_message_bytes", "1MB"]),
        ({"high_water_mark": 0}, ["high_water_mark"]),
        ({"high_water_mark": 1.5}, ["high_water_mark", "1.5", "whole number"]),
        ({"hold_off": 5}, ["hold_off", "5", "True or False"]),
        ({"zero_copy": "no"}, ["zero_copy", "'no'", "True or False"]),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named(values: dict[str, Any], says: list[str]) -> None:
    with pytest.raises(ConfigError) as e:
        Options(**({"server": "localhost:5555", "client_id": "robot"} | values))
    for words in says:
        assert words in str(e.value)


@pytest.mark.parametrize("connection", [Connection, AsyncConnection])
def test_what_cannot_be_called_is_no_on_link(connection: Any) -> None:
    with pytest.raises(ConfigError, match="on_link is 5; it must be a function that takes a LinkState"):
        connection("localhost:5555", "robot", on_link=5)


def test_numbers_of_numpy_and_great_ones_are_numbers() -> None:
    found = Options(
        "localhost:5555", "robot", connect_timeout_ms=np.float32(7), linger_ms=np.int64(8), request_timeout_ms=10**400
    )
    assert [(type(v), v) for v in (found.connect_timeout_ms, found.linger_ms)] == [(float, 7.0), (int, 8)]
    assert found.request_timeout_ms > 1e100
    assert core.deadline_after(10**400, 1.0) > 1e100
