"""`cloudrun doctor`: what is missing on this computer or in the account, each with the command that mends it."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cloudrun.cli.parser import Json
from cloudrun.cli.printing import Style, columns, folded, print_json, print_table, printable, styled
from cloudrun.plan.quantities import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloudrun.setup.checks import Check

WORDS = {"ok": "ok", "warning": "look", "problem": "PROBLEM", "unknown": "?"}
STYLED: dict[str, Style] = {"ok": "good", "warning": "careful", "problem": "bad", "unknown": "careful"}
ANY_WIDTH = 10_000
_INDENT = 28  # where what was found begins, where there is room for that


def doctor(
    *,
    provider: Annotated[
        str | None, Parameter(help="sandbox (the default) or aws: what is looked at. Example: --provider aws")
    ] = None,
    region: Annotated[str | None, Parameter(help="The AWS region. Example: --region eu-west-1")] = None,
    profile: Annotated[str | None, Parameter(help="A profile of ~/.aws. Example: --profile research")] = None,
    instance_type: Annotated[
        str | None, Parameter(help="Whose quota and price are looked at. Example: --instance-type g5.xlarge")
    ] = None,
    spot: Annotated[
        bool | None, Parameter(negative="--no-spot", help="For the spot market's quota and price. Example: --spot")
    ] = None,
    errors: Annotated[
        bool, Parameter(help="Print what every error of AWS's becomes, and look at nothing. Example: --errors")
    ] = False,
    as_json: Json = False,
) -> int:
    """Look at all that a run needs, and say what mends what is missing. Nothing is
    launched or changed.

    With --provider aws it asks AWS: who you are and until when, what you may do
    (EC2's DryRun), the default VPC, the quota and price of the instance type, the
    clock. Exit code 0: all is well for that provider; 4: credentials or a
    permission are missing; 1: something else is.

    Type, for example:
        cloudrun doctor
        cloudrun doctor --provider aws --profile research
        cloudrun doctor --errors
    """
    if errors:
        _print_errors(as_json=as_json)
        return 0
    from cloudrun.setup.doctor import examine, exit_code

    flags = {
        "provider": provider,
        "region": region,
        "profile": profile,
        "instance_type": instance_type,
        "spot": spot,
    }
    groups = examine(Path.cwd(), flags)
    code = exit_code(groups)
    if as_json:
        from dataclasses import asdict

        document = {name: [asdict(check) for check in checks] for name, checks in groups.items()}
        print_json({"well": code == 0, "groups": document})
    else:
        width = columns(sys.stdout) or ANY_WIDTH
        for name, checks in groups.items():
            print(styled(name, "heading"))
            for check in checks:
                first, *rest = lines_of(check, width)
                word = WORDS[check.verdict]
                print("\n".join([first.replace(word, styled(word, STYLED[check.verdict]), 1), *rest]))
        if "AWS" not in groups:
            print(folded("\nAWS was not looked at: cloudrun doctor --provider aws", width))
        print(f"\n{verdict_of([check for checks in groups.values() for check in checks])}")
    return code


def verdict_of(checks: Sequence[Check]) -> str:
    problems = sum(check.verdict == "problem" for check in checks)
    looks = sum(check.verdict == "warning" for check in checks)
    if problems:
        return styled(f"{problems} PROBLEM{'S' if problems > 1 else ''}: what mends it stands below it", "bad")
    more = f" enough; {counted(looks, 'thing')} to look at" if looks else ""
    return styled(f"all is well{more}", "careful" if looks else "good")


def lines_of(check: Check, width: int) -> list[str]:
    """One check on a screen of so many columns; what mends it has a line of its own."""
    head = f"  {WORDS[check.verdict]:<9}{check.name:<16} "
    wide = width >= _INDENT + 40
    indent = " " * (_INDENT if wide else 4)
    words = textwrap.wrap(
        printable(check.found), max(20, width - len(indent)), break_long_words=False, break_on_hyphens=False
    ) or [""]
    lines = (
        [head + words[0], *(indent + each for each in words[1:])]
        if wide
        else [head.rstrip(), *map(indent.__add__, words)]
    )
    if check.next_step:
        mend = textwrap.wrap(
            f"next: {printable(check.next_step)}",
            max(20, width - len(indent)),
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines += [indent + styled(each, "command") for each in mend]
    return lines


def _print_errors(*, as_json: bool) -> None:
    from dataclasses import asdict

    from cloudrun.setup.project import error_table

    lines = error_table()
    if as_json:
        print_json({"errors": [asdict(line) for line in lines]})
        return
    rows = [[line.source, line.name, line.error, str(line.exit_code), line.next_step] for line in lines]
    print_table(["from", "error", "becomes", "exit code", "next step"], rows, right=["exit code"])
