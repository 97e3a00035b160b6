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
        ("[::1]:5555", "tcp://[::1]:5555"),
        ("::1:5555", "tcp://::1:5555"),
        ("tcp://[fe80::1%eth0]:5555", "tcp://[fe80::1%eth0]:5555"),
        ("tcp://eth0:0;robot.local:5555", "tcp://eth0:0;robot.local:5555"),
        ("ipc:///run/inferential", "ipc:///run/inferential"),
    ],
)
def test_tcp_may_be_left_out(given: str, means: str) -> None:
    assert Options(given, "robot").server == means


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"server": "localhost"}, ["server", "'localhost'", "port"]),
        ({"server": "tcp://localhost"}, ["port"]),
        ({"server": "localhost:0"}, ["port"]),
        ({"server": "localhost:65536"}, ["port"]),
        ({"server": "localhost:http"}, ["port"]),
        ({"server": "tcp://:5555"}, ["host"]),
        ({"server": "localhost:5555:6"}, ["'localhost:5555:6'", "one port", "tcp://localhost:5555"]),
        ({"server": "tcp://10.0.0.2:5555:6"}, ["one port"]),
        ({"server": ""}, ["server"]),
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
