"""`cloudrun show` and `get`: what the ledger holds of one run, or of a grid; of what is not over, what its machines say
where they answer. Neither needs the network."""

from __future__ import annotations

import shutil
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cloudrun.cli.meant import grid_meant, run_meant
from cloudrun.cli.parser import Json, Profile, RunId, RunOrGrid
from cloudrun.cli.printing import is_terminal, print_json, printable
from cloudrun.cli.run_page import last_lines, page
from cloudrun.cli.under_way import document
from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import NotFound, UsageError
from cloudrun.core.records import Artifact
from cloudrun.core.states import RunState
from cloudrun.core.states import is_terminal as is_over
from cloudrun.ledger import Ledger, Run
from cloudrun.plan.filters import Column, Comparison
from cloudrun.plan.quantities import counted, size_text
from cloudrun.plan.typed import command, path_typed
from cloudrun.units.clients import is_alive
from cloudrun.units.costs import bill_of_run

LOOKED_AT = 200  # runs of one name, for a file that the newest does not have


def show(
    run: RunOrGrid,
    /,
    *,
    log: Annotated[bool, Parameter(help="The end of what it printed and of Ansible's log. Example: --log")] = False,
    lines: Annotated[
        int | None,
        Parameter(help="How many lines of each log: 10 by default; with --log 20, and 0 for all. Example: --lines 100"),
    ] = None,
    profile: Profile = None,
    as_json: Json = False,
) -> None:
    """Everything about one run: state, scores, parameters, time by phase, cost,
    versions, files, the end of what it printed; or its logs. Of a grid how far it
    is, its best cells, what it cost, and what to type next.

    Of what is not over its machine is asked, too, for a few seconds at most.

    Type, for example:
        cloudrun show baseline
        cloudrun show g-0tr2f4a95x9kx
        cloudrun show baseline --log --lines 0
        cloudrun show baseline --json | jq .timings
    """
    if lines is not None and lines < 0:
        raise UsageError(f"--lines {lines} is less than zero", next_step=command("show --log --lines 20", run))
    with closing(Ledger()) as ledger:
        if not log and (grid_id := grid_meant(ledger, run)):
            from cloudrun.cli.grid_page import show_grid

            show_grid(ledger, grid_id, profile, as_json=as_json)
            return
        found, seen = ledger.get(run_meant(ledger, run)), None
        if found.state is not RunState.QUEUED and not is_over(found.state) and not log:
            from cloudrun.runs.watching import glance

            seen = glance(ledger, found.record, profile)
            found = ledger.get(found.run_id)  # its client may have brought it home meanwhile
            seen = None if is_over(found.state) else seen
        logs, shortened = _log_ends(ledger, found, 20 if lines is None else lines) if log else ({}, {})
        if as_json:
            cost = bill_of_run(ledger, found.run_id).document()
            more = {"logs": logs} if log else document(seen) if seen else {}
            print_json({**found.to_dict(), "cost": cost, **more})
        elif log:
            for path, text in logs.items():
                print(f"==> {path} <==\n{text}", flush=True)
                if path in shortened:
                    whole = "logs" if path in ("stdout.log", "stderr.log") else "show --log --lines 0"
                    shown = (
                        f"the last {len(text.splitlines())} of {counted(shortened[path], 'line')} of {printable(path)}"
                    )
                    print(f"  {shown}; all of them: {command(whole, run)}", file=sys.stderr)
            if not logs:
                print("  none of its logs are home", file=sys.stderr)
                if not is_over(found.state):
                    print(f"  next: cloudrun logs -f {found.run_id}", file=sys.stderr)
        else:
            unit = ledger.unit(found.instance_id) if found.instance_id else None
            tails = _tails(ledger, found, 10 if lines is None else lines)
            bill = bill_of_run(ledger, found.run_id)
            width = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None
            attended = found.grid_id is not None and is_alive(
                ledger.client(ledger.grid(found.grid_id).client_id), SystemClock().now()
            )
            lines_of_page = page(
                found.record, unit, bill, tails, encoding=sys.stdout.encoding, width=width, seen=seen, attended=attended
            )
            print("\n".join(lines_of_page))


