"""A grid in YAML: the values, and the lines they are on.

Plain scalars mean what they do in YAML 1.2: PyYAML's own rules are those of 1.1, where 1e-4 is a text, `no` is false,
1:30 is ninety, 010 is eight and 2026-01-31 is a date.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

Lines = dict[tuple[int, str], int]


class BadYaml(Exception):
    """`line` is from 1; None where the parser does not know it."""

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.line = line


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}


for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), _first)


def read_yaml(text: str) -> tuple[Any, Lines]:
    """What the text says, and on which line, from 1, each parameter of each table stands. Raises BadYaml."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return {}, {}
        lines = dict(_lines(node))
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise BadYaml(error.problem or str(error), None if mark is None else mark.line + 1) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise BadYaml(f"the character {chr(error.character)!r} may not stand there", line) from error
    except RecursionError as error:
        raise BadYaml("it is nested too deeply", None) from error
    except (ValueError, LookupError, AttributeError) as error:  # of a tag that its text does not fit, as in !!int x
        raise BadYaml(str(error), None) from error


def _lines(node: yaml.Node) -> Iterator[tuple[tuple[int, str], int]]:
    """Raises BadYaml for a parameter that is written twice, of which PyYAML would take the last."""
    for number, table in enumerate(node.value if isinstance(node, yaml.SequenceNode) else [node]):
        names: set[str] = set()
        for name, _ in table.value if isinstance(table, yaml.MappingNode) else ():
            if isinstance(name, yaml.ScalarNode):
                line = name.start_mark.line + 1
                if name.value in names:
                    raise BadYaml(f"{name.value} is there twice", line)
                names.add(name.value)
                yield (number, name.value), line
