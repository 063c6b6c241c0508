"""`cloudrun rm` and `gc`: forget runs, and free what nothing refers to. Neither needs the network."""

from __future__ import annotations

import math
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cloudrun import garbage
from cloudrun.cli.meant import namesakes
from cloudrun.cli.parser import Json
from cloudrun.cli.printing import is_terminal, print_json, printable, when_text
from cloudrun.core.clock import SystemClock, utc_text
from cloudrun.core.errors import CloudrunError, UsageError
from cloudrun.garbage import Garbage, Waiting
from cloudrun.ledger import Ledger
from cloudrun.plan.quantities import counted, duration_s, duration_text, size_text
from cloudrun.plan.typed import command
from cloudrun.sandbox import leftovers
from cloudrun.units.clients import is_alive

NAMED = 10  # things that are named before one is asked
KINDS = {
    "artifact": ("file", "that no run refers to"),
    "code": ("version", "of code without a run"),
    "part": ("transfer", "that nobody went on with"),
    "log": ("folder", "of logs that are home"),
    "call": ("pool", "that could not clear up"),
    "sandbox": ("machine", "of sandboxes that have ended"),
}
NOTHING_S = re.compile(r"0+(\.0*)?\s*(d|h|min|m|s)?")

Yes = Annotated[bool, Parameter(help="Do not ask. Example: --yes")]


