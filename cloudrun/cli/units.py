"""`cloudrun units` and `reap`: what is alive, and the end of what should not be."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from cloudrun.cli.display import Display
from cloudrun.cli.parser import Json, Profile
from cloudrun.cli.printing import print_json, print_table
from cloudrun.core.clock import utc_text
from cloudrun.core.records import Place, RunRecord, UnitRecord
from cloudrun.plan.costs import Bill, usd_text
from cloudrun.plan.quantities import duration_text

if TYPE_CHECKING:
    from cloudrun.ledger import Ledger


def units(*, profile: Profile = None, as_json: Json = False) -> None:
    """The machines of this project that are alive, as EC2 tells it now: what each
    does, since when, until when, and what it has cost so far.

    Type, for example:
        cloudrun units
        cloudrun units --json | jq '.units[].instance_id'
    """
    from cloudrun.ledger import Ledger
    from cloudrun.units.costs import bill
    from cloudrun.units.listing import live_units

    with closing(Ledger()) as ledger:
        seen = [_look(ledger, unit) for unit in live_units(ledger, profile)]
        whole = bill(ledger, [each.unit for each in seen])
    now = datetime.now(UTC)
    if as_json:
        print_json({"units": [_unit_document(each, now) for each in seen], "cost": whole.document()})
    elif not seen:
        print("no machine is alive", file=sys.stderr)
    else:
        headers = ["unit", "state", "does", "age", "powers off", "cost so far", "type", "where", "address", "on exit"]
        rows = [_unit_row(each, now) for each in seen]
        print_table(headers, rows, dispensable=("address", "where", "state", "on exit", "type"))
        if cost := str(whole):
            print(f"  cost   {cost}", file=sys.stderr)


@dataclass(frozen=True)
class Seen:
    unit: UnitRecord
    runs: tuple[RunRecord, ...]  # on it, and not over
    how_it_ends: str
    bill: Bill


def _look(ledger: Ledger, unit: UnitRecord) -> Seen:
    from cloudrun.units.costs import bill

    runs = tuple(ledger.unfinished_runs(unit.instance_id))
    return Seen(unit, runs, _how_it_ends(ledger, unit), bill(ledger, [unit]))


def _unit_row(seen: Seen, now: datetime) -> list[str]:
    from cloudrun.units.shell import doing

    unit = seen.unit
    left_s = (unit.deadline - now).total_seconds()
    return [
        unit.instance_id,
        str(unit.state),
        doing([run.run_id for run in seen.runs], unit),
        duration_text(max(0.0, (now - unit.created_at).total_seconds())),
        f"in {duration_text(left_s)}" if left_s > 0 else f"{duration_text(-left_s)} ago",
        usd_text(seen.bill.usd) if seen.bill.usd else "-",
        unit.instance_type,
        f"{unit.place.provider} {unit.place.region}",
        f"{unit.address}:{unit.ssh_port}" if unit.address else "-",
        seen.how_it_ends,
    ]


def _how_it_ends(ledger: Ledger, unit: UnitRecord) -> str:
    """What becomes of it: one that is left to its runs ends, once those are home, as it was launched to."""
    if unit.client_id or unit.on_exit != "keep" or not ledger.unfinished_runs(unit.instance_id):
        return unit.on_exit
    how = ledger.launch(unit.launch_id).on_exit
    return how if how == "keep" else f"{how}, once its run is home"


def _unit_document(seen: Seen, now: datetime) -> dict[str, Any]:
    unit = seen.unit
    return {
        "instance_id": unit.instance_id,
        "launch_id": unit.launch_id,
        "state": str(unit.state),
        "instance_type": unit.instance_type,
        "place": _place_document(unit.place),
        "user": unit.user,
        "ssh_host": unit.address,
        "ssh_port": unit.ssh_port,
        "deadline": utc_text(unit.deadline),
        "on_exit": unit.on_exit,
        "created_at": utc_text(unit.created_at),
        "age_s": round((now - unit.created_at).total_seconds(), 3),
        "run_ids": [run.run_id for run in seen.runs],
        "cost": seen.bill.document(),
    }


def _place_document(place: Place) -> dict[str, str]:
    return {"provider": place.provider, "region": place.region}


def reap(
    *units: Annotated[
        str, Parameter(help="End these, which were kept or stopped, and no others. Example: i-0123456789abcdef0")
    ],
    dry_run: Annotated[
        bool, Parameter(help="Only say what would be ended, and why. Example: cloudrun reap --dry-run")
    ] = False,
    profile: Profile = None,
    as_json: Json = False,
) -> None:
    """End the machines of this project that expired or that nobody needs any more,
    and delete their keys and groups.

    Only what this project's ledger launched is ever touched, each in the provider
    and region it was launched in. What a machine's runs had written is brought
    home first. Exit code 8: something may still be billing.

    Type, for example:
        cloudrun reap --dry-run
        cloudrun reap
        cloudrun reap i-0123456789abcdef0
    """
    from cloudrun.grids.watching import forsaken
    from cloudrun.ledger import Ledger
    from cloudrun.reaper import reap as reap_all

    with closing(Ledger()) as ledger, Display() as display:
        report = reap_all(ledger, units=units, dry_run=dry_run, observe=display, profile=profile)
        left = forsaken(ledger, {action.target for action in report.actions}) if dry_run else []
    if as_json:
        actions = [
            {
                "kind": action.kind,
                "target": action.target,
                "place": _place_document(action.place),
                "reason": action.reason,
                "done": action.done,
                "problem": action.problem,
            }
            for action in report.actions
        ]
        print_json({"dry_run": dry_run, "actions": actions})
    elif not report.actions:
        print("nothing to end", file=sys.stderr)
    else:
        print_table(
            ["action", "target", "where", "because", "done"],
            [
                [
                    action.kind.replace("_", " "),
                    action.target,
                    f"{action.place.provider} {action.place.region}",
                    action.reason,
                    "would be" if dry_run else "yes" if action.done else "no",
                ]
                for action in report.actions
            ],
        )
        for grid_id in left:
            print(
                f"  {grid_id} has no process any more: its command, typed again, or cloudrun attach {grid_id} goes on"
                f" with it and with its machines; cloudrun cancel {grid_id} brings home what it has and ends it",
                file=sys.stderr,
            )
    report.require_complete()
