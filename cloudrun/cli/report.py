"""`cloudrun report`: one HTML file of what ran. It needs no network, and neither does who opens it."""

from __future__ import annotations

import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cloudrun.cli.meant import grid_meant, run_meant
from cloudrun.cli.parser import Json
from cloudrun.cli.preferred import preferred
from cloudrun.cli.printing import print_json
from cloudrun.core.errors import CloudrunError, UsageError
from cloudrun.core.marks import is_report
from cloudrun.ledger import Ledger
from cloudrun.plan.quantities import counted, size_text
from cloudrun.plan.typed import path_typed


def report(
    *runs: Annotated[
        str,
        Parameter(
            help="Only these runs, and all cells of these grids, by id, its beginning, or name; by default all. "
            "Example: g-0tr2egk1n7q38"
        ),
    ],
    output: Annotated[
        Path, Parameter(name=["--output", "-o"], help="The file to write. Example: -o monday.html")
    ] = Path("report.html"),
    metric: Annotated[
        str | None,
        Parameter(help="The score to rank by; by default the setting's, else the newest run's. Example: --metric f1"),
    ] = None,
    minimize: Annotated[
        bool | None,
        Parameter(
            negative="--maximize",
            help="Smallest is best; by default as the settings say of their metric, else as each run says. "
            "Example: --minimize",
        ),
    ] = None,
    open_it: Annotated[bool, Parameter(name="--open", help="Show it in the browser. Example: --open")] = False,
    force: Annotated[bool, Parameter(help="Replace a file that is no report. Example: --force")] = False,
    as_json: Json = False,
) -> None:
    """Make one HTML file of the runs: ranking, charts, the machines' time, and a
    page for each run with its log's end.

    The file needs nothing else: it opens offline, from a mail too. An older
    report of that name is replaced. Where it lies in the project it is not
    shipped with the next run.

    Type, for example:
        cloudrun report
        cloudrun report --metric log_loss -o monday.html --open
        cloudrun report baseline r-0s1dq4xk8m2vt
        cloudrun report g-0tr2egk1n7q38
    """
    from cloudrun.report import collect, render

    destination = _destination(output, force=force)
    with closing(Ledger()) as ledger:
        of_settings = preferred()
        meant = [grid_meant(ledger, each) or run_meant(ledger, each) for each in runs]
        data = collect(ledger, meant, metric=metric, minimize=minimize, preferred=of_settings)
        page = render(data).encode()
    _write(destination, page)
    if data.cut:
        print(f"  the newest {len(data.runs):,} runs alone are in it: no browser is quick with more", file=sys.stderr)
    if as_json:
        print_json({"path": str(destination), "size": len(page), "runs": len(data.runs), "metric": data.metric})
    else:
        print(destination)
        print(f"  {counted(len(data.runs), 'run')}, {size_text(len(page))}; open it in a browser", file=sys.stderr)
    if open_it:
        import webbrowser

        webbrowser.open(destination.as_uri())


def _destination(output: Path, *, force: bool) -> Path:
    """Where the report goes. Raises UsageError where that is no place for it, or something else is there."""
    path = output.expanduser().absolute()
    if path.is_dir():
        path /= "report.html"
    if not path.parent.is_dir():
        raise UsageError(
            f"there is no folder {path.parent}", next_step=f"mkdir -p {path_typed(path.parent)}, then type it again"
        )
    if path.exists() and not force and not is_report(path):
        raise UsageError(
            f"{path} is there already, and is no report",
            next_step="cloudrun report -o ANOTHER_NAME, or add --force to replace it",
        )
    return path


def _write(path: Path, page: bytes) -> None:
    """The whole file or nothing: who reads an older one meanwhile keeps it."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(page)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise CloudrunError(
            f"{path} cannot be written: {error.strerror or error}", next_step="cloudrun report -o ANOTHER_FOLDER/"
        ) from error
