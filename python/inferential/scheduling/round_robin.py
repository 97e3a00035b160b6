"""Clients in turn."""

from __future__ import annotations

from collections import OrderedDict
from operator import attrgetter

from inferential.scheduling.base import Order, Scheduler, register_scheduler
from inferential.scheduling.heap import LazyHeap
from inferential.scheduling.request import Request

_is_queued = attrgetter("queued")


class _Turn:
    """One client's waiting requests, and what is left of its turn."""

    __slots__ = ("by_key", "count", "credit")

    def __init__(self) -> None:
        self.by_key: LazyHeap[Request] = LazyHeap(_is_queued)
        self.count = 0
        self.credit = 0.0


class RoundRobinOrder:
    """Deficit round robin (Shreedhar, Varghese 1995) with requests of cost 1: a client at its turn is credited its share, and stays
    at its turn while it has a whole request's credit. Within a client, smallest key first.
    """

    __slots__ = ("_turns",)

    def __init__(self) -> None:
        self._turns: OrderedDict[str, _Turn] = OrderedDict()

    def push(self, request: Request) -> None:
        """See Order."""
        client = request.observation.client_id
        turn = self._turns.get(client)
        if turn is None:
            turn = self._turns[client] = _Turn()
        turn.count += 1
        turn.by_key.push(request.key, request.sequence, request)

    def first(self, contended: bool) -> Request | None:  # noqa: ARG002
        """See Order."""
        turns = self._turns
        if not turns:
            return None
        while True:
            client, turn = next(iter(turns.items()))
            entry = turn.by_key.top()
            assert entry is not None, "a client at its turn has a queued request"
            request = entry[2]
            if turn.credit < 1.0:
                turn.credit += request.stream.weight if request.stream is not None else 1.0
                if turn.credit < 1.0:
                    turns.move_to_end(client)
                    continue
            return request

    def rivals(self, request: Request) -> int:  # noqa: ARG002
        """See Order."""
        return sum(turn.count for turn in self._turns.values())

    def discard(self, request: Request, served: bool) -> None:
        """See Order."""
        client = request.observation.client_id
        turn = self._turns[client]
        turn.count -= 1
        turn.by_key.discard()
        if served:
            turn.credit -= 1.0
        if not turn.count:
            # Who has nothing waiting saves nothing up.
            del self._turns[client]
        elif served and turn.credit < 1.0:
            self._turns.move_to_end(client)


class RoundRobin(Scheduler):
    """Clients take turns at each model, whatever their rates; models take turns too."""

    takes_turns = True

    def order(self) -> Order:
        """See Scheduler."""
        return RoundRobinOrder()


register_scheduler("round_robin", RoundRobin)
