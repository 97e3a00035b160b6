"""The matrix (case x client) at the end of a run: a pytest plugin."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

MARK = {"passed": "✓", "failed": "✗", "skipped": "–"}
RANK = {"passed": 0, "skipped": 1, "failed": 2}
OTHER = "result"  # column of cases that are of no one client


class Matrix:
    """Collects outcomes. A cell of several cases (parametrised further) shows the worst and how many there are."""

    def __init__(self, columns: list[str], path: Path | None) -> None:
        self._columns = columns
        self._path = path
        self._cells: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        self._reasons: dict[str, set[str]] = defaultdict(set)
        self._where: dict[str, tuple[tuple[str, str], str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            module = item.path.stem.removeprefix("test_").replace("_", " ")
            name = getattr(item, "originalname", item.name).removeprefix("test_").replace("_", " ")
            callspec = getattr(item, "callspec", None)
            column = str(callspec.params.get("kind", OTHER)) if callspec else OTHER
            self._where[item.nodeid] = ((module, name), column)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid not in self._where or (report.when != "call" and report.outcome == "passed"):
            return
        row, column = self._where[report.nodeid]
        self._cells[row][column].append(report.outcome)
        if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            self._reasons[report.longrepr[2].removeprefix("Skipped: ")].add(f"{row[1]} ({column})")

    def lines(self) -> list[str]:
        """The matrix as Markdown."""
        out: list[str] = []
        for per_client in (True, False):
            columns = self._columns if per_client else [OTHER]
            last = ""
            for row, cells in self._cells.items():
                if not any(c in cells for c in columns):
                    continue
                if row[0] != last:
                    last = row[0]
                    out += ["", f"| {last} | " + " | ".join(columns) + " |", "|---|" + ":---:|" * len(columns)]
                shown = []
                for c in columns:
                    found = cells.get(c, [])
                    worst = max(found, key=RANK.__getitem__, default="")
                    count = f" {len(found)}" if len(found) > 1 else ""
                    shown.append(MARK[worst] + count if worst else " ")
                out.append(f"| {row[1]} | " + " | ".join(shown) + " |")
        if self._reasons:
            out += ["", "Skipped:", ""] + [f"- {reason}: {', '.join(sorted(w))}" for reason, w in self._reasons.items()]
        return out

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        lines = self.lines()
        terminalreporter.section("conformance matrix (✓ passed, ✗ failed, – skipped; a number: that many cases)")
        for line in lines:
            terminalreporter.write_line(line)
        if self._path is not None:
            head = [
                "# Conformance matrix",
                "",
                "Written by `make conformance ARGS=--matrix=../docs/conformance-matrix.md`; [conformance](conformance.md) says what the",
                "cases are.",
                "✓ passed, ✗ failed, – skipped; a number says how many cases the cell holds.",
            ]
            self._path.write_text("\n".join(head + lines) + "\n")
