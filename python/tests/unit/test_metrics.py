from __future__ import annotations

import sys
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

import inferential
from inferential.errors import ConfigError
from inferential.metrics import collector as collector_module
from inferential.metrics import prometheus as prometheus_module
from inferential.metrics.collector import MetricsCollector
from inferential.metrics.names import METRICS, Kind
from inferential.metrics.prometheus import PrometheusExport
from inferential.metrics.ring import Ring

WAIT_S = 20.0


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_recorded_somewhere(name: str) -> None:
    package = Path(inferential.__file__).parent
    users = [p for p in package.rglob("*.py") if p.name != "names.py" and f'"{name}"' in p.read_text()]
    assert users


def test_stats_are_those_of_the_points_with_the_labels() -> None:
    metrics = MetricsCollector()
    for i in range(100):
        metrics.record("e2e_latency_ms", float(i), "a" if i % 2 else "b", f"c{i % 10}")
    found = metrics.get_stats("e2e_latency_ms", labels={"model": "a"})
    values = np.arange(1, 100, 2)
    assert (found.count, found.mean, found.min, found.max) == (50, 50.0, 1.0, 99.0)
    assert (found.p50, found.p95, found.p99) == tuple(np.percentile(values, (50, 95, 99)))
    assert metrics.get_stats("e2e_latency_ms").count == 100
    assert metrics.get_stats("e2e_latency_ms", labels={"client": "c3"}).count == 10
    assert metrics.get_stats("e2e_latency_ms", labels={"model": "b", "client": "c3"}).count == 0


def test_with_no_points_the_count_says_so() -> None:
    found = MetricsCollector().get_stats("queue_depth")
    assert found.count == 0
    assert np.isnan(found.p99)


def test_wrong_names_are_told() -> None:
    with pytest.raises(ValueError, match=r"no metric 'e2e'; there are .*e2e_latency_ms"):
        MetricsCollector().get_stats("e2e")
    with pytest.raises(ValueError, match="no label 'robot'"):
        MetricsCollector().get_stats("queue_depth", labels={"robot": "x"})
    with pytest.raises(ValueError, match="no metric 5; there are"):
        MetricsCollector().get_stats(5)
    with pytest.raises(ValueError, match="no label 5"):
        MetricsCollector().get_stats("queue_depth", labels={5: "m"})


def test_a_label_that_is_no_string_is_on_no_point() -> None:
    metrics = MetricsCollector()
    metrics.record("queue_depth", 1.0, "m")
    assert metrics.get_stats("queue_depth", labels={"model": 5}).count == 0
    assert metrics.get_stats("queue_depth", labels={"model": None}).count == 1


@given(st.integers(1, 20), st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 60)), max_size=200))
def test_a_ring_keeps_the_last_points(size: int, points: list[tuple[int, int]]) -> None:
    ring = Ring(size)
    for value, client in points:
        ring.append(float(value), "m", str(client))
    last = points[-size:]
    assert list(ring.select("m")) == [float(v) for v, _ in last]
    assert not len(ring.select("other"))
    for client in {c for _, c in points}:
        assert list(ring.select(client=str(client))) == [float(v) for v, c in last if c == client]


def test_a_ring_is_read_while_it_is_written() -> None:
    """No point is made of halves of two, whatever the other thread has overwritten meanwhile."""
    ring = Ring(50)
    end = threading.Event()

    def write() -> None:
        number = 0
        while not end.is_set():
            number += 1
            ring.append(float(number), "even" if number % 2 == 0 else "odd", None)

    writer = threading.Thread(target=write)
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    writer.start()
    try:
        for _ in range(2000):
            even = ring.select("even")
            assert not (even % 2).any()
            assert len(even) <= 25
            assert (np.diff(even) == 2).all()
    finally:
        sys.setswitchinterval(switch_s)
        end.set()
        writer.join(WAIT_S)


def test_callbacks_get_name_value_and_the_labels_there_are() -> None:
    metrics = MetricsCollector()
    got: list[tuple[str, float, dict[str, str]]] = []
    metrics.on_metric(lambda *point: got.append(point))
    metrics.record("queue_depth", 3, "m")
    metrics.record("active_clients", 2)
    metrics.close(WAIT_S)
    assert got == [("queue_depth", 3, {"model": "m"}), ("active_clients", 2, {})]


