"""README and docs: links lead somewhere, programs are the ones that are tested elsewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
PACKAGE_README = (ROOT / "python" / "README.md").read_text()  # what the package index shows
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def lines(program: str) -> list[str]:
    """Without indentation and blank lines, which differ inside a function."""
    return [line.strip() for line in program.splitlines() if line.strip()]


def contains(program: str, part: str) -> bool:
    whole, wanted = lines(program), iter(lines(part))
    at = next(wanted)
    for line in whole:
        if line == at:
            try:
                at = next(wanted)
            except StopIteration:
                return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


def test_python_programs_are_programs() -> None:
    found = blocks("python"), blocks("python", PACKAGE_README)
    assert len(found[0]) >= 3
    assert len(found[1]) >= 2
    for program in found[0] + found[1]:
        ast.parse(program)


@pytest.mark.parametrize(
    ("language", "example"),
    [
        ("python", "python/examples/quickstart.py"),
        ("cpp", "cpp/examples/quickstart.cpp"),
        ("rust", "rust/examples/quickstart.rs"),
    ],
)
def test_clients_are_the_tested_ones(language: str, example: str) -> None:
    program = (ROOT / example).read_text()
    assert any(contains(program, block) for block in blocks(language))


def test_what_the_package_index_shows_stands_by_itself() -> None:
    program = (ROOT / "python/examples/quickstart.py").read_text()
    assert any(contains(program, block) for block in blocks("python", PACKAGE_README))
    assert "](" not in PACKAGE_README, "there is nothing beside it that a link could lead to"
    extras = re.search(
        r"\[project.optional-dependencies\](.*?)\n\[", (ROOT / "python/pyproject.toml").read_text(), re.DOTALL
    )
    assert extras is not None
    assert set(re.findall(r"^([a-z]+) = \[", extras[1], re.MULTILINE)) == set(
        re.findall(r"^\| `([a-z]+)` \|", PACKAGE_README, re.MULTILINE)
    )


def test_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {t for page in PAGES for t in re.findall(r"`make ([a-z-]+)", page.read_text())}
    assert named <= targets
