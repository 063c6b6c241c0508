"""Names that were probably mistyped: judged by what earlier runs of the script had, and by what its code says."""

from __future__ import annotations

import re
from collections.abc import Collection

from cloudrun.core.near import nearest

_OPTION = re.compile(r"""['"]--([A-Za-z][\w-]*)""")  # as argparse, click and their like are told of one


def is_said(word: str, code: str) -> bool:
    """Whether the code has it as a whole word."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", code) is not None


def meant_parameter(name: str, code: str, earlier: Collection[str]) -> str:
    """What somebody meant who typed `--set name=...`: an option that `code` has, else a parameter that `earlier` runs
    had. "" where the name is one of those, or none of them is near.

    Where the code has options, the name has to stand there as one, or in quotes (what reads CLOUDRUN_PARAMS asks for it
    so): `args.learning_rate` does not make `--learning_rate` of an option `--learning-rate`.
    """
    options = dict.fromkeys(_OPTION.findall(code))
    if options:
        if name in options or f'"{name}"' in code or f"'{name}'" in code:
            return ""
        if near := nearest(name, options):
            return near[0]
    if name in earlier or is_said(name, code):
        return ""
    return next(iter(nearest(name, earlier)), "")
