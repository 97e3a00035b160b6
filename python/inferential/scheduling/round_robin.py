"""Clients in turn."""

from __future__ import annotations

from operator import attrgetter

from inferential.scheduling.base import Order, Scheduler, register_scheduler
from inferential.scheduling.heap import LazyHeap
from inferential.scheduling.request import Request, in_order
from inferential.tracking.clients import Stream


class _Client:
    """One client's waiting requests, and what is left of its turn."""

    __slots__ = ("by_key", "count", "credit", "stream")

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.by_key: LazyHeap[Request] = LazyHeap(in_order)
        self.count = 0
        self.credit = 0.0


class RoundRobinOrder:
    """Deficit round robin (Shreedhar, Varghese 1995) with requests of cost 1: a client at its turn is credited its share, and stays
    at its turn while it has a whole request's credit. The turn goes to the client whose last one is longest ago, so where a queue
    runs empty in between nobody is first every time. Within a client, smallest key first.
    """

    __slots__ = ("_clients", "_pushes", "_turn", "_turns")

    def __init__(self) -> None:
        self._clients: dict[str, _Client] = {}
        self._turns: LazyHeap[_Client] = LazyHeap(attrgetter("count"))
        self._turn = 0
        self._pushes = 0

    def push(self, request: Request) -> None:
        """See Order."""
        stream = request.stream
        assert stream is not None, "set at arrival"
        client = self._clients.get(stream.client_id)
        if client is None:
            client = self._clients[stream.client_id] = _Client(stream)
            self._enter(client)
        client.count += 1
        client.by_key.push(request.key, request.sequence, request)

    def first(self, contended: bool) -> Request | None:  # noqa: ARG002
        """See Order."""
        while True:
            entry = self._turns.top()
            if entry is None:
                return None
            client = entry[2]
            if client.credit < 1.0:
                client.credit += client.stream.weight
                if client.credit < 1.0:
                    self._next_turn(client)
                    continue
            first = client.by_key.top()
            assert first is not None, "a client at its turn has a queued request"
            return first[2]

    def _next_turn(self, client: _Client) -> None:
        """The client at its turn goes to the end."""
        popped = self._turns.pop()
        assert popped is client, "only the client at its turn is served"
        self._turn += 1
        client.stream.turn = self._turn
        self._enter(client)

    def _enter(self, client: _Client) -> None:
        self._pushes += 1
        # Another order (a strategy before this one, another replica's) may have counted further.
        stream = client.stream
        stream.turn = min(stream.turn, self._turn)
        self._turns.push((stream.turn, stream.index), self._pushes, client)

    def rivals(self, request: Request) -> int:  # noqa: ARG002
        """See Order."""
        return sum(client.count for client in self._clients.values())

    def discard(self, request: Request, served: bool) -> None:
        """See Order."""
        client = self._clients[request.observation.client_id]
        client.by_key.discard()
        client.count -= 1
        if served:
            client.credit -= 1.0
        if not client.count:
            # Who has nothing waiting saves no credit up.
            del self._clients[request.observation.client_id]
            self._turns.discard()
            if served:
                self._turn += 1
                client.stream.turn = self._turn
        elif served and client.credit < 1.0:
            self._next_turn(client)


class RoundRobin(Scheduler):
    """Clients take turns at each model, whatever their rates; models take turns too."""

    takes_turns = True

    def order(self) -> Order:
        """See Scheduler."""
        return RoundRobinOrder()


register_scheduler("round_robin", RoundRobin)
