"""The last points of one metric."""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt


class Ring:
    """Keeps the last `size` points. One thread appends; any may read.

    In columns: a tuple for each point would be one more object for the garbage collector to look through, and thousands of them
    every second stop the server for milliseconds.
    """

    __slots__ = ("_clients", "_count", "_models", "_places", "_size", "_values")

    def __init__(self, size: int) -> None:
        self._size = size
        self._places = places = size + 1  # one more, so that what is just being overwritten is none of the last
        self._values = array("d", bytes(8 * places))
        self._models: list[str | None] = [None] * places
        self._clients: list[str | None] = [None] * places
        self._count = 0

    def append(self, value: float, model: str | None, client: str | None) -> None:
        """Adds a point; the oldest one goes where the ring is full."""
        place = self._count % self._places
        self._values[place] = value
        self._models[place] = model
        self._clients[place] = client
        self._count += 1

    def select(self, model: object = None, client: object = None) -> npt.NDArray[np.float64]:
        """The values of the points with these labels (None: any), oldest first; a copy. O(size)."""
        before, places = self._count, self._places
        values, models, clients = self._values[:], self._models.copy(), self._clients.copy()
        # The other thread goes on appending: what it has overwritten since, or is about to, may be half of one point and half of another.
        first = max(0, self._count - self._size)
        wanted = []
        for number in range(first, before):
            place = number % places
            if (model is None or models[place] == model) and (client is None or clients[place] == client):
                wanted.append(values[place])
        return np.array(wanted, np.float64)
