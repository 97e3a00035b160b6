"""The most answers in time that any schedule could give to the fleet of `make bench-fleet`, which knew all arrivals: an upper bound.

Robots observe as in fleet_load.py. Calls take exactly `--call-ms + --item-ms x requests`, one at a time, and an answer is in time within
`--within-ms` of its observation's arrival. All have the same budget, so an optimal schedule serves in order of arrival: it is found by
going backwards through time, over which request is the first that waits and how many of them leave together.
"""

from __future__ import annotations

import argparse

import numpy as np
from fleet_load import Schedule

STEP_MS = 0.5
MOST_WAITING = 130


def arrivals_ms(robots: int, hz: float, seed: int, periods: int) -> np.ndarray:
    """When observations arrive, from the first period on."""
    args = argparse.Namespace(seed=seed, hz=hz, clients=robots, warm_up=0.0, seconds=periods / hz)
    schedule = Schedule(args)
    due = []
    for schedule.turn in range(robots * periods):
        due.append((schedule.next()[2] - schedule.start) * 1e3)
    return np.array(due)


def most_in_time(arrivals: np.ndarray, within_ms: float, call_ms: float, item_ms: float, most: int) -> int:
    """How many can be answered in time."""
    steps = int((arrivals[-1] + within_ms) / STEP_MS) + 2
    sizes = np.arange(1, most + 1)
    lasts = np.ceil((call_ms + item_ms * sizes) / STEP_MS - 1e-9).astype(int)
    end = steps + int(lasts[-1])
    arrived = np.searchsorted(arrivals, np.arange(steps) * STEP_MS, side="right")
    # best[t, first]: of all from `first` on, where the device is free at t.
    best = np.zeros((end + 1, len(arrivals) + 1), np.int32)
    for t in range(steps - 1, -1, -1):
        here, later, come = best[t], best[t + 1], int(arrived[t])
        oldest = max(0, come - MOST_WAITING)
        here[come:] = later[come:]
        for first in range(come - 1, oldest - 1, -1):
            found = max(later[first], here[first + 1])  # wait, or give it up
            slack_ms = arrivals[first] + within_ms - t * STEP_MS
            largest = min(most, come - first, int((slack_ms - call_ms) / item_ms + 1e-9))
            if largest >= 1:
                served = best[t + lasts[:largest], first + sizes[:largest]] + sizes[:largest]
                found = max(found, int(served.max()))
            here[first] = found
        here[:oldest] = here[oldest]
    return int(best[0, 0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robots", type=int, default=95)
    parser.add_argument("--hz", type=float, default=10.0)
    parser.add_argument("--within-ms", type=float, default=50.0)
    parser.add_argument("--call-ms", type=float, default=10.0)
    parser.add_argument("--item-ms", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--periods", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(8)))
    args = parser.parse_args()
    for seed in args.seeds:
        arrivals = arrivals_ms(args.robots, args.hz, seed, args.periods)
        found = most_in_time(arrivals, args.within_ms, args.call_ms, args.item_ms, args.batch)
        print(f"seed {seed}: {found} of {len(arrivals)} in time at best ({found / len(arrivals):.2%})", flush=True)


if __name__ == "__main__":
    main()
