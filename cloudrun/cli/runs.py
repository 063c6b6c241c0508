"""`cloudrun ps`, `logs`, `attach`, `cancel`, `pull`, `extend`: runs that outlive the command that started them."""

from __future__ import annotations

import sys
from contextlib import closing
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from cloudrun.cli.display import Display
from cloudrun.cli.parser import Json, Profile, RunId, RunOrGrid
from cloudrun.cli.printing import print_json, print_table, printable
from cloudrun.cli.summary import closing_lines, exit_code
from cloudrun.cli.under_way import cells_of, running_s
from cloudrun.core.clock import utc_text
from cloudrun.core.errors import UsageError
from cloudrun.core.states import RunState, is_terminal
from cloudrun.plan.quantities import counted, duration_s, duration_text
from cloudrun.plan.typed import command

if TYPE_CHECKING:
    from cloudrun.grids.watching import SeenGrid
    from cloudrun.ledger import Ledger, Run
    from cloudrun.runs.watching import Seen


def ps(*, profile: Profile = None, as_json: Json = False) -> None:
    """The runs that are not over, as their machines tell it now, and what to type
    next. A grid is one line.

    Type, for example:
        cloudrun ps
        cloudrun ps --json | jq '.runs[].run_id'
    """
    from cloudrun.grids.watching import look_at_grids
    from cloudrun.ledger import Ledger
    from cloudrun.runs.watching import look

    with closing(Ledger()) as ledger:
        grids, seen = look_at_grids(ledger, profile), look(ledger, profile)
    if as_json:
        print_json({"runs": [_document(each) for each in seen], "grids": [_grid_document(each) for each in grids]})
    elif not seen and not grids:
        print("no run is under way", file=sys.stderr)
    else:
        now = datetime.now(UTC)
        rows = [_grid_row(each, now) for each in grids] + [_row(each, now) for each in seen]
        print_table(["run", "name", "is", "for", "on", "powers off", "next"], rows)
        problems = [each.problem for each in seen if each.word in ("gone", "unknown")]
        for why in dict.fromkeys([*problems, *(problem for each in grids for problem in each.problems)]):
            print(f"cloudrun: {printable(why)}", file=sys.stderr)


def _row(seen: Seen, now: datetime) -> list[str]:
    unit, elapsed_s = seen.unit, running_s(seen, now)
    left_s = (seen.deadline - now).total_seconds() if seen.deadline else 0.0
    return [
        seen.run.run_id,
        seen.run.name,
        seen.word,
        duration_text(elapsed_s) if elapsed_s else "-",
        unit.instance_id if unit else "-",
        f"in {duration_text(left_s)}" if left_s > 0 else "-",
        seen.next_step or ("a process looks after it" if seen.attended else "-"),
    ]


def _grid_row(seen: SeenGrid, now: datetime) -> list[str]:
    left_s = max(((unit.deadline - now).total_seconds() for unit in seen.units), default=0.0)
    return [
        seen.grid.grid_id,
        seen.grid.name,
        ", ".join(cells_of(seen)),
        duration_text((now - seen.grid.created_at).total_seconds()),
        counted(len(seen.units), "machine") if seen.units else "-",
        f"in {duration_text(left_s)}" if left_s > 0 else "-",
        seen.next_step or "a process looks after it",
    ]


def _grid_document(seen: SeenGrid) -> dict[str, Any]:
    return {
        "grid_id": seen.grid.grid_id,
        "name": seen.grid.name,
        "state": str(seen.grid.state),
        "cells": seen.grid.cells,
        "succeeded": seen.done,
        "not_home": seen.there["done"] + seen.there["failed"],
        "running": seen.running,
        "waiting": seen.there["waiting"],
        "failed": seen.failed,
        "cancelled": seen.cancelled,
        "left": seen.left,
        "attended": seen.attended,
        "instance_ids": [unit.instance_id for unit in seen.units],
        "created_at": utc_text(seen.grid.created_at),
        "next_step": seen.next_step,
    }


def _document(seen: Seen) -> dict[str, Any]:
    run, unit, status = seen.run, seen.unit, seen.status
    return {
        "run_id": run.run_id,
        "name": run.name,
        "state": str(run.state),
        "doing": seen.word,
        "attempts": run.attempts,
        "attended": seen.attended,
        "instance_id": unit.instance_id if unit else None,
        "deadline": utc_text(seen.deadline) if seen.deadline else None,
        "created_at": utc_text(run.created_at),
        "started_at": _moment(status.started_at if status else None),
        "ended_at": _moment(status.ended_at if status else None),
        "exit_code": status.exit_code if status else None,
        "next_step": seen.next_step,
        "problem": seen.problem,
    }


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else utc_text(datetime.fromtimestamp(seconds, UTC))


