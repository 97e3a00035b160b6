"""The metrics for Prometheus: counted here as they come, turned into its form when it asks."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

from inferential.errors import ConfigError
from inferential.metrics.names import METRICS, Kind

PREFIX = "inferential_"
MAX_SERIES = 2000  # label sets per metric; more are counted under `other`
OTHER = "other"


class _Series:
    __slots__ = ("counts", "total")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.total = 0.0


class PrometheusExport:
    """Aggregates points and serves them over HTTP. `record` belongs to one thread; scrapes come from another.

    prometheus-client's own histograms take a lock per bucket; these take a tenth of a microsecond.
    """

    def __init__(self, *, client_label: bool = False) -> None:
        self._client_label = client_label
        self._series: dict[str, dict[tuple[str, ...], _Series]] = {name: {} for name in METRICS}
        self._keeps = {
            name: tuple(label for label in m.labels if label == "model" or (label == "client" and client_label))
            for name, m in METRICS.items()
        }
        self._server: Any = None
        self.port: int | None = None
        """Where it listens; None before it does."""
        self._thread: threading.Thread | None = None

    def record(self, name: str, value: float, model: str | None, client: str | None) -> None:
        """One point."""
        keeps = self._keeps[name]
        if not keeps:
            key: tuple[str, ...] = ()
        elif len(keeps) == 2:
            key = (client or "", model or "")
        else:
            key = ((model if keeps[0] == "model" else client) or "",)
        table = self._series[name]
        series = table.get(key)
        metric = METRICS[name]
        if series is None:
            if len(table) >= MAX_SERIES:
                key = (OTHER,) * len(key)
            series = table.setdefault(key, _Series(len(metric.buckets) + 1))
        if metric.kind is Kind.GAUGE:
            series.total = value
            return
        series.total += value
        if metric.kind is Kind.HISTOGRAM:
            series.counts[bisect_left(metric.buckets, value)] += 1

    def collect(self) -> Iterable[Any]:
        """What prometheus-client asks of a collector."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for name, metric in METRICS.items():
            keeps = self._keeps[name]
            family: Any
            if metric.kind is Kind.HISTOGRAM:
                family = HistogramMetricFamily(PREFIX + name, metric.meaning, labels=keeps)
            elif metric.kind is Kind.COUNTER:
                family = CounterMetricFamily(PREFIX + name, metric.meaning, labels=keeps)
            else:
                family = GaugeMetricFamily(PREFIX + name, metric.meaning, labels=keeps)
            for key, series in list(self._series[name].items()):
                if metric.kind is Kind.HISTOGRAM:
                    family.add_metric(key, self._cumulated(metric.buckets, series), series.total)
                else:
                    family.add_metric(key, series.total)
            yield family

    @staticmethod
    def _cumulated(buckets: tuple[float, ...], series: _Series) -> list[tuple[str, float]]:
        counts, total, out = list(series.counts), 0, []
        for bound, n in zip((*buckets, float("inf")), counts, strict=True):
            total += n
            out.append(("+Inf" if bound == float("inf") else repr(float(bound)), float(total)))
        return out

    def serve(self, port: int, address: str) -> None:
        """Starts the HTTP server on a thread of its own; port 0 picks a free one.

        Raises:
            ConfigError: the port cannot be had.
        """
        from prometheus_client import CollectorRegistry, start_http_server

        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, address, registry)
        except OSError as e:
            raise ConfigError(
                f"metrics.prometheus_port: cannot listen on {address}:{port} ({e.strerror}); choose another port or address"
            ) from None
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Ends the HTTP server."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        if self._thread is not None:
            self._thread.join(1.0)
            self._thread = None
