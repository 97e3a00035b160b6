"""When clients send within their period, and who should come later so that a fleet's arrivals spread out (docs/scheduling.md,
"Phase shifts"). Times are seconds.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from inferential.tracking.cadence import Cadence

PARTS = 16
"""A period is looked at in so many parts."""
_PERIOD_STEP = math.log(1.05)  # clients whose periods are alike to a few percent spread out between them
_REST_PERIODS = 8.0  # a client that was asked is left alone for so long
_LOOK_PERIODS = 2.0  # nobody is asked before all clients of a fleet were seen
_FORGET_PERIODS = 3.0  # one that has not sent for so long leaves its part


def crowded(clients: int, mean: float) -> bool:
    """Whether a part of the period with so many clients, where `mean` is the average of all parts, is more crowded than by chance.

    Clients that send at random moments fill a part to its mean and twice the root of that only once in a while; to move them about
    for it would never end.
    """
    fair = math.ceil(mean)
    return clients > fair + 2.0 * math.sqrt(fair) + 1.0


class _Fleet:
    """Clients with about the same period."""

    __slots__ = ("asks_from", "counts", "members", "period_s")

    def __init__(self, period_s: float, now: float) -> None:
        self.period_s = period_s
        self.asks_from = now + _LOOK_PERIODS * period_s
        self.counts = [0] * PARTS
        """Clients by the part of the period in which they last sent, or were asked to."""
        self.members: OrderedDict[Cadence, _Member] = OrderedDict()
        """Least recently seen first."""


class _Member:
    __slots__ = ("asked_at", "fleet", "part", "phase", "seen")

    def __init__(self, fleet: _Fleet) -> None:
        self.fleet = fleet
        self.part = -1
        self.phase = 0.0
        """Of its last arrival, from 0 to 1."""
        self.seen = 0.0
        self.asked_at = -math.inf


class Phases:
    """The arrivals of one model's clients within their periods. Not thread-safe. O(1) per arrival, amortised."""

    __slots__ = ("_fleets", "_members")

    def __init__(self) -> None:
        self._fleets: dict[int, _Fleet] = {}
        self._members: dict[Cadence, _Member] = {}

    def arrived(self, cadence: Cadence, now: float) -> None:
        """After an observation was counted in its client's cadence."""
        period_s = cadence.interval_s
        if period_s <= 0.0:
            return
        number = round(math.log(period_s) / _PERIOD_STEP)
        fleet = self._fleets.get(number)
        if fleet is None:
            fleet = self._fleets[number] = _Fleet(math.exp(number * _PERIOD_STEP), now)
        member = self._members.get(cadence)
        if member is None:
            member = self._members[cadence] = _Member(fleet)
        elif member.fleet is not fleet:
            self._leave(cadence, member)
            member.fleet = fleet
        fleet.members[cadence] = member
        fleet.members.move_to_end(cadence)
        member.seen = now
        member.phase = phase = now / fleet.period_s % 1.0
        self._put(member, int(phase * PARTS) % PARTS)
        self._forget(fleet, now)

    def forget(self, now: float) -> None:
        """Forgets clients that have stopped sending; those of fleets that still send are forgotten as they go."""
        for number, fleet in list(self._fleets.items()):
            self._forget(fleet, now)
            if not fleet.members:
                del self._fleets[number]

    def _forget(self, fleet: _Fleet, now: float) -> None:
        before = now - _FORGET_PERIODS * fleet.period_s
        while fleet.members:
            cadence, member = next(iter(fleet.members.items()))
            if member.seen >= before:
                return
            self._leave(cadence, member)
            del self._members[cadence]

    def shift_s(self, cadence: Cadence, now: float) -> float:
        """By how much a client that had to wait, or was refused, should come later, once; less than its period. 0: not at all.

        It is counted where it was asked to come until it is seen elsewhere, so the next client is asked to come at another time.
        """
        member = self._members.get(cadence)
        if member is None:
            return 0.0
        fleet = member.fleet
        counts, part = fleet.counts, member.part
        mean = len(fleet.members) / PARTS
        if not crowded(counts[part], mean):
            return 0.0
        if now < max(fleet.asks_from, member.asked_at + _REST_PERIODS * fleet.period_s):
            return 0.0
        fair = math.ceil(mean)
        for step in range(1, PARTS):
            later = (part + step) % PARTS
            if counts[later] < fair:
                break
        else:
            return 0.0
        # The clients of a part stand side by side in it.
        phase = (later + (counts[later] + 0.5) / fair) / PARTS
        shift = (phase - member.phase) % 1.0
        self._put(member, later)
        member.asked_at = now
        return shift * fleet.period_s

    def _put(self, member: _Member, part: int) -> None:
        if part != member.part:
            counts = member.fleet.counts
            if member.part >= 0:
                counts[member.part] -= 1
            counts[part] += 1
            member.part = part

    def _leave(self, cadence: Cadence, member: _Member) -> None:
        fleet = member.fleet
        fleet.counts[member.part] -= 1
        member.part = -1
        del fleet.members[cadence]