def rm(
    *runs: Annotated[
        str,
        Parameter(
            help="Runs by id, its beginning, or name; or a grid by its id, with the runs that it has made and that"
            " no other grid has. Example: r-0s1dq4xk8m2vt"
        ),
    ],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Forget runs that are over. Their files stay until `cloudrun gc` frees those
    that no other run has.

    All of them or none; never one that is under way or waits to be brought home,
    and no cell of a grid that goes on.

    Type, for example:
        cloudrun rm r-0s1dq4xk8m2vt
        cloudrun rm g-0tr2f4a95x9kx --yes
    """
    if not runs:
        raise UsageError("which runs are to be removed?", next_step="cloudrun results lists what there is")
    with closing(Ledger()) as ledger:
        grids = [ledger.grid(each) for each in runs if each.startswith("g-")]
        found = {run.run_id: run for run in (ledger.run(each) for each in runs if not each.startswith("g-"))}
        ledger.check_over(found)
        for grid in grids:
            if is_alive(ledger.client(grid.client_id), SystemClock().now()):
                raise UsageError(
                    f"a process still works on {grid.grid_id}", next_step=f"cloudrun cancel {grid.grid_id}, then this"
                )
        for grid in grids:
            print(
                f"  {grid.grid_id} ({printable(grid.name)}): {counted(grid.cells, 'cell')}, {grid.state}",
                file=sys.stderr,
            )
        for run in list(found.values())[:NAMED]:
            same_name = namesakes(ledger, run) if run.name in runs else ""
            print(f"  {run.run_id} ({printable(run.name)}) {run.state}{same_name}", file=sys.stderr)
        if len(found) > NAMED:
            print(f"  and {len(found) - NAMED:,} more", file=sys.stderr)
        _confirm("remove them from the ledger?", yes=yes, again=command("rm --yes", *runs))
        with ledger.together():
            ledger.remove_runs(found)
            removed, stay = list(found), set[str]()
            for grid in sorted(grids, key=lambda grid: grid.created_at, reverse=True):  # who took runs over, then whose
                gone, left = ledger.remove_grid(grid.grid_id)
                removed += gone
                stay.update(left)
            stay.difference_update(removed)
            others = ledger.grids_with(stay)
    if as_json:
        print_json({"removed": removed, "stay": sorted(stay), "grids": [grid.grid_id for grid in grids]})
    else:
        print(f"removed {counted(len(removed), 'run')}", file=sys.stderr)
        if stay:
            print(f"{counted(len(stay), 'run stays', 'runs stay')}: {_why_they_stay(others)}", file=sys.stderr)
        if removed:
            print(
                "  next: cloudrun gc frees the files that no other run has, an hour after they were last used;"
                " cloudrun gc --older-than 0s at once",
                file=sys.stderr,
            )


def gc(
    *,
    older_than: Annotated[
        str,
        Parameter(
            allow_leading_hyphen=True,
            help="Only what nobody has touched for that long; 1h by default, 0s is all. Example: --older-than 7d",
        ),
    ] = "1h",
    dry_run: Annotated[bool, Parameter(help="Only say what would be freed. Example: cloudrun gc --dry-run")] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> int:
    """Free what nothing refers to: files of removed runs, transfers that nobody went
    on with, copies of logs that are home, what ended pools and sandboxes have
    left. Says what that is, and asks.

    Nothing that belongs to a run is touched, nor what a process may be writing:
    files are freed only while nobody brings any home, and while a machine of this
    ledger's is in use only those of an hour ago and more, whatever is asked for.
    Where something waits for that, it is said until when.

    Type, for example:
        cloudrun gc --dry-run
        cloudrun gc --older-than 0s --yes
    """
    try:
        alone_s = 0.0 if NOTHING_S.fullmatch(older_than.strip()) else duration_s(older_than)
    except ValueError as problem:
        raise UsageError(f"--older-than: {problem}", next_step="cloudrun gc --older-than 7d") from problem
    with closing(Ledger()) as ledger:
        found = [*garbage.find(ledger, alone_s=alone_s), *_of_sandboxes(alone_s)]
        for line in _summary(found):
            print(f"  {line}", file=sys.stderr)
        freed = garbage.Freed()
        if found and not dry_run:
            again = "" if alone_s == garbage.ALONE_S else f" --older-than {older_than.replace(' ', '')}"
            _confirm("free them?", yes=yes, again=f"cloudrun gc{again} --yes")
            freed = garbage.free(ledger, found, alone_s=alone_s, others=partial(_free_of_sandbox, alone_s=alone_s))
        later = garbage.waiting(ledger, alone_s=alone_s)
    if as_json:
        things = [{"kind": each.kind, "name": each.name, "size": each.size, "why": each.why} for each in found]
        problems = list(freed.problems)
        until = utc_text(datetime.fromtimestamp(later.until, UTC)) if later.count else None
        waits = {"count": later.count, "size": later.size, "until": until}
        document = {"dry_run": dry_run, "garbage": things, "freed_bytes": freed.size, "problems": problems}
        print_json({**document, "waiting": waits})
    elif not found:
        print("nothing to free now" if later.count else "nothing to free", file=sys.stderr)
    elif not dry_run:
        print(f"freed {size_text(freed.size)}", file=sys.stderr)
    if later.count and not as_json:
        print("\n".join(_what_waits(later, alone_s)), file=sys.stderr)
    for why in freed.problems:
        print(f"cloudrun: some of it stays: {printable(why)}\n  next: cloudrun gc, in a while", file=sys.stderr)
    return CloudrunError.exit_code if freed.problems else 0


def _why_they_stay(grids: list[str]) -> str:
    some = ", ".join(grids[:5]) + (", ..." if len(grids) > 5 else "")
    return f"made outside them, or of another grid too ({some})" if grids else "made outside them"


def _what_waits(later: Waiting, alone_s: float) -> list[str]:
    """What is free soon, from when on, and what to type for it."""
    until = when_text(datetime.fromtimestamp(math.ceil(later.until), UTC), seconds=True)
    waits = f"{size_text(later.size)} in {counted(later.count, 'thing waits', 'things wait')} until {until}"
    if later.clients and alone_s <= garbage.ALONE_S:
        return [
            f"{waits}: a process works with this ledger, and what was touched within the hour may be its",
            "  next: cloudrun gc --older-than 0s, when `cloudrun ps` shows nothing that a process looks after",
        ]
    if not alone_s:
        return [f"{waits}: code may be of a submission that has just begun", "  next: the same, in a minute"]
    touched = f"what was touched within {duration_text(alone_s)} may be of something that has just begun"
    return [f"{waits}: {touched}", "  next: cloudrun gc --older-than 0s frees it at once"]


def _of_sandboxes(alone_s: float) -> Iterator[Garbage]:
    before = time.time() - alone_s
    for folder, size in leftovers.find(lambda path: garbage.size_if_left_alone(path, before)):
        yield Garbage("sandbox", str(folder), size, "a machine of a sandbox that has ended")


def _free_of_sandbox(each: Garbage, *, alone_s: float) -> int:
    folder = Path(each.name)
    size = garbage.size_if_left_alone(folder, time.time() - alone_s)
    return size if size is not None and leftovers.free(folder) else 0


def _summary(found: list[Garbage]) -> list[str]:
    """A line for each kind, and one for all."""
    count, sizes = Counter[str](each.kind for each in found), Counter[str]()
    for each in found:
        sizes[each.kind] += each.size
    lines = [
        f"{size_text(sizes[kind]):>7}  {counted(count[kind], thing)} {which}"
        for kind, (thing, which) in KINDS.items()
        if count[kind]
    ]
    return [*lines, f"{size_text(sizes.total()):>7}  in all"] if len(lines) > 1 else lines


def _confirm(question: str, *, yes: bool, again: str) -> None:
    """Raises UsageError where nobody is there to be asked, CloudrunError where the answer is no."""
    if yes:
        return
    if not (sys.stdin.isatty() and is_terminal(sys.stderr)):
        raise UsageError("nobody is there to be asked", next_step=again)
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CloudrunError("nothing was done", next_step=again)