def logs(
    run: RunId,
    /,
    *,
    follow: Annotated[
        bool,
        Parameter(
            name=("--follow", "-f"), negative=(), help="Go on until the run ends. Example: cloudrun logs -f baseline"
        ),
    ] = False,
    stream: Annotated[
        Literal["both", "stdout", "stderr"],
        Parameter(help="Which of the two; both by default, stderr on stderr. Example: --stream stdout"),
    ] = "both",
    from_byte: Annotated[
        int, Parameter(help="Leave out the first so many bytes of each stream. Example: --from-byte 1000000")
    ] = 0,
    attempt: Annotated[
        int | None,
        Parameter(help="Which attempt's, where a machine was taken back; by default the last. Example: --attempt 1"),
    ] = None,
    profile: Profile = None,
    as_json: Json = False,
) -> None:
    """What a run has printed, byte for byte, wherever it is now: on its machine or
    at home.

    With --json one document at the end, bytes that are no UTF-8 as U+FFFD.

    Type, for example:
        cloudrun logs baseline
        cloudrun logs -f baseline --stream stdout > baseline.log
    """
    from cloudrun.ledger import Ledger
    from cloudrun.runs.watching import read_logs

    if from_byte < 0:
        raise UsageError(f"--from-byte {from_byte} is less than 0", next_step="count from 0")
    targets: dict[str, IO[str]] = {"stdout": sys.stdout, "stderr": sys.stderr}
    said = {"stdout": bytearray(), "stderr": bytearray()}

    def write(name: str, data: bytes) -> None:
        if stream not in ("both", name):
            return
        if as_json:
            said[name] += data
        else:
            targets[name].flush()
            targets[name].buffer.write(data)  # type: ignore[attr-defined]
            targets[name].buffer.flush()  # type: ignore[attr-defined]

    with closing(Ledger()) as ledger, Display() as display:
        offsets = {"stdout": from_byte, "stderr": from_byte}
        try:
            found = read_logs(
                ledger, run, write, offsets=offsets, attempt=attempt, follow=follow, profile=profile, observe=display
            )
        except KeyboardInterrupt as error:
            if not is_terminal(ledger.run(run).state):
                _goes_on(error, run)
            raise
    if as_json:
        texts = {name: text.decode("utf-8", "replace") for name, text in said.items() if stream in ("both", name)}
        print_json({"run_id": found.run_id, "state": str(found.state), **texts})


def _goes_on(error: KeyboardInterrupt, run: str) -> None:
    """Whoever leaves early shall not think that he has ended it."""
    error.add_note("the run goes on")
    error.next_step = f"{command('attach', run)} comes back to it, {command('cancel', run)} ends it"  # type: ignore[attr-defined]


def attach(run: RunOrGrid, /, *, profile: Profile = None, as_json: Json = False) -> int:
    """Follow a run that was submitted with --detach, or whose command was killed,
    from its first line on, then bring everything home and end the machine. Ctrl-C
    leaves it running.

    Where the provider took the machine back, the run goes on on another one with
    what it had saved. A grid is gone on with until all of its cells are done: as
    by the command that submitted it, without --detach.

    Type, for example:
        cloudrun attach baseline
        cloudrun attach g-0tr2f4a95x9kx
    """
    from cloudrun.cli.meant import grid_meant, run_meant
    from cloudrun.ledger import Ledger
    from cloudrun.runs.attaching import attach as attach_run

    with closing(Ledger()) as ledger:
        if grid_id := grid_meant(ledger, run):
            from cloudrun.cli.detached import attach_to_grid

            return attach_to_grid(ledger, grid_id, profile, as_json=as_json)
        run = run_meant(ledger, run)
    with closing(Ledger()) as ledger, Display(job_stdout=not as_json) as display:
        try:
            found = attach_run(ledger, run, observe=display, profile=profile)
        except KeyboardInterrupt as error:
            if not is_terminal(ledger.run(run).state):
                _goes_on(error, run)
            raise
        return _tell(found, ledger, display, as_json=as_json)


