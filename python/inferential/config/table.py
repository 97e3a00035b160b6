"""The settings as a Markdown table, from the schema itself: `python -m inferential.config.table docs/operations.md` renews it there."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from inferential.config import schema

BEGIN = "<!-- settings: made by python -m inferential.config.table -->"
END = "<!-- end of settings -->"


def settings() -> Iterator[tuple[str, Any, str]]:
    """(name, default, meaning) of every setting; `*` stands for a model's or a client's name."""
    yield from _settings(schema.InferentialConfig, "")


def _settings(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any, str]]:
    meanings = _meanings(model)
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        arguments = [a for a in get_args(field.annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
        if isinstance(default, BaseModel):
            if name != "default":  # its settings are those of models.known.*
                yield from _settings(type(default), f"{prefix}{name}.")
        elif arguments:
            yield from _settings(arguments[0], f"{prefix}{name}.*.")
        else:
            yield f"{prefix}{name}", default, meanings.get(name, "")


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """The docstring under each attribute."""
    (body,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            found[statement.target.id] = str(following.value.value)
    return found


def table() -> str:
    """Markdown."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for name, default, meaning in settings():
        shown = f"{default:_}" if isinstance(default, int) and not isinstance(default, bool) else repr(default)
        lines.append(f"| `{name}` | `{shown}` | {meaning.replace('|', 'or')} |")
    return "\n".join(lines)


def renew(text: str) -> str:
    """`text` with the table between the markers made anew."""
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n{table()}\n{END}", text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m inferential.config.table PAGE.md")
    path = Path(sys.argv[1])
    path.write_text(renew(path.read_text(encoding="utf-8")), encoding="utf-8")
