"""What a script's code says of names: the options that it takes, and what strings it puts together may look like."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_OPTION = re.compile(r"""['"/]--([A-Za-z][\w-]*(?:\.[\w-]+)*)""")  # as argparse, click and their like are told of one
# Whoever says one of these may read arguments that no `add_argument` in the code tells of.
_OTHER_READERS = re.compile(
    r"\bargv\b|CLOUDRUN_PARAMS|parse_known_|parse_intermixed|add_subparsers|REMAINDER|fromfile_prefix_chars"
    r"|HfArgumentParser|LightningCLI|^\s*(?:import|from)\b.*\b(?:absl|argh|click|cyclopts|defopt|docopt|fire|gin|hydra"
    r"|jsonargparse|omegaconf|plac|pydantic_settings|sacred|simple_parsing|tap|typer|tyro)\b",
    re.MULTILINE,
)
_PERCENT = re.compile(r"%(?:\(\w+\))?[-#0 +]*\d*(?:\.\d+)?[a-zA-Z]")
_BRACES = re.compile(r"\{[^{}]*\}")
ANYTHING = ".*"
# What makes another name of one: `{name.removeprefix("test_"): score ...}`, `table.add_prefix("val_")`.
RENAMING = (
    "add_prefix", "add_suffix", "capitalize", "casefold", "lower", "partition", "removeprefix", "removesuffix",
    "replace", "rpartition", "rsplit", "split", "sub", "swapcase", "title", "translate", "upper",
)  # fmt: skip
ASKED = ("add_argument", "parse_args")  # of a parser
GROUPS = ("add_argument_group", "add_mutually_exclusive_group")  # of its options: as good as the parser


@dataclass(frozen=True)
class Code:
    """A script and the local modules that it can import.

    `options`: names that stand there as `--name`. `takes`: what argparse was told of, where that is all that reads the
    arguments, so that any other option is an error there; None where something else may read them as well, or where
    options are not written out. `is_positional`: it takes arguments that are no options. `made`: regular expressions
    for the strings that are put together there; all others stand in `text`.
    """

    text: str
    options: tuple[str, ...]
    takes: tuple[str, ...] | None
    is_positional: bool
    made: tuple[str, ...]

    def says(self, word: str) -> bool:
        """Whether it is there as a whole word."""
        return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", self.text) is not None

    def quotes(self, word: str) -> bool:
        return f'"{word}"' in self.text or f"'{word}'" in self.text

    def may_make(self, word: str) -> bool:
        """Whether some string that is put together while the script runs may be that word."""
        return any(re.fullmatch(pattern, word, re.DOTALL) for pattern in self.made)


def read(sources: Iterable[str]) -> Code:
    """What is no Python may make any string, and take any option."""
    texts = list(sources)
    text = "\n".join(texts)
    options = tuple(dict.fromkeys(_OPTION.findall(text)))
    try:
        with warnings.catch_warnings(action="ignore"):  # an odd escape is the script's business
            trees = [ast.parse(each) for each in texts]
    except (SyntaxError, ValueError, RecursionError):
        return Code(text, options, None, True, (ANYTHING,))
    nodes = [node for tree in trees for node in ast.walk(tree)]
    told = None if _OTHER_READERS.search(text) else _told(nodes)
    takes = None if told is None else tuple(dict.fromkeys(name[2:] for name in told if name.startswith("--")))
    is_positional = told is None or any(not name.startswith("-") for name in told)
    return Code(text, options, takes, is_positional, tuple(dict.fromkeys(_made(nodes))))


# -- options -----------------------------------------------------------------------------------------------------------


def _told(nodes: list[ast.AST]) -> list[str] | None:
    """The names that argparse is told of; None where it is not used, or is told of some that are not written out."""
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    parsers = {
        _name(call.func.value) for call in calls if _called(call) in ASKED and isinstance(call.func, ast.Attribute)
    }
    assigned = [node for node in nodes if isinstance(node, ast.Assign) and _name(node.value) == "ArgumentParser"]
    parsers |= {_name(target) for node in assigned for target in node.targets}
    parsers = parsers - {""} | {"ArgumentParser"}
    names: list[str] = []
    asked = {id(call.func) for call in calls}
    handed_on = [node for node in nodes if isinstance(node, ast.Attribute) and id(node) not in asked]
    if not any(_is_parser(call) for call in calls) or any(node.attr in ASKED for node in handed_on):
        return None
    for call in calls:
        if _called(call) == "add_argument":
            if not all(isinstance(each, ast.Constant) and isinstance(each.value, str) for each in call.args):
                return None
            names += [str(each.value) for each in call.args if isinstance(each, ast.Constant)]
        elif _called(call) == "parse_args" and (call.args or call.keywords):
            return None  # of other words than those that were typed
        elif _is_parser(call) and any(each.arg in (None, "parents") for each in call.keywords):
            return None
        elif parsers & {_name(each) for each in _given(call)} and _called(call) not in functions:
            return None  # somebody elsewhere adds to it
    return names


def _is_parser(call: ast.Call) -> bool:
    return not isinstance(call.func, ast.Call) and _called(call) == "ArgumentParser"


def _given(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(each.value for each in call.keywords)]


def _called(call: ast.Call) -> str:
    return _name(call.func)


def _name(node: ast.AST) -> str:
    """ "parser" of `parser` and of `self.parser`; "ArgumentParser" of what makes one, or a group of its options; "" of
    what has no name."""
    if isinstance(node, ast.Call):
        return "ArgumentParser" if _is_parser(node) or _called(node) in GROUPS else ""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


# -- strings -----------------------------------------------------------------------------------------------------------


def _made(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Patterns of what is put together; what is printed as `name: number` is a score by what is before the colon."""
    for node in nodes:
        for pieces in _pieces(node):
            yield _pattern(pieces)
            for place, piece in enumerate(pieces):
                if piece is not None and (found := re.search("[:=]", piece)):
                    yield _pattern([*pieces[:place], piece[: found.start()].rstrip()])
                    break


def _pattern(pieces: list[str | None]) -> str:
    """Unknown pieces side by side are one: there is no end of ways in which several may share a word."""
    known = [piece for piece in pieces if piece != ""]
    alone = [piece for before, piece in zip(("", *known), known, strict=False) if piece or before is not None]
    return "".join(ANYTHING if piece is None else re.escape(piece) for piece in alone)


def _pieces(node: ast.AST) -> Iterator[list[str | None]]:
    """What a string is made of: None is what is known only when it runs."""
    if isinstance(node, ast.JoinedStr):
        yield _joined(node)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        pieces = _added(node)
        if any(piece is not None for piece in pieces):
            yield pieces
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and (text := _text(node.left)) is not None:
        yield _between(_PERCENT.split(text))
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        text = _text(node.func.value)
        if text is not None and node.func.attr in ("format", "format_map"):
            yield _between(_BRACES.split(text))
        elif text is not None and node.func.attr == "join":
            yield [None, text, None]
        elif node.func.attr in RENAMING:
            yield [None]


def _joined(node: ast.JoinedStr) -> list[str | None]:
    return [_text(value) for value in node.values]


def _added(node: ast.expr) -> list[str | None]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_added(node.left), *_added(node.right)]
    return _joined(node) if isinstance(node, ast.JoinedStr) else [_text(node)]


def _text(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _between(parts: list[str]) -> list[str | None]:
    return [piece for part in parts for piece in (None, part)][1:]