def test_a_callback_that_raises_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    metrics = MetricsCollector()
    got: list[str] = []

    def bad(name: str, value: float, labels: dict[str, str]) -> None:
        labels.clear()
        raise RuntimeError("mine")

    metrics.on_metric(bad)
    metrics.on_metric(lambda name, value, labels: got.append(labels["model"]))
    for _ in range(50):
        metrics.record("queue_depth", 1, "m")
    metrics.close(WAIT_S)
    assert got == ["m"] * 50
    assert len([r for r in caplog.records if "callback failed" in r.message]) == 1


def test_a_callback_that_hangs_delays_nobody_and_loses_points_countably(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector_module, "QUEUED_POINTS", 10)
    metrics = MetricsCollector()
    entered, release, got = threading.Event(), threading.Event(), []

    def slow(name: str, value: float, labels: dict[str, str]) -> None:
        got.append(value)
        entered.set()
        release.wait(WAIT_S)

    metrics.on_metric(slow)
    metrics.record("queue_depth", 0)
    metrics.flush()
    assert entered.wait(WAIT_S)
    for i in range(1, 30):
        metrics.record("queue_depth", i)
        metrics.flush()
    assert metrics.dropped_callbacks == 20
    assert metrics.get_stats("queue_depth").count == 30
    release.set()
    metrics.close(WAIT_S)
    assert got == list(range(10))


def scraped(export: PrometheusExport) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{export.port}/metrics", timeout=WAIT_S) as answer:
        text = answer.read().decode()
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_prometheus_gets_histograms_counters_and_gauges() -> None:
    export = PrometheusExport()
    metrics = MetricsCollector(export=export)
    export.serve(0, "127.0.0.1")
    try:
        for value in (0.3, 7.0, 7.0, 10**6):
            metrics.record("e2e_latency_ms", value, "m", "robot-1")
        metrics.record("dispatch_errors", 1, "m")
        metrics.record("dispatch_errors", 2, "m")
        metrics.record("queue_depth", 9, "m")
        metrics.record("queue_depth", 4, "m")
        found = scraped(export)
    finally:
        export.close()
    model = (("model", "m"),)
    assert found["inferential_e2e_latency_ms_count"][model] == 4
    assert found["inferential_e2e_latency_ms_sum"][model] == pytest.approx(1000014.3)
    buckets = found["inferential_e2e_latency_ms_bucket"]
    assert buckets[(("le", "5.0"), *model)] == 1
    assert buckets[(("le", "10.0"), *model)] == 3
    assert buckets[(("le", "+Inf"), *model)] == 4
    assert found["inferential_dispatch_errors_total"][model] == 3
    assert found["inferential_queue_depth"][model] == 4
    assert not any("robot-1" in str(labels) for samples in found.values() for labels in samples)


def test_the_client_label_is_there_when_asked_for_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus_module, "MAX_SERIES", 5)
    export = PrometheusExport(client_label=True)
    metrics = MetricsCollector(export=export)
    export.serve(0, "127.0.0.1")
    try:
        for i in range(50):
            metrics.record("e2e_latency_ms", 1.0, "m", f"robot-{i}")
        found = scraped(export)
    finally:
        export.close()
    counts = found["inferential_e2e_latency_ms_count"]
    assert counts[("client", "robot-0"), ("model", "m")] == 1
    assert counts[("client", "other"), ("model", "other")] == 45
    assert len(counts) == 6


def test_a_port_in_use_is_told() -> None:
    first, second = PrometheusExport(), PrometheusExport()
    first.serve(0, "127.0.0.1")
    try:
        with pytest.raises(ConfigError, match=r"metrics.prometheus_port: cannot listen on 127\.0\.0\.1"):
            second.serve(first.port or 0, "127.0.0.1")
    finally:
        first.close()
        second.close()


def test_every_metric_can_be_recorded_and_exported() -> None:
    export = PrometheusExport(client_label=True)
    metrics = MetricsCollector(export=export)
    for name in METRICS:
        metrics.record(name, 2.0, "m", "c")
        assert metrics.get_stats(name).mean == 2.0
    families = {f.name: f for f in export.collect()}
    for name, metric in METRICS.items():
        assert families[f"inferential_{name}"].type == metric.kind.value
        assert families[f"inferential_{name}"].samples
        assert metric.kind in Kind
