"""`cloudrun export`: runs as plain files, or in MLflow's tracking store."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cloudrun.cli.meant import grid_meant, run_meant
from cloudrun.cli.parser import Json
from cloudrun.cli.printing import print_json, printable
from cloudrun.core.errors import UsageError
from cloudrun.core.records import RunRecord
from cloudrun.ledger import Ledger
from cloudrun.plan.filters import parse_where
from cloudrun.plan.quantities import counted


def export(
    *words: Annotated[
        str,
        Parameter(
            help="A run or a grid, and the folder to make. With --mlflow neither is needed: all runs by default, and an"
            " address in place of the folder. Example: baseline exported/"
        ),
    ],
    mlflow: Annotated[
        bool,
        Parameter(
            help="Into MLflow's tracking store, where MLFLOW_TRACKING_URI or the address says; once more adds what is"
            " new. Needs mlflow. Example: --mlflow http://localhost:5000"
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a run to a folder of plain files (parameters, scores, versions, code,
    outputs, logs), and of a grid each cell to a folder below that; or all runs,
    or those of a grid, to MLflow.

    Type, for example:
        cloudrun export baseline exported
        cloudrun export g-0tr2f4a95x9kx cells
        cloudrun export --mlflow
        cloudrun export g-0tr2f4a95x9kx --mlflow http://localhost:5000
    """
    with closing(Ledger()) as ledger:
        if mlflow:
            _to_mlflow(ledger, words, as_json=as_json)
        else:
            _to_folder(ledger, words, as_json=as_json)


def _to_folder(ledger: Ledger, words: tuple[str, ...], *, as_json: bool) -> None:
    from cloudrun.exporting import check_free, export_run

    if len(words) != 2:
        raise UsageError("export takes a run and a folder", next_step="cloudrun export RUN FOLDER")
    reference, folder = words[0], Path(words[1]).expanduser()
    made: list[Path] = []
    if grid_id := grid_meant(ledger, reference):
        if not folder.is_dir():
            check_free(folder)
            folder.mkdir()
        for run in _cells(ledger, grid_id):
            place = folder / run.run_id
            if not place.exists():  # by an export that was interrupted
                made.append(export_run(ledger, ledger.get(run.run_id), place))  # what it has made counts
    else:
        made.append(export_run(ledger, ledger.get(run_meant(ledger, reference)), folder))
    if as_json:
        print_json({"folders": [str(each.absolute()) for each in made]})
    else:
        print(folder)
        if len(made) != 1:
            print(f"  {counted(len(made), 'run')}, a folder for each", file=sys.stderr)


def _to_mlflow(ledger: Ledger, words: tuple[str, ...], *, as_json: bool) -> None:
    from cloudrun.tracking import export_to_mlflow

    os.environ.setdefault(
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"
    )  # its own 7 are minutes before a wrong address is said
    addresses = [word for word in words if _is_address(word)]
    references = [word for word in words if not _is_address(word)]
    if len(addresses) > 1 or len(references) > 1:
        raise UsageError(
            "--mlflow takes one run or grid at most, and one address",
            next_step="cloudrun export g-0tr2f4a95x9kx --mlflow http://localhost:5000",
        )
    seen: list[str] = []

    def told(run: RunRecord, is_new: bool) -> None:
        if is_new:
            seen.append(run.run_id)
            if not as_json:
                print(f"  {run.run_id} ({printable(run.name)}) {run.state}", file=sys.stderr)

    runs = _meant(ledger, references[0] if references else None)
    new = export_to_mlflow(ledger, runs, addresses[0] if addresses else None, told=told)
    if as_json:
        print_json({"exported": seen, "tracking_uri": addresses[0] if addresses else None})
    else:
        print(f"{counted(new, 'new run')} in MLflow", file=sys.stderr)


def _is_address(word: str) -> bool:
    """What names a tracking store, and no run or grid: a path or an address has a slash or a scheme."""
    return "/" in word or ":" in word or word == "databricks"


def _meant(ledger: Ledger, reference: str | None) -> Iterator[RunRecord]:
    if reference is None:
        return (run.record for run in ledger.results(sort="created_at", where=parse_where("ended_at!=null")))
    if grid_id := grid_meant(ledger, reference):
        return _cells(ledger, grid_id)
    return iter([ledger.run(run_meant(ledger, reference))])


def _cells(ledger: Ledger, grid_id: str) -> Iterator[RunRecord]:
    after = -1
    while cells := ledger.cells(grid_id, after=after):
        for cell in cells:
            yield ledger.run(cell.run_id)
        after = cells[-1].number
