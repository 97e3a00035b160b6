"""A connection's settings, checked."""

from __future__ import annotations

import ipaddress
import numbers
import re
from dataclasses import dataclass
from typing import Any

from inferential.errors import ConfigError
from inferential.types import MAX_NAME_BYTES, as_float, is_number

_SCHEME = re.compile(r"[a-z]+://")
_TCP = re.compile(r"tcp://(?:[^;]*;)?(.+):(\d+)", re.DOTALL)  # a source address may come first


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of a connection; the docstring of Connection says what they mean."""

    server: str
    client_id: str
    client_type: str = ""
    connect_timeout_ms: float = 1000.0
    request_timeout_ms: float = 30_000.0
    heartbeat_ms: int = 1000
    linger_ms: int = 200
    max_message_bytes: int = 256 * 1024 * 1024
    high_water_mark: int = 1000
    hold_off: bool = True
    zero_copy: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "server", _address(self.server))
        _name("client_id", self.client_id)
        if not self.client_id:
            raise ConfigError("client_id must not be empty; give each client a name of its own")
        _name("client_type", self.client_type)
        for setting, least in (("connect_timeout_ms", 0), ("request_timeout_ms", 1)):
            object.__setattr__(self, setting, _number(setting, getattr(self, setting), least))
        for setting, least, most in (
            ("heartbeat_ms", 300, 1000),
            ("linger_ms", 0, 10_000),
            ("max_message_bytes", 1, 2**62),
            ("high_water_mark", 1, 2**30),
        ):
            object.__setattr__(self, setting, _whole(setting, getattr(self, setting), least, most))
        _flag("hold_off", self.hold_off)
        _flag("zero_copy", self.zero_copy)

    @property
    def is_ipv6(self) -> bool:
        """Whether the server's address is a number of IPv6 and no name."""
        host, _, _ = self.server.removeprefix("tcp://").rpartition(":")
        return self.server.startswith("tcp://") and ":" in host


def _address(server: object) -> str:
    if not isinstance(server, str) or not server.strip():
        raise ConfigError(f"server is {server!r}; it must be an address, as in 'tcp://localhost:5555'")
    address = server.strip()
    if not _SCHEME.match(address):
        address = f"tcp://{address}"
    if address.startswith("tcp://"):
        found = _TCP.fullmatch(address)
        if found is None or not 1 <= int(found[2]) <= 65_535:
            raise ConfigError(
                f"server is {server!r}; a port of 1..65535 must follow the host, as in 'tcp://localhost:5555'"
            )
        if ":" in found[1] and not _is_ipv6(found[1]):
            raise ConfigError(f"server is {server!r}; one port must follow the host, as in 'tcp://localhost:5555'")
    return address


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        return False
    return True


def _name(setting: str, value: object) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{setting} is {value!r}; it must be a string")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ConfigError(f"{setting} is {value!r}, which is not valid Unicode text") from None
    if size > MAX_NAME_BYTES:
        raise ConfigError(f"{setting} has {size} bytes; it may have {MAX_NAME_BYTES}")


def _number(setting: str, value: Any, least: float) -> float:
    if not is_number(value) or not least <= value:  # NaN too
        raise ConfigError(f"{setting} is {value!r}; it must be a number of {least} or more")
    return as_float(value)


def _whole(setting: str, value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not least <= int(value) <= most:
        raise ConfigError(f"{setting} is {value!r}; it must be a whole number from {least} to {most}")
    return int(value)


def _flag(setting: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{setting} is {value!r}; it must be True or False")
