"""What the demo shows: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

WIDTH = 21  # characters of a robot's gauge
TILT_SHOWN_RAD = 0.2


def share(tally: dict[str, Any]) -> str:
    """Of the replies, how many were in time."""
    return f"{100 * tally['in_time'] / tally['asked']:.2f} %" if tally["asked"] else "-"


def percentiles(tally: dict[str, Any]) -> list[str]:
    """p50, p95, p99 in ms."""
    return [f"{tally[key]:.2f}" if key in tally else "-" for key in ("p50_ms", "p95_ms", "p99_ms")]


def upright(report: dict[str, Any]) -> str:
    """How many stand."""
    robots = report["robots"]
    return f"{sum(robot['falls'] == 0 for robot in robots)}/{len(robots)}"


def live(report: dict[str, Any], server: dict[str, dict[str, float]]) -> Group:
    """The picture of one moment. `server` holds queue_depth and drops for each model."""
    models = Table(
        title=f"{upright(report)} robots upright since the start, {report['elapsed_s']:.0f} s", title_justify="left"
    )
    models.add_column("model")
    for heading in ("requests", "in time", "p50 ms", "p95 ms", "p99 ms", "queue", "drops"):
        models.add_column(heading, justify="right")
    for name, tally in report["models"].items():
        extra = server.get(name, {})
        models.add_row(
            name,
            str(tally["asked"]),
            share(tally),
            *percentiles(tally),
            f"{extra.get('queue_depth', 0):.1f}",
            f"{extra.get('drops', 0):.0f}",
        )
    robots = Table.grid(padding=(0, 2))
    for index, robot in enumerate(report["robots"]):
        place = int(np.clip((robot["tilt_rad"] / TILT_SHOWN_RAD + 1) / 2, 0, 1) * (WIDTH - 1))
        gauge = "".join("|" if i == place else "+" if i == WIDTH // 2 else "-" for i in range(WIDTH))
        colour = "green" if robot["source"] == "fresh" else "yellow"
        robots.add_row(
            f"robot {index}",
            Text(gauge, style=colour),
            f"{np.degrees(robot['tilt_rad']):+5.1f} deg",
            f"x {robot['position']:+.2f}",
            robot["source"],
            f"{robot['falls']} falls" if robot["falls"] else "",
        )
    return Group(models, robots)


def line(report: dict[str, Any]) -> str:
    """The same on one line."""
    models = "; ".join(
        f"{name} {tally['asked']} requests, {share(tally)} in time, p50/p95/p99 {'/'.join(percentiles(tally))} ms"
        for name, tally in report["models"].items()
    )
    return f"{report['elapsed_s']:5.1f} s  {upright(report)} upright  {models}"
