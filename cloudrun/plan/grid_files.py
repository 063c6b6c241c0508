"""Grids from the text of a file in TOML, YAML or JSON; what is wrong with one is said with the file and the line."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from cloudrun.core.errors import UsageError
from cloudrun.plan.grid import Grid, Where, make_grid
from cloudrun.plan.toml_lines import error_line, line_of

KINDS = {".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".json": "json"}

_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}:]')


def read_grid(text: str, kind: str, name: str) -> Grid:
    """The grid that a text in `kind` ("toml", "yaml", "json") says; `name` is what the file is called in errors.

    A table is crossed, a list of tables (in TOML: several [[grid]]) is one after the other; what values are, says
    `make_grid`. In TOML, what stands above the first [[grid]] belongs to all of them.
    Raises UsageError: "NAME:LINE: what is wrong".
    """
    tables, where = {"toml": _toml, "yaml": _yaml, "json": _json}[kind](text, name)
    grid = make_grid(tables, where)
    if not any(grid.tables):
        raise UsageError(f"{name}:1: this grid is empty", next_step="give a parameter a value: alpha = [0.1, 1]")
    return grid


def _invalid(name: str, line: int | None, language: str, problem: str) -> UsageError:
    where = f"{name}:{line}" if line else name
    return UsageError(
        f"{where}: this is not valid {language}: {problem}", next_step=f"correct {name}, then repeat the command"
    )


def _toml(text: str, name: str) -> tuple[Any, Where]:
    try:
        document = tomllib.loads(text)
    except ValueError as error:
        raise _invalid(name, error_line(error, text), "TOML", str(error).partition(" (at ")[0]) from error
    except RecursionError as error:
        raise _invalid(name, None, "TOML", "it is nested too deeply") from error
    tables = document.get("grid")
    if not (isinstance(tables, list) and tables and all(isinstance(table, Mapping) for table in tables)):
        return document, lambda _, key: f"{name}:{line_of(text, (), key) if key else 1}: "
    common = {key: value for key, value in document.items() if key != "grid"}

    def where(table: int, key: str) -> str:
        return f"{name}:{line_of(text, ('grid', table) if key in tables[table] else (), key)}: "

    return [{**common, **table} for table in tables], where


def _yaml(text: str, name: str) -> tuple[Any, Where]:
    from cloudrun.plan.grid_yaml import BadYaml, read_yaml  # PyYAML is for those who write YAML

    try:
        document, lines = read_yaml(text)
    except BadYaml as error:
        raise _invalid(name, error.line, "YAML", str(error)) from error
    return document, lambda table, key: f"{name}:{lines.get((table, key), 1)}: "


def _json(text: str, name: str) -> tuple[Any, Where]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise _invalid(name, error.lineno, "JSON", error.msg) from error
    except ValueError as error:  # an integer too long for int()
        raise _invalid(name, None, "JSON", str(error)) from error
    except RecursionError as error:
        raise _invalid(name, None, "JSON", "it is nested too deeply") from error
    lines = _json_lines(text, name, 2 if isinstance(document, list) else 1)
    return document, lambda table, key: f"{name}:{lines.get((table, key), 1)}: "


def _json_lines(text: str, name: str, level: int) -> dict[tuple[int, str], int]:
    """On which line of a valid JSON text the parameters of its tables are set, tables being `level` brackets deep.

    Raises UsageError for a parameter that is there twice, of which Python would take the last.
    """
    lines: dict[tuple[int, str], int] = {}
    depth, table, line, counted, before = 0, -1, 1, 0, ""
    for token in _JSON_TOKEN.finditer(text):
        if token[0] in {"[", "{"}:
            depth += 1
            table += depth == level
        elif token[0] in {"]", "}"}:
            depth -= 1
        elif token[0] == ":" and depth == level:
            line, counted = line + text.count("\n", counted, token.start()), token.start()
            key = (table, json.loads(before))
            if key in lines:
                raise _invalid(name, line, "JSON", f"{key[1]} is there twice")
            lines[key] = line
        before = token[0]
    return lines
