"""Writes what bench.py and bench_fleet.py measured into docs/benchmarks.md (between the markers of each section) and its plots."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

DOCS = Path(__file__).parent.parent.parent / "docs"
FIGURES = DOCS / "benchmarks"
COLUMNS = {
    "p50_ms": ("p50 ms", "{:.3f}"),
    "p95_ms": ("p95 ms", "{:.3f}"),
    "p99_ms": ("p99 ms", "{:.3f}"),
    "per_second": ("requests/s", "{:,.0f}"),
    "lost": ("lost", "{:.0f}"),
    "cpu_percent_of_a_core": ("CPU, % of a core", "{:.2f}"),
    "allocations": ("heap allocations per round trip", "{:.1f}"),
    "rss_empty_mb": ("empty, MB", "{:.0f}"),
    "rss_mb": ("memory, MB", "{:.0f}"),
    "growth_second_half_mb": ("growth in the second half, MB", "{:+.1f}"),
    "minutes": ("minutes", "{:.1f}"),
}

Row = dict[str, Any]


def table(results: dict[str, Row]) -> list[str]:
    """One table for all measurements of a section."""
    rows = [
        (case, name, row)
        for case, by_name in results.items()
        for name, row in (by_name.items() if all(isinstance(v, dict) for v in by_name.values()) else [("", by_name)])
        if name != "ratios"
    ]
    columns = [key for key in COLUMNS if any(key in row for *_, row in rows)]
    lines = [
        "| case | | " + " | ".join(COLUMNS[key][0] for key in columns) + " |",
        "|---|---|" + "--:|" * len(columns),
    ]
    last_case = None
    for case, name, row in rows:
        shown = case if case != last_case else ""
        last_case = case
        cells = [COLUMNS[key][1].format(row[key]) if key in row else "" for key in columns]
        if "error" in row:
            cells = [f"failed: {row['error']}"] + [""] * (len(columns) - 1)
        lines.append(f"| {shown} | {name} | " + " | ".join(cells) + " |")
    return lines


def ratios(results: dict[str, Row]) -> list[str]:
    """The ratios, each taken within a round."""
    with_ratios = {case: found["ratios"] for case, found in results.items() if found.get("ratios")}
    if not with_ratios:
        return []
    names = list(dict.fromkeys(name for found in with_ratios.values() for name in found))
    lines = ["", "| case | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    for case, found in with_ratios.items():
        cells = [f"{found[name]:.2f}" if found.get(name) is not None else "" for name in names]
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return lines


def fleet_table(results: dict[str, dict[str, list[Row]]]) -> list[str]:
    """Share in time by number of robots; medians over the rounds."""

    def median(rows: list[Row], key: str) -> float | None:
        values = [row[key] for row in rows if key in row]
        return float(np.median(values)) if values else None

    lines = [
        "| robots | | in time | goodput/s | p50 ms | p99 ms | unanswered | Jain's index | priority 0 in time | the others |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    counts = sorted({int(count) for by_count in results.values() for count in by_count})
    for count in counts:
        for name, by_count in results.items():
            rows = by_count.get(str(count))
            if not rows:
                continue
            cells = []
            for key, form in [
                ("in_time_share", "{:.2%}"),
                ("goodput_per_second", "{:.0f}"),
                ("p50_ms", "{:.1f}"),
                ("p99_ms", "{:.1f}"),
                ("unanswered", "{:.0f}"),
                ("jain_index", "{:.3f}"),
                ("in_time_share_high", "{:.2%}"),
                ("in_time_share_low", "{:.2%}"),
            ]:
                value = median(rows, key)
                cells.append("" if value is None else form.format(value))
            lines.append(f"| {count} | {name} | " + " | ".join(cells) + " |")
    return lines


def plot_latency(results: dict[str, Row], case: str, to: Path) -> None:
    """Distribution of the round trip, one request in flight."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, row in results[case].items():
        if name != "ratios" and "quantiles_ms" in row:
            axes.plot(row["quantiles_ms"][:-1], np.linspace(0, 100, 101)[:-1], label=name)
    axes.set(xscale="log", xlabel="round trip, ms", ylabel="percentile", title=case)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(to, bbox_inches="tight")
    plt.close(figure)


def plot_throughput(results: dict[str, Row], size: str, to: Path) -> None:
    """Throughput against requests in flight."""
    figure, axes = plt.subplots(figsize=(7, 4))
    curves: dict[str, list[tuple[int, float]]] = {}
    for case, by_name in results.items():
        if not case.startswith(f"{size} bytes"):
            continue
        in_flight = int(case.split(", ")[1].split()[0])
        for name, row in by_name.items():
            if name != "ratios" and "per_second" in row:
                curves.setdefault(name, []).append((in_flight, row["per_second"]))
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="requests in flight", ylabel="requests/s", title=f"{size} bytes")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7)
    figure.savefig(to, bbox_inches="tight")
    plt.close(figure)


def plot_fleet(results: dict[str, dict[str, list[Row]]], to: Path) -> None:
    """Goodput against robots."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, by_count in results.items():
        points = [
            (int(count), float(np.median([row["goodput_per_second"] for row in rows if "goodput_per_second" in row])))
            for count, rows in by_count.items()
            if any("goodput_per_second" in row for row in rows)
        ]
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel="robots at 10 Hz", ylabel="answers in time per second", title="One simulated GPU, 50 ms budget")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(to, bbox_inches="tight")
    plt.close(figure)


def render(section: str) -> str:
    """What stands between a section's markers."""
    data = json.loads((FIGURES / f"{section}.json").read_text())
    results, facts = data["results"], data["machine"]
    lines = [
        f"`{data['command']}`, {facts['date']}: {facts['cores']} cores of {facts['cpu']}, Python {facts['python']}, "
        f"Ray {facts['ray']}, pyzmq {facts['pyzmq']}; load average before: {facts['load_before'][0]}.",
        "",
    ]
    if section == "fleet":
        plot_fleet(results, FIGURES / "fleet.svg")
        return "\n".join([*lines, *fleet_table(results), "", "![goodput against robots](benchmarks/fleet.svg)"])
    lines += [*table(results), *ratios(results)]
    if section == "direct":
        for size in ("28", "150528"):
            case = f"{size} bytes, 1 in flight"
            if case in results:
                plot_latency(results, case, FIGURES / f"latency-{size}.svg")
                plot_throughput(results, size, FIGURES / f"throughput-{size}.svg")
                lines += [
                    "",
                    f"![latency](benchmarks/latency-{size}.svg)",
                    f"![throughput](benchmarks/throughput-{size}.svg)",
                ]
    return "\n".join(lines)


def main() -> int:
    page = DOCS / "benchmarks.md"
    text = page.read_text()
    for section in re.findall(r"<!-- begin (\w+) -->", text):
        if not (FIGURES / f"{section}.json").exists():
            continue
        begin, end = f"<!-- begin {section} -->", f"<!-- end {section} -->"
        head, rest = text.split(begin, 1)
        _, tail = rest.split(end, 1)
        text = f"{head}{begin}\n{render(section)}\n{end}{tail}"
    page.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
