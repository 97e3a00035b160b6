"""The last points of one metric: numbers in a ring, their labels interned."""

from __future__ import annotations

from array import array
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Labels: TypeAlias = "tuple[str | None, str | None]"
"""(model, client)"""


class Ring:
    """Keeps the last `size` points. One thread appends; any may read."""

    __slots__ = ("_count", "_ids", "_labels", "_next", "_size", "_values")

    def __init__(self, size: int) -> None:
        self._size = size
        # Plain arrays: storing one number in a numpy array costs three times as much.
        self._values = array("d", bytes(8 * size))
        self._labels = array("q", bytes(8 * size))
        self._ids: dict[Labels, int] = {}
        self._next = 0
        self._count = 0

    def append(self, value: float, labels: Labels) -> None:
        """Adds a point; the oldest one goes where the ring is full."""
        label = self._ids.get(labels)
        if label is None:
            label = self._intern(labels)
        i = self._next
        self._values[i] = value
        self._labels[i] = label
        self._next = i + 1 if i + 1 < self._size else 0
        self._count += 1

    def select(self, model: str | None = None, client: str | None = None) -> npt.NDArray[np.float64]:
        """The points with these labels (None: any), in no particular order; a copy."""
        n = min(self._count, self._size)
        values = np.array(self._values, np.float64)[:n]
        if model is None and client is None:
            return values
        wanted = [i for (m, c), i in list(self._ids.items()) if model in (None, m) and client in (None, c)]
        labels = np.array(self._labels, np.int64)[:n]
        return values[np.isin(labels, wanted)]

    def _intern(self, labels: Labels) -> int:
        """A number for new labels. Those that no point carries any more are forgotten, so the table stays bounded."""
        if len(self._ids) >= 2 * self._size:
            names = {i: name for name, i in self._ids.items()}
            n = min(self._count, self._size)
            kept: dict[Labels, int] = {}
            for at in range(n):
                self._labels[at] = kept.setdefault(names[self._labels[at]], len(kept))
            self._ids = kept
        return self._ids.setdefault(labels, len(self._ids))
