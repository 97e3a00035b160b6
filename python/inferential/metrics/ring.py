"""The last points of one metric."""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Point: TypeAlias = "tuple[float, str | None, str | None]"
"""(value, model, client)"""


class Ring:
    """Keeps the last `size` points. One thread appends; any may read."""

    __slots__ = ("_points", "append")

    def __init__(self, size: int) -> None:
        self._points: deque[Point] = deque(maxlen=size)
        # Points are written a thousand times as often as they are read: all sorting is left to `select`.
        self.append = self._points.append
        """Adds a point; the oldest one goes where the ring is full."""

    def select(self, model: object = None, client: object = None) -> npt.NDArray[np.float64]:
        """The values of the points with these labels (None: any), oldest first; a copy. O(size)."""
        points = self._points.copy()  # at once: the other thread goes on appending
        wanted = [v for v, m, c in points if (model is None or m == model) and (client is None or c == client)]
        return np.array(wanted, np.float64)
