"""Figures of a set of points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of a metric's points, in the metric's unit; with none, `count` is 0 and the rest is NaN."""

    count: int
    mean: float
    min: float
    max: float
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Stats:
        """Of an array of numbers; percentiles are interpolated linearly."""
        if not values.size:
            nan = float("nan")
            return cls(0, nan, nan, nan, nan, nan, nan)
        p50, p95, p99 = np.percentile(values, (50, 95, 99))
        return cls(
            int(values.size),
            float(values.mean()),
            float(values.min()),
            float(values.max()),
            float(p50),
            float(p95),
            float(p99),
        )
