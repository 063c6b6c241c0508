"""The cyclopts application, and the options that several commands share."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import App, Parameter

from cloudrun.cli.catalogue import COMMANDS
from cloudrun.core.errors import UsageError

Json = Annotated[
    bool,
    Parameter(
        name="--json", help="Print one JSON document on stdout, for programs. Example: --json | jq .schema_version"
    ),
]
Profile = Annotated[str | None, Parameter(help="A profile of ~/.aws, for what is on AWS. Example: --profile research")]
RunId = Annotated[str, Parameter(help="A run: its id, the beginning of its id, or its name. Example: r-0s1dq4xk8m2vt")]


def new_app(name: str, summary: str) -> App:
    """An application in our manner: plain words, no negative twins of options unless they mean something."""
    return App(
        name=name,
        help=summary,
        help_format="plaintext",
        version_flags=(),
        default_parameter=Parameter(negative=(), show_default=False),
    )


def application() -> App:
    """All commands, each of them imported only when it is used."""
    app = new_app("cloudrun", "Rent an EC2 machine for exactly as long as a training script needs it.")
    for command in COMMANDS:
        app.command(command.target, name=command.name)
    return app


def parse_params(assignments: Sequence[str]) -> dict[str, Any]:
    """`--set` values: "alpha=0.1" is a number, "shuffle=true" a truth, "name=fast" a text, `x="1"` the text 1.

    Raises UsageError where there is no `=`, no name, or a name comes twice.
    """
    params: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment} has no '='", next_step=f"write --set {assignment or 'name'}=VALUE")
        if not name.strip():
            raise UsageError(f"--set {assignment} names no parameter", next_step=f"write --set NAME={text}")
        if name.strip() in params:
            raise UsageError(f"--set gives {name.strip()} twice", next_step="keep one of the two")
        params[name.strip()] = _scalar(text)
    return params


def _scalar(text: str) -> Any:
    """A finite JSON number, boolean, null or string; everything else is the text as it was typed."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # not JSON, an integer too long for int(), or nested without end
        return text
    if isinstance(value, (list, dict)) or (isinstance(value, float) and not math.isfinite(value)):
        return text
    return value
