"""Settings from a TOML, YAML or JSON file, and the checks that concern several settings at once."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError

from inferential.config.schema import InferentialConfig
from inferential.errors import ConfigError, MissingDependencyError, describe
from inferential.types import MAX_NAME_BYTES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def load_config(path: str | Path) -> InferentialConfig:
    """Reads settings from a file, .toml, .yaml, .yml or .json.

    Raises:
        ConfigError: it cannot be read, or a setting is wrong; names the setting, its value and what it may be.
    """
    path = Path(path)
    data = read_data(path)
    try:
        return parse_config({} if data is None else data)
    except ConfigError as e:
        raise ConfigError(f"{path}: {e}") from None


def read_data(path: Path) -> Any:
    """What is in a .toml, .yaml, .yml or .json file.

    Raises:
        ConfigError: it cannot be read.
    """
    kind = {".toml": "TOML", ".yaml": "YAML", ".yml": "YAML", ".json": "JSON"}.get(path.suffix)
    if kind is None:
        raise ConfigError(f"{path}: settings are read from .toml, .yaml, .yml or .json files")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot read it: {e}") from None
    try:
        if kind == "TOML":
            return tomllib.loads(text)
        return json.loads(text, object_pairs_hook=_unique) if kind == "JSON" else _yaml(text)
    except RecursionError:
        raise ConfigError(f"{path}: is no {kind} for settings: it is nested too deeply") from None
    except ValueError as e:
        raise ConfigError(f"{path}: is no {kind}: {e}") from None


def parse_config(data: Any) -> InferentialConfig:
    """Settings from nested mappings, as in a file.

    Raises:
        ConfigError: a setting is wrong; every wrong one has a line.
    """
    config = validated(InferentialConfig, data)
    check_config(config)
    return config


M = TypeVar("M", bound=BaseModel)


def validated(kind: type[M], data: Any) -> M:
    """Settings of that kind from nested mappings.

    Raises:
        ConfigError: a setting is wrong; every wrong one has a line.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"settings are a table of sections, not {type(data).__name__}")
    try:
        return kind.model_validate(data)
    except ValidationError as e:
        raise ConfigError("\n".join(_line(kind, error) for error in e.errors(include_url=False))) from None


def check_config(config: InferentialConfig) -> None:
    """The checks that a type cannot make: the endpoint, and settings that concern each other.

    Raises:
        ConfigError: the endpoint is none, a name cannot come over the wire, or two settings contradict each other.
    """
    _check_endpoint(config.transport.bind)
    for section, names in (("models.known", config.models.known), ("clients", config.clients)):
        for name in names:
            check_name(section, name)
    ttl_ms = config.queue.request_ttl_ms
    budgets: dict[str, float | None] = {
        "scheduling.default_latency_budget_ms": config.scheduling.default_latency_budget_ms
    }
    budgets |= {f"clients.{n}.latency_budget_ms": c.latency_budget_ms for n, c in config.clients.items()}
    budgets |= {f"models.known.{n}.latency_budget_ms": m.latency_budget_ms for n, m in config.models.known.items()}
    budgets["models.default.latency_budget_ms"] = config.models.default.latency_budget_ms
    for name, budget in budgets.items():
        if budget is not None and budget > ttl_ms:
            raise ConfigError(f"{name} is {budget:g}; it may be at most queue.request_ttl_ms, which is {ttl_ms:g}")
    idle_s = config.transport.idle_client_timeout_s
    if idle_s * 1e3 < ttl_ms:
        raise ConfigError(
            f"transport.idle_client_timeout_s is {idle_s:g}; it must be at least queue.request_ttl_ms "
            f"({ttl_ms / 1e3:g} s), else clients are forgotten while they wait for an answer"
        )


def check_name(where: str, name: str) -> None:
    """A model's or a client's name.

    Raises:
        ConfigError: no observation could carry it.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = 0
    if not 1 <= size <= MAX_NAME_BYTES:
        raise ConfigError(f"{where}: {name!r} is no name; use 1 to {MAX_NAME_BYTES} bytes of text")


def with_transport(endpoint: str) -> str:
    """The endpoint, where it names no transport as one of TCP."""
    return endpoint if "://" in endpoint else f"tcp://{endpoint}"


def _check_endpoint(bind: str) -> None:
    transport, _, address = with_transport(bind).partition("://")
    if transport == "ipc" and address:
        return
    host, _, port = address.rpartition(":")
    # ZMQ itself takes the port modulo 65,536.
    if (
        transport != "tcp"
        or not host
        or not (port == "*" or (port.isascii() and port.isdigit() and int(port) < 65_536))
    ):
        raise ConfigError(
            f"transport.bind is {bind!r}; it should be like tcp://127.0.0.1:5555, tcp://*:5555 or ipc:///run/inferential.sock, "
            "with a port up to 65535"
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _yaml(text: str) -> Any:
    """Raises ValueError where it is none, or a key is there twice, of which YAML would take the last."""
    try:
        import yaml
    except ImportError:
        raise MissingDependencyError("YAML files need pyyaml: pip install 'inferential[server]'") from None

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            lines: dict[str, int] = {}
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    line = key.start_mark.line + 1
                    if key.value in lines:
                        raise ValueError(f"line {line}: {key.value!r} is in line {lines[key.value]} already")
                    lines[key.value] = line
            return node

    try:
        return yaml.load(text, Loader)
    except RecursionError:
        raise
    except Exception as e:  # of a tag and a value that do not fit it says KeyError, IndexError, AttributeError
        raise ValueError(e if isinstance(e, (yaml.YAMLError, ValueError)) else describe(e)) from None


def _line(kind: type[BaseModel], error: Any) -> str:
    """One validation error as a line for people."""
    location: Sequence[Any] = error["loc"]
    name = ".".join(str(part) for part in location)
    if error["type"] == "extra_forbidden":
        names = _names(kind, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), names, n=1)
        known = ", ".join(names)
        return f"{name}: there is no such setting; " + (f"did you mean {near[0]!r}?" if near else f"there are: {known}")
    if error["type"] == "value_error":  # a check of ours, with words of its own
        return f"{name}: {error['ctx']['error']}" if name else str(error["ctx"]["error"])
    if error["type"] == "missing":
        return f"{name} is missing"
    value = error["input"]
    shown = f"a {type(value).__name__}" if isinstance(value, Mapping | list) else repr(value)
    message = error["msg"][:1].lower() + error["msg"][1:]
    return f"{name} is {shown}: {message.replace('input should', 'it should')}"


def _names(kind: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """The settings there are in a section."""
    model: Any = kind
    is_key = False
    for part in location:
        if is_key:  # of a table such as models.known, or a place in a list: what follows describes one entry
            is_key = False
            continue
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            return []
        is_key = get_origin(field.annotation) in (dict, list)
        arguments = getattr(field.annotation, "__args__", ())
        model = next((a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)), field.annotation)
    return sorted(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
