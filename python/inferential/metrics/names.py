"""The metrics that exist: name, kind, meaning. docs/operations.md has the same table, and a test compares them."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.Enum):
    """What may be done with a metric's points."""

    HISTOGRAM = "histogram"
    """A distribution."""
    COUNTER = "counter"
    """Every point adds its value."""
    GAUGE = "gauge"
    """The newest point is what holds."""


MS_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 50, 75, 100, 250, 500, 1000, 5000)
BYTES_BUCKETS = tuple(float(4**n) for n in range(3, 15))
COUNT_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `labels` are those that its points may carry."""

    kind: Kind
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = MS_BUCKETS


_BOTH = ("client", "model")

METRICS: dict[str, Metric] = {
    "inference_latency_ms": Metric(Kind.HISTOGRAM, _BOTH, "the model's execution alone"),
    "scheduling_wait_ms": Metric(Kind.HISTOGRAM, _BOTH, "time in the queue"),
    "e2e_latency_ms": Metric(Kind.HISTOGRAM, _BOTH, "arrival to reply: the total delay on the server"),
    "observation_staleness_ms": Metric(
        Kind.HISTOGRAM, ("client",), "age of the data on arrival, the client's clock offset taken out"
    ),
    "tensor_spread_ms": Metric(
        Kind.HISTOGRAM, ("client",), "oldest to newest timestamp among the tensors of one observation"
    ),
    "payload_size_bytes": Metric(Kind.HISTOGRAM, _BOTH, "payload of an observation", BYTES_BUCKETS),
    "batch_size": Metric(Kind.HISTOGRAM, ("model",), "requests in one call", COUNT_BUCKETS),
    "queue_depth": Metric(Kind.GAUGE, ("model",), "requests waiting when a call leaves"),
    "active_clients": Metric(Kind.GAUGE, (), "connections that are not evicted"),
    "queue_full_drops": Metric(Kind.COUNTER, _BOTH, "requests dropped or refused because a queue was full"),
    "dispatch_errors": Metric(Kind.COUNTER, ("model",), "calls that failed as a whole"),
    "dispatch_retries": Metric(Kind.COUNTER, ("model",), "calls that ran again after a failure"),
    "send_errors": Metric(Kind.COUNTER, ("client",), "replies that could not be delivered"),
    "requests_expired": Metric(Kind.COUNTER, _BOTH, "requests whose deadline passed before they were answered"),
    "observation_errors": Metric(Kind.COUNTER, ("client",), "messages refused because a field or tensor was wrong"),
    "client_disconnected": Metric(Kind.COUNTER, ("client",), "connections that went away or were evicted"),
    "late_replies": Metric(
        Kind.COUNTER, _BOTH, "results that came after their request had ended or their call was given up; dropped"
    ),
}
