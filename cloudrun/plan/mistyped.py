"""Names that were probably mistyped: judged by what earlier runs of the script had, and by what its code says.

Nothing here is certain enough to refuse a parameter: a script may read its arguments in ways that its code does not
show. So all that is not known is said; a metric alone is refused, and only where `is_no_score` is sure.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from cloudrun.core.near import nearest
from cloudrun.plan.spoken import Code

NAMED = 8  # of the names that are known; the rest is counted
_ASSIGNED = re.compile(r"([A-Za-z_][\w.-]*)=.*", re.DOTALL)
_OPTION = re.compile(r"--([A-Za-z_][\w.-]*)(?:=.*)?", re.DOTALL)


def parameter_doubt(name: str, code: Code, earlier: Collection[str]) -> str:
    """What is to be said of `--set name=...` that nothing knows; "" where something does, or nobody can tell.

    Where argparse alone reads the arguments, its options are all that there is. Else the name may stand in the code as
    an option, or in quotes (what reads CLOUDRUN_PARAMS asks for it so): `args.learning_rate` does not make
    `--learning_rate` of an option `--learning-rate`. Where the code has no option that is like it, any word of the
    code, and any parameter that an earlier run had, is known.
    """
    if code.takes is not None:
        if _is_option(name, code.takes):
            return ""
        return f"has no option --{name}{_instead(name, code.takes, 'its options are')}"
    if name in code.options or code.quotes(name):
        return ""
    words = f"and its earlier runs have nothing called {name!r}"
    if near := nearest(name, code.options):
        return f"{words}: did you mean {near[0]}?"
    if name in earlier or _is_a_word(name, code) or not (earlier or code.options):
        return ""
    return f"{words}{_instead(name, tuple(earlier) or code.options, 'they have')}"


def argument_doubt(arguments: Sequence[str], code: Code, earlier: Collection[str]) -> str:
    """What is to be said of the script's own arguments: an option that it does not have, or `name=value`, which sets a
    parameter only behind `--set`. "" where nothing is."""
    for place, word in enumerate(arguments):
        if word == "--":
            break
        if found := _OPTION.fullmatch(word):
            if code.takes is not None and not _is_option(found[1], code.takes):
                return f"has no option --{found[1]}{_instead(found[1], code.takes, 'its options are')}"
        elif (found := _ASSIGNED.fullmatch(word)) and not _may_be_taken(arguments[:place], code):
            name, step = found[1], f"as a parameter it is --set {word}"
            if code.takes is not None and not code.is_positional:
                doubt = parameter_doubt(name, code, earlier)
                return f"takes no argument {word}: {step}" + (f", but it {doubt}" if doubt else "")
            if code.takes is None and not code.says("argv") and (name in code.options or name in earlier):
                return f"gets {word} as an argument: {step}"
    return ""


def _may_be_taken(before: Sequence[str], code: Code) -> bool:
    """Whether an option `before` a word may take it: one that takes several words ends nobody knows where."""
    several = before if code.says("nargs") else before[-1:]
    return any(each.startswith("-") for each in several)


def _is_option(name: str, takes: Sequence[str]) -> bool:
    """argparse takes the beginning of an option for it, where no other begins so, and makes `--no-` ones."""
    if name.removeprefix("no-") in ("help", *takes):
        return True
    return any(sum(each.startswith(begin) for each in takes) == 1 for begin in (name, name.removeprefix("no-")))


def _is_a_word(name: str, code: Code) -> bool:
    """Whether the code has it, or the argument of a function that typer, fire and their like make `--name` of."""
    argument = name.replace("-", "_")
    return any(code.says(word) for word in (name, argument, argument.removeprefix("no_")))


def _instead(name: str, known: Sequence[str], what: str) -> str:
    if near := nearest(name, known):
        return f": did you mean {near[0]}?"
    more = f" and {len(known) - NAMED} more" if len(known) > NAMED else ""
    return f": {what} {', '.join(known[:NAMED])}{more}" if known else ", nor any other"


def is_no_score(metric: str, code: Code, earlier: Collection[str]) -> bool:
    """Whether it is next to certain that the script gives no score of that name, which is like one of earlier runs'.

    It is not where the name may be made while the script runs: where it has a digit (precision_at_10), where a string
    that is put together may come out so, or where scores of earlier runs are not in the code either: then they come
    from somewhere else.
    """
    if code.says(metric) or metric in earlier or any(letter.isdigit() for letter in metric) or code.may_make(metric):
        return False
    return bool(nearest(metric, earlier)) and all(code.says(score) for score in earlier)
