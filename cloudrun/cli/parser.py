"""The cyclopts application, and the options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import App, Parameter

from cloudrun.cli.catalogue import COMMANDS
from cloudrun.core.errors import UsageError
from cloudrun.plan.grid_sets import assignment
from cloudrun.plan.parameters import scalar

Json = Annotated[
    bool,
    Parameter(
        name="--json", help="Print one JSON document on stdout, for programs. Example: --json | jq .schema_version"
    ),
]
Profile = Annotated[str | None, Parameter(help="A profile of ~/.aws, for what is on AWS. Example: --profile research")]
RunOrGrid = Annotated[
    str,
    Parameter(help="A run or a grid, by id, its beginning, or name (the newest called so). Example: r-0s1dq4xk8m2vt"),
]
RunId = Annotated[str, Parameter(help="A run: its id, the beginning of its id, or its name. Example: r-0s1dq4xk8m2vt")]


PLAIN = Parameter(negative=(), show_default=False)


def new_app(name: str, summary: str) -> App:
    """An application in our manner: plain words, no negative twins of options unless they mean something."""
    return App(
        name=name,
        help=summary,
        help_format="plaintext",
        version_flags=(),
        default_parameter=PLAIN,
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
    for each in assignments:
        name, text = assignment(each)
        if name in params:
            raise UsageError(f"--set gives {name} twice", next_step="keep one of the two")
        params[name] = scalar(text)
    return params