def _tails(ledger: Ledger, run: Run, count: int) -> dict[str, list[str]]:
    """The last lines of what it printed; of stderr only where something went wrong, or nothing else was said."""
    logs = {artifact.path: artifact.sha256 for artifact in run.artifacts if artifact.kind == "log"}
    tails: dict[str, list[str]] = {}
    for name in ("stdout.log", "stderr.log"):
        if name in logs and (name == "stdout.log" or run.state is not RunState.SUCCEEDED or not any(tails.values())):
            tails[name] = last_lines(ledger.artifacts.path(logs[name]), count)
    return {name: last for name, last in tails.items() if last}


def _log_ends(ledger: Ledger, run: Run, lines: int) -> tuple[dict[str, str], dict[str, int]]:
    """The last lines (0: all) of each log, and of those with more how many those are in all. Escape codes are made
    harmless where a terminal would obey them."""
    ends: dict[str, str] = {}
    shortened: dict[str, int] = {}
    for artifact in run.artifacts:
        if artifact.kind == "log":
            with ledger.artifacts.open(artifact.sha256) as stream:
                every = stream.read().decode("utf-8", "replace").splitlines()
            kept = every[-lines:]
            if len(kept) < len(every):
                shortened[artifact.path] = len(every)
            harmless = [printable(line.expandtabs()) for line in kept] if sys.stdout.isatty() else kept
            ends[artifact.path] = "\n".join(harmless)
    return ends, shortened


def get(
    run: RunId,
    path: Annotated[str, Parameter(help="One of the run's files, as `show` lists them. Example: out/model.joblib")],
    dest: Annotated[
        str | None, Parameter(help="A file or folder; by default the file's name here. Example: models/")
    ] = None,
    /,
    *,
    force: Annotated[bool, Parameter(help="Replace a file that is there already. Example: --force")] = False,
    as_json: Json = False,
) -> None:
    """Copy a file that a run made (a model, a table, a log) out of the ledger.

    Type, for example:
        cloudrun get baseline model.joblib
        cloudrun get baseline model.joblib models/best.joblib --force
    """
    with closing(Ledger()) as ledger:
        found = ledger.get(run_meant(ledger, run))
        try:
            artifact = found.artifact(path)
        except NotFound as error:
            if found.name == run and (older := _older_with(ledger, found, path)):
                why = f"run {found.run_id} ({found.state}) has no artifact {path!r}; {older} has, of the same name"
                raise NotFound(why, next_step=command("get", older, path)) from error
            raise
        destination = _destination(artifact, dest, force=force, again=command("get", run, path))
        ledger.artifacts.copy_out(artifact.sha256, destination)
        if as_json:
            print_json(
                {
                    "run_id": found.run_id,
                    "path": artifact.path,
                    "destination": str(destination.absolute()),
                    "size": artifact.size,
                    "sha256": artifact.sha256,
                }
            )
        else:
            print(destination)


def _older_with(ledger: Ledger, run: Run, path: str) -> str | None:
    """The id of the newest other run of that name that has such a file."""
    same_name = [Comparison(Column("field", "name"), "=", run.name)]
    for each in ledger.results(where=same_name, sort="created_at", reverse=True, limit=LOOKED_AT):
        with suppress(NotFound, UsageError):
            if each.run_id != run.run_id and each.artifact(path):
                return each.run_id
    return None


def _destination(artifact: Artifact, wanted: str | None, *, force: bool, again: str) -> Path:
    """Where the copy goes. Raises UsageError where that is no place for it, or something else is there."""
    name = artifact.path.rpartition("/")[2]
    destination = Path(wanted or name).expanduser()
    if destination.is_dir() or (wanted or "").endswith("/"):
        destination /= name
    if not destination.parent.is_dir():
        raise UsageError(
            f"there is no folder {destination.parent}",
            next_step=f"mkdir -p {path_typed(destination.parent)}, then type it again",
        )
    if destination.is_dir():
        raise UsageError(f"{destination} is a folder", next_step=f"{again} ANOTHER_NAME")
    if destination.exists() and not force:
        raise UsageError(
            f"{destination} is there already ({size_text(destination.stat().st_size)})",
            next_step=f"{again} ANOTHER_NAME, or add --force to replace it",
        )
    return destination
