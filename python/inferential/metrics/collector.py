"""Where the server's numbers go: the rings, the callbacks, Prometheus."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from inferential.metrics.names import METRICS
from inferential.metrics.prometheus import PrometheusExport
from inferential.metrics.ring import Ring
from inferential.metrics.stats import Stats

logger = logging.getLogger("inferential.metrics")

Handler: TypeAlias = "Callable[[str, float, dict[str, str]], object]"
"""Called with a metric's name, the value, and the labels (`model`, `client`) that the point has."""

QUEUED_POINTS = 100_000  # waiting for slow callbacks; past that they are dropped and counted
LOG_INTERVAL_S = 10.0
_Point: TypeAlias = "tuple[str, float, str | None, str | None]"


class MetricsCollector:
    """Records points and answers questions about them.

    `record` and `flush` belong to the server's thread; everything else may be called from any.
    """

    def __init__(self, ring_size: int = 10_000, export: PrometheusExport | None = None) -> None:
        self._rings = {name: Ring(ring_size) for name in METRICS}
        self._export = export
        self._told = export is not None  # whether points go anywhere but into the rings
        self._handlers: list[Handler] = []
        self._pending: list[_Point] = []
        self._queue: queue.SimpleQueue[list[_Point] | None] = queue.SimpleQueue()
        self._queued = 0  # points handed to the thread
        self._delivered = 0  # points the thread is done with
        self._worker: threading.Thread | None = None
        self._dropped = 0

    def record(self, name: str, value: float, model: str | None = None, client: str | None = None) -> None:
        """One point of a metric; callbacks hear of it after the next `flush`.

        Raises:
            KeyError: there is no metric of that name.
        """
        self._rings[name].append(value, model, client)
        if self._told:
            if self._export is not None:
                self._export.record(name, value, model, client)
            if self._handlers:
                self._pending.append((name, value, model, client))

    def flush(self) -> None:
        """Hands the points since the last flush to the callbacks' thread; never waits for it."""
        pending = self._pending
        if not pending:
            return
        self._pending = []
        if self._queued - self._delivered + len(pending) > QUEUED_POINTS:
            self._dropped += len(pending)
            return
        self._queued += len(pending)
        self._queue.put(pending)

    def get_stats(self, name: Any, labels: Mapping[Any, Any] | None = None) -> Stats:
        """Figures of a metric's last points, of those with these labels.

        Args:
            name: of the metric.
            labels: any of `model` and `client`.

        Raises:
            ValueError: no such metric or label.
        """
        ring = self._rings.get(name)
        if ring is None:
            raise ValueError(f"no metric {name!r}; there are {', '.join(sorted(METRICS))}")
        labels = labels or {}
        unknown = set(labels) - {"model", "client"}
        if unknown:
            raise ValueError(f"no label {sorted(unknown)[0]!r}; metrics have model and client")
        return Stats.of(ring.select(labels.get("model"), labels.get("client")))

    def on_metric(self, handler: Handler) -> Handler:
        """Has `handler` called for every point, on a thread of its own. What it raises is logged, never felt."""
        if self._worker is None:
            self._worker = threading.Thread(target=self._deliver, name="inferential-metrics", daemon=True)
            self._worker.start()
        self._handlers.append(handler)
        self._told = True
        return handler

    @property
    def dropped_callbacks(self) -> int:
        """Points that callbacks never saw because they were too slow."""
        return self._dropped

    def close(self, timeout_s: float = 1.0) -> None:
        """Delivers what waits, for so long at most, and ends the thread."""
        self.flush()
        if self._worker is not None:
            self._queue.put(None)
            self._worker.join(timeout_s)
            self._worker = None
            self._handlers = []

    def _deliver(self) -> None:
        logged_at = -LOG_INTERVAL_S
        while (points := self._queue.get()) is not None:
            for name, value, model, client in points:
                labels: dict[str, str] = {}
                if model is not None:
                    labels["model"] = model
                if client is not None:
                    labels["client"] = client
                for handler in self._handlers:
                    try:
                        handler(name, value, dict(labels))
                    except Exception:
                        if time.monotonic() - logged_at >= LOG_INTERVAL_S:
                            logged_at = time.monotonic()
                            logger.exception("a metrics callback failed (shown once per %.0f s)", LOG_INTERVAL_S)
                self._delivered += 1
