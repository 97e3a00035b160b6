"""The command `inferential simulate`: scenario in, table, JSON and plots out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inferential.errors import ConfigError, MissingDependencyError
from inferential.simulator import load_scenario, simulate


def run(scenario: Path, json_file: Path | None = None, plots: Path | None = None) -> str:
    """Simulates a scenario file and returns the table.

    Args:
        scenario: YAML or JSON, see docs/simulator.md.
        json_file: where the results go as JSON.
        plots: a PNG, SVG or PDF file for the curves.

    Raises:
        ConfigError: the scenario is wrong, or a file cannot be written.
        MissingDependencyError: plots need matplotlib.
    """
    if plots is not None:
        _pyplot()
        if plots.suffix not in (".png", ".svg", ".pdf"):
            raise ConfigError(f"{plots}: plots are .png, .svg or .pdf files")
    for file in (json_file, plots):
        if file is not None:
            try:
                file.open("ab").close()  # now, not after a long simulation
            except OSError as e:
                raise ConfigError(f"{file}: cannot write it: {e.strerror}") from None
    loaded = load_scenario(scenario)
    rows = simulate(loaded)
    if json_file is not None:
        json_file.write_text(json.dumps({"scenario": loaded.model_dump(mode="json"), "results": rows}, indent=1) + "\n")
    if plots is not None:
        plot(rows, plots, loaded.name)
    return table(rows)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown; one line for each load and variant, and one for each fleet where there are several."""
    lines = [
        "| load | variant | fleet | sent | in time | goodput/s | p50 ms | p99 ms | Jain |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        fleets = row["fleets"]
        parts = [("all", row), *fleets.items()] if len(fleets) > 1 else [(next(iter(fleets)), row)]
        lines += [
            f"| {row['load']:g} | {row['variant']} | {name} | {part['sent']} | {part['in_time']:.2%} | {part['goodput']:.1f} "
            f"| {part['p50_ms']:.1f} | {part['p99_ms']:.1f} | {part['jain']:.3f} |"
            for name, part in parts
        ]
    return "\n".join(lines)


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError:
        raise MissingDependencyError("plots need matplotlib: pip install 'inferential[plots]'") from None
    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot(rows: Sequence[dict[str, Any]], file: Path, title: str) -> None:
    """Share in time, goodput, p99 and fairness against load, one line for each variant."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), sharex=True)
    for axis, (key, label) in zip(
        axes.flat,
        [("in_time", "share in time"), ("goodput", "goodput / s"), ("p99_ms", "p99 / ms"), ("jain", "Jain's index")],
        strict=True,
    ):
        for variant in dict.fromkeys(row["variant"] for row in rows):
            mine = [row for row in rows if row["variant"] == variant]
            axis.plot([r["load"] for r in mine], [r[key] for r in mine], marker="o", label=variant)
        axis.set_ylabel(label)
        axis.grid(visible=True, alpha=0.3)
        axis.set_ylim(bottom=0)
    for axis in axes[1]:
        axis.set_xlabel("load")
    axes[0][0].legend()
    figure.suptitle(title)
    figure.tight_layout()
    # No date inside: the same scenario gives the same bytes.
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)