def cancel(
    run: RunOrGrid,
    /,
    *,
    grace: Annotated[
        str,
        Parameter(
            allow_leading_hyphen=True,
            help="How long it may go on to save what it has; 30s by default. Example: --grace 2m",
        ),
    ] = "30s",
    profile: Profile = None,
    as_json: Json = False,
) -> None:
    """End a run, or a grid with all of its cells: bring home what they have written,
    and end their machines as they were launched to end.

    A job gets SIGTERM, time to save what it has, then SIGKILL.

    Type, for example:
        cloudrun cancel baseline
        cloudrun cancel g-0tr2f4a95x9kx
    """
    from cloudrun.cli.meant import grid_meant, run_meant
    from cloudrun.ledger import Ledger
    from cloudrun.runs.attaching import cancel as cancel_run

    grace_s = _duration(grace, "--grace")
    with closing(Ledger()) as ledger, Display() as display:
        if grid_id := grid_meant(ledger, run):
            from cloudrun.grids.cancelling import cancel_grid

            grid = cancel_grid(ledger, grid_id, grace_s=grace_s, observe=display, profile=profile)
            succeeded, cells = ledger.counts(grid.grid_id)[RunState.SUCCEEDED], counted(grid.cells, "cell")
            display.say(
                f"{grid.grid_id} ({grid.name}) {grid.state}: {succeeded} of {cells} had succeeded\n"
                f"  next   cloudrun results --grid {grid.grid_id}"
            )
            if as_json:
                summary = {"state": str(grid.state), "cells": grid.cells, "succeeded": succeeded}
                print_json({"grid_id": grid.grid_id, "summary": summary})
            return
        found = cancel_run(ledger, run_meant(ledger, run), grace_s=grace_s, observe=display, profile=profile)
        _tell(found, ledger, display, as_json=as_json)


def pull(run: RunOrGrid, /, *, profile: Profile = None, as_json: Json = False) -> int:
    """Bring home the outputs of a run that has ended without its client: from its
    machine, or from its bucket.

    The machine is ended then, unless it was launched to be kept. Of a grid all
    cells come home that have ended; those that a lost machine had are queued
    again, and the others go on.

    Type, for example:
        cloudrun pull baseline
        cloudrun pull g-0tr2f4a95x9kx
    """
    from cloudrun.cli.meant import grid_meant, run_meant
    from cloudrun.ledger import Ledger
    from cloudrun.runs.pulling import pull as pull_run

    with closing(Ledger()) as ledger:
        if grid_id := grid_meant(ledger, run):
            from cloudrun.cli.detached import pull_of_grid

            return pull_of_grid(ledger, grid_id, profile, as_json=as_json)
        run = run_meant(ledger, run, not_home=True)
    with closing(Ledger()) as ledger, Display() as display:
        found = pull_run(ledger, run, observe=display, profile=profile)
        return _tell(found, ledger, display, as_json=as_json)


def _tell(run: Run, ledger: Ledger, display: Display, *, as_json: bool) -> int:
    from cloudrun.grids.gathering import end_grids_of
    from cloudrun.units.costs import bill_of_run

    end_grids_of(ledger, run.run_id)
    lines = closing_lines(run.record, ledger.artifacts.path, bill_of_run(ledger, run.run_id))
    display.close(lines, good=exit_code(run.record) == 0)
    if as_json:
        print_json(run.to_dict())
    return exit_code(run.record)


def extend(
    what: Annotated[
        str, Parameter(help="A run, a grid (all of its machines), or the id of a machine. Example: i-0123456789abcdef0")
    ],
    by: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="How much later its machine shall power itself off. Example: 2h")
    ],
    /,
    *,
    profile: Profile = None,
    as_json: Json = False,
) -> None:
    """Move a machine's deadline later. Nothing else ever does.

    Type, for example:
        cloudrun extend baseline 2h
    """
    from cloudrun.cli.meant import grid_meant
    from cloudrun.ledger import Ledger
    from cloudrun.runs.attaching import extend as extend_unit

    by_s = _duration(by, "the time")
    with closing(Ledger()) as ledger, Display() as display:
        units = []
        if not what.startswith("i-") and (grid_id := grid_meant(ledger, what)):
            from cloudrun.grids.going_on import extend_grid

            units = extend_grid(ledger, grid_id, by_s, observe=display, profile=profile)
        unit = units[-1] if units else extend_unit(ledger, what, by_s, observe=display, profile=profile)
        for each in units or [unit]:
            left_s = (each.deadline - datetime.now(UTC)).total_seconds()
            display.say(f"{each.instance_id} powers itself off in {duration_text(left_s)}")
    if as_json and units:
        print_json({"units": [{"instance_id": u.instance_id, "deadline": utc_text(u.deadline)} for u in units]})
    elif as_json:
        print_json({"instance_id": unit.instance_id, "deadline": utc_text(unit.deadline)})


def _duration(text: str, what: str) -> float:
    try:
        return duration_s(text)
    except ValueError as problem:
        raise UsageError(f"{what}: {problem}", next_step="write it as 2h, 30m or 90s") from problem
