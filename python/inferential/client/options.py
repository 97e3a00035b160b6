"""A connection's settings, checked."""

from __future__ import annotations

import ipaddress
import numbers
import re
from dataclasses import dataclass
from typing import Any

from inferential.errors import ConfigError
from inferential.types import MAX_NAME_BYTES, as_float, is_number

_HOST_AND_PORT = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]*|\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9][A-Za-z0-9._-]*)?)\]):([0-9]+)"
)


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
        return self.server.startswith("tcp://") and "[" in self.server


def _address(server: object) -> str:
    """As ZMQ wants it: with the scheme, without blanks around."""
    address = server.strip(" \t\r\n") if isinstance(server, str) else ""
    if address.startswith("ipc://") and len(address) > 6 and "\0" not in address:
        return address
    found = _HOST_AND_PORT.fullmatch(address.removeprefix("tcp://"))
    if found is not None:
        host, ipv6, port = found[1], found[2], found[3].lstrip("0")
        if 1 <= len(port) <= 5 and int(port) <= 65_535 and (ipv6 is None or _is_ipv6(ipv6)):
            return f"tcp://{host}:{port}"
    raise ConfigError(
        f"server is {server!r}; it must be tcp://HOST:PORT, with a port of 1 to 65535 and an IPv6 address in brackets, "
        "or ipc://PATH"
    )


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
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
