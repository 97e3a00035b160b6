"""Phase shifts: bounded, seldom, and over once a fleet is spread out."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from inferential.scheduling.phase import PARTS, Phases, crowded
from inferential.tracking.cadence import Cadence


class Fleet:
    """Clients with one period that follow what they are asked, or not; every request of theirs has to wait."""

    def __init__(self, clients, period_s, spread_s, jitter_s, follows, seed):
        self.chance = random.Random(seed)
        self.phases = Phases()
        self.period_s, self.jitter_s = period_s, jitter_s
        self.cadences = [Cadence() for _ in range(clients)]
        self.grids = [self.chance.random() * spread_s for _ in range(clients)]
        self.follows = [self.chance.random() < follows for _ in range(clients)]
        self.asked: list[list[tuple[float, float]]] = [[] for _ in range(clients)]

    def period(self):
        """One period; how many were asked."""
        count = 0
        arrivals = sorted((grid + self.chance.random() * self.jitter_s, i) for i, grid in enumerate(self.grids))
        for now, i in arrivals:
            cadence = self.cadences[i]
            cadence.arrived(now, 0.2)
            self.phases.arrived(cadence, now)
            shift = self.phases.shift_s(cadence, now)
            self.grids[i] += self.period_s
            if shift:
                count += 1
                self.asked[i].append((now, shift))
                if self.follows[i]:
                    self.grids[i] += shift
                    cadence.ask(shift)
        return count

    def parts(self, period_s):
        found = [0] * PARTS
        for grid in self.grids:
            found[int(grid / period_s % 1.0 * PARTS) % PARTS] += 1
        return found


FLEETS = st.builds(
    Fleet,
    clients=st.integers(1, 120),
    period_s=st.sampled_from([0.02, 0.1, 0.37, 1.0]),
    spread_s=st.sampled_from([0.0, 0.004]),
    jitter_s=st.sampled_from([0.0, 0.002]),
    follows=st.sampled_from([0.0, 0.7, 1.0]),
    seed=st.integers(0, 1000),
)


@given(fleet=FLEETS)
def test_a_shift_is_less_than_a_period_and_seldom(fleet):
    for _ in range(30):
        fleet.period()
    for asked in fleet.asked:
        assert all(0.0 < shift < 1.06 * fleet.period_s for _, shift in asked)
        for (before, _), (after, _) in itertools.pairwise(asked):
            assert after - before >= 7.5 * fleet.period_s


@given(fleet=FLEETS)
def test_it_comes_to_an_end_where_clients_follow(fleet):
    asked = [fleet.period() for _ in range(60)]
    # By chance some part is a little too crowded now and then; those who do not follow stay together and are asked again.
    if all(fleet.follows):
        assert sum(asked[-20:]) <= 0.1 * len(fleet.cadences) + 4
        assert sum(asked) <= 2.0 * len(fleet.cadences)


@given(clients=st.integers(40, 120), seed=st.integers(0, 1000))
def test_a_burst_spreads_over_the_period(clients, seed):
    fleet = Fleet(clients, 0.1, 0.004, 0.0, 1.0, seed)
    for _ in range(20):
        fleet.period()
    assert not any(crowded(count, clients / PARTS) for count in fleet.parts(0.1))
    assert sum(count > 0 for count in fleet.parts(0.1)) >= PARTS // 2


@given(clients=st.integers(1, 120), seed=st.integers(0, 1000))
def test_an_even_fleet_is_left_alone(clients, seed):
    fleet = Fleet(clients, 0.1, 0.0, 0.002, 1.0, seed)
    fleet.grids = [0.1 * i / clients for i in range(clients)]
    assert sum(fleet.period() for _ in range(20)) == 0


@given(fleet=FLEETS, leave=st.integers(0, 120))
def test_its_books(fleet, leave):
    for turn in range(12):
        fleet.period()
        if turn == 5:
            fleet.cadences = fleet.cadences[leave:]
            fleet.grids = fleet.grids[leave:]
    members = 0
    for one in fleet.phases._fleets.values():
        assert sum(one.counts) == len(one.members)
        assert min(one.counts) >= 0
        members += len(one.members)
    assert members == len(fleet.phases._members)
    assert members <= len(fleet.cadences) or not fleet.cadences
    fleet.phases.forget(1e6)
    assert not fleet.phases._fleets
    assert not fleet.phases._members
