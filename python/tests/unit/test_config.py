from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from inferential.config import table
from inferential.config.load import check_config, load_config, parse_config
from inferential.config.schema import InferentialConfig, ModelConfig, ModelsConfig
from inferential.errors import ConfigError
from inferential.metrics.names import METRICS

DOCS = Path(__file__).parents[3] / "docs"

TOML = """
[transport]
bind = "tcp://127.0.0.1:7777"
[scheduling.pipeline_dispatch]
enabled = true
[models.known.policy]
max_inflight = 4
"""
YAML = """
transport: {bind: "tcp://127.0.0.1:7777"}
scheduling: {pipeline_dispatch: {enabled: true}}
models: {known: {policy: {max_inflight: 4}}}
"""


@pytest.mark.parametrize(("name", "text"), [("a.toml", TOML), ("a.yaml", YAML), ("a.yml", YAML)])
def test_files(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    config = load_config(path)
    assert config.transport.bind == "tcp://127.0.0.1:7777"
    assert config.scheduling.pipeline_dispatch.enabled
    assert config.models.of("policy").max_inflight == 4
    assert config.models.of("other").max_inflight == 1


@pytest.mark.parametrize("name", ["empty.toml", "empty.yaml"])
def test_an_empty_file_is_all_defaults(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("")
    assert load_config(path) == InferentialConfig()


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("a.toml", "transport = [", "is no TOML"),
        ("a.yaml", "transport: [", "is no YAML"),
        ("a.json", "{", "is no JSON"),
        ("a.yaml", "queue:\n  max_bytes: 1\ntransport: {}\nqueue: {}\n", "line 4: 'queue' is in line 1 already"),
        ("a.yaml", "queue: 2026-13-45", "is no YAML"),
        ("a.yaml", "queue: {max_bytes: 1, max_bytes: 2}", "line 1: 'max_bytes' is in line 1 already"),
        ("a.yaml", "queue: !!timestamp x", "is no YAML"),
        ("a.yaml", "queue: !!bool x", "is no YAML"),
        ("a.yaml", "queue: !!int ''", "is no YAML"),
        ("a.json", '{"queue": {}, "queue": {}}', "'queue' is there twice"),
        ("a.toml", "[clients.share]\nnonsense = 1", "no such setting; there are: "),
        ("a.toml", "[clients.share]\nshares = 1", "did you mean 'share'"),
        ("a.yaml", "queue: 2026-11-28", "queue is datetime.date"),
        ("a.yaml", "[" * 5000, "nested too deeply"),
        ("a.toml", "a = " + "[" * 5000, "nested too deeply"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", '{"transport": {"max_message_bytes": 99999999999999999999}}', "transport.max_message_bytes is 9999"),
        ("a.ini", "{}", r"\.toml, \.yaml, \.yml or \.json"),
        ("a.yaml", "- 1", "a table of sections, not list"),
        ("a.toml", "[transport]\nbind = 3", "transport.bind is 3: it should be a valid string"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, name: str, text: str, word: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=word) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read it"):
        load_config(tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transport": {"bindd": "x"}}, "transport.bindd: there is no such setting; did you mean 'bind'?"),
        ({"transprt": {}}, "transprt: there is no such setting; did you mean 'transport'?"),
        ({"lifecycle": {"zzz": 1}}, "lifecycle.zzz: there is no such setting; there are: grace_period_s"),
        (
            {"models": {"known": {"a": {"max_inflite": 1}}}},
            "models.known.a.max_inflite: there is no such setting; did you mean 'max_inflight'?",
        ),
        ({"queue": {"overflow": "block"}}, "queue.overflow is 'block': it should be 'drop_oldest' or 'reject_newest'"),
        ({"queue": {"max_requests": 0}}, "queue.max_requests is 0: it should be greater than or equal to 1"),
        ({"queue": {"request_ttl_ms": float("nan")}}, "queue.request_ttl_ms is nan: "),
        ({"clients": {"r": {"share": 0}}}, "clients.r.share is 0: it should be greater than or equal to 0.01"),
        ({"queue": {"request_ttl_ms": 100.0}}, "scheduling.default_latency_budget_ms is 1000; it may be at most"),
        ({"clients": {"r": {"latency_budget_ms": 9000}}}, "clients.r.latency_budget_ms is 9000; it may be at most"),
        ({"models": {"default": {"latency_budget_ms": 9000}}}, "models.default.latency_budget_ms is 9000; it may be"),
        ({"models": {"known": {"a": {"max_inflight": True}}}}, "a.max_inflight is True: it should be a valid integer"),
        ({"models": {"known": {"a": {"max_inflight": "4"}}}}, "a.max_inflight is '4': it should be a valid integer"),
        ({"dispatch": {"staging": 1}}, "dispatch.staging is 1: it should be a valid boolean"),
        ({"clients": {"r": {"share": float("inf")}}}, "clients.r.share is inf: it should be a finite number"),
        ({"transport": {"bind": "tcp://*:99999"}}, "transport.bind is 'tcp://*:99999'; it should be like"),
        ({"transport": {"bind": "localhost"}}, "transport.bind is 'localhost'; it should be like"),
        ({"transport": {"bind": "tcp://127.0.0.1"}}, "transport.bind is 'tcp://127.0.0.1'; it should be like"),
        ({"transport": {"bind": "inproc://server"}}, "transport.bind is 'inproc://server'; it should be like"),
        ({"transport": {"bind": "tcp://:5555"}}, "transport.bind is 'tcp://:5555'; it should be like"),
        ({"models": {"known": {"": {}}}}, "models.known: '' is no name; use 1 to 256 bytes of text"),
        ({"models": {"known": {"é" * 129: {}}}}, "is no name; use 1 to 256 bytes of text"),
        ({"clients": {"": {}}}, "clients: '' is no name; use 1 to 256 bytes of text"),
        ({"transport": {"idle_client_timeout_s": 1}}, "transport.idle_client_timeout_s is 1; it must be at least"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_it_may_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "bind", ["tcp://*:*", "tcp://[::1]:5555", "tcp://eth0:65535", "tcp://lo:0", "ipc://@abstract", "localhost:5555"]
)
def test_endpoints(bind: str) -> None:
    assert parse_config({"transport": {"bind": bind}}).transport.bind == bind


def test_every_wrong_setting_has_a_line() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"queue": {"overflow": 1, "max_requests": -1, "nope": 1}})
    assert len(str(caught.value).splitlines()) == 3


def test_assignments_are_checked() -> None:
    config = InferentialConfig(models=ModelsConfig(known={"a": ModelConfig(max_inflight=4)}))
    with pytest.raises(ValidationError, match="max_requests"):
        config.queue.max_requests = 0
    with pytest.raises(ValueError, match="bindd"):
        config.transport.bindd = "x"  # type: ignore[attr-defined]
    check_config(config)


def test_the_documentation_has_the_settings_as_they_are() -> None:
    text = (DOCS / "operations.md").read_text()
    assert table.BEGIN in text
    assert table.renew(text) == text, "renew it: python -m inferential.config.table docs/operations.md"
    assert all(meaning for _, _, meaning in table.settings()), "every setting says what it does"


def test_the_documentation_has_the_metrics_as_they_are() -> None:
    lines = (DOCS / "operations.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| `") and line.count("|") == 5]
    for name, metric in METRICS.items():
        assert f"| `{name}` | {metric.kind.value} | {', '.join(metric.labels)} | {metric.meaning} |" in rows


def test_a_byte_order_mark_is_no_part_of_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("[queue]\nmax_bytes = 7\n", encoding="utf-8-sig")
    assert load_config(path).queue.max_bytes == 7


def test_merged_keys_of_yaml_may_be_given_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "models:\n  known:\n    a: &a {max_inflight: 2, latency_budget_ms: 20.0}\n    b: {<<: *a, max_inflight: 3}\n"
    )
    known = load_config(path).models.known
    assert [(m.max_inflight, m.latency_budget_ms) for m in known.values()] == [(2, 20.0), (3, 20.0)]


def test_a_merge_within_a_merge_is_no_key_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "models:\n  default: &base\n    max_inflight: 2\n  known:\n"
        "    a: &a\n      <<: *base\n      max_inflight: 3\n    b:\n      <<: *a\n"
    )
    assert [m.max_inflight for m in load_config(path).models.known.values()] == [3, 3]
