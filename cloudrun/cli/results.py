"""`cloudrun results`, `show` and `get`: what the ledger holds. None of them needs the network."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cloudrun.cli.parser import Json, RunId
from cloudrun.cli.printing import assignments_text, print_json, print_table, printable, score_text, when_text
from cloudrun.cli.summary import full_lines
from cloudrun.core.errors import NotFound, UsageError
from cloudrun.core.records import Artifact, RunRecord
from cloudrun.plan.quantities import size_text

if TYPE_CHECKING:
    from cloudrun.ledger import Ledger, Run


def results(
    *,
    metric: Annotated[
        str | None, Parameter(help="The score to rank by; by default the newest run's first. Example: --metric f1")
    ] = None,
    minimize: Annotated[
        bool | None,
        Parameter(negative="--maximize", help="Smallest first; by default as each run says. Example: --minimize"),
    ] = None,
    limit: Annotated[int, Parameter(help="How many runs to list; 0 for all. Example: --limit 100")] = 20,
    as_json: Json = False,
) -> None:
    """Rank the runs of this project, best first; runs without that score come after them, newest first.

    Type, for example:
        cloudrun results
        cloudrun results --metric log_loss --minimize --limit 5
        cloudrun results --json | jq '.runs[0].scores'
    """
    from cloudrun.ledger import Ledger

    if limit < 0:
        raise UsageError(f"--limit {limit} is less than zero", next_step="cloudrun results --limit 20")
    with closing(Ledger()) as ledger:
        ranked, others = _ranked_and_others(ledger, metric, minimize, limit)
        if as_json:
            print_json({"runs": [run.to_dict() for run in [*ranked, *others]]})
            return
        if not ranked and not others:
            print(f"no runs yet in {ledger.project}\n  next: cloudrun submit train.py", file=sys.stderr)
            return
        shown = metric or _newest_metric(ledger) or "score"
        _print_results([run.record for run in ranked], [run.record for run in others], shown)


def _ranked_and_others(
    ledger: Ledger, metric: str | None, minimize: bool | None, limit: int
) -> tuple[list[Run], list[Run]]:
    """At most `limit` runs (0: all), those with a rank first."""
    ranked = ledger.ranking(metric, minimize=minimize, limit=limit or None)
    room = limit - len(ranked)
    if limit and room <= 0:
        return ranked, []
    with_rank = {run.run_id for run in ranked}
    newest = ledger.runs(limit=limit or None)
    others = [ledger.get(record.run_id) for record in newest if record.run_id not in with_rank]
    return ranked, others[:room] if limit else others


def _newest_metric(ledger: Ledger) -> str | None:
    return next((record.metric for record in ledger.runs(limit=20) if record.metric), None)


def _print_results(ranked: list[RunRecord], others: list[RunRecord], metric: str) -> None:
    rows = []
    for rank, run in [*enumerate(ranked, 1), *((None, run) for run in others)]:
        score = score_text(run.scores[metric]) if metric in run.scores else "-"
        params = assignments_text(run.params) or "-"
        rows.append([str(rank or "-"), run.run_id, run.name, str(run.state), score, params, when_text(run.created_at)])
    headers = ["rank", "run", "name", "state", metric, "params", "when"]
    print_table(headers, rows, right=("rank", metric))


def show(
    run: RunId,
    /,
    *,
    log: Annotated[bool, Parameter(help="The end of what it printed and of Ansible's log. Example: --log")] = False,
    lines: Annotated[int, Parameter(help="With --log, how many lines; 0 for all. Example: --lines 100")] = 20,
    as_json: Json = False,
) -> None:
    """Everything about one run: state, scores, parameters, time by phase, versions, files; or its logs.

    Type, for example:
        cloudrun show baseline
        cloudrun show baseline --log --lines 0
        cloudrun show baseline --json | jq .timings
    """
    from cloudrun.ledger import Ledger

    if lines < 0:
        raise UsageError(f"--lines {lines} is less than zero", next_step=f"cloudrun show {run} --log --lines 20")
    with closing(Ledger()) as ledger:
        found = ledger.get(ledger.run(run).run_id)
        logs = {path: _tail(ledger, found.record, path, lines) for path in _log_paths(found.record)} if log else {}
        if as_json:
            print_json({**found.to_dict(), **({"logs": logs} if log else {})})
        elif log:
            for path, text in logs.items():
                print(f"==> {path} <==\n{text}")
            if not logs:
                print("  this run has no logs yet", file=sys.stderr)
        else:
            print("\n".join(full_lines(found.record)))


def _log_paths(run: RunRecord) -> list[str]:
    return [artifact.path for artifact in run.artifacts if artifact.kind == "log"]


def _tail(ledger: Ledger, run: RunRecord, path: str, lines: int) -> str:
    """The log's last lines. A terminal's escape codes in it are made harmless where a terminal would obey them."""
    (digest,) = [artifact.sha256 for artifact in run.artifacts if artifact.kind == "log" and artifact.path == path][:1]
    text = ledger.artifacts.path(digest).read_bytes().decode("utf-8", "replace")
    kept = text.splitlines()[-lines:]
    return "\n".join(printable(line.expandtabs()) for line in kept) if sys.stdout.isatty() else "\n".join(kept)


def get(
    run: RunId,
    path: Annotated[str, Parameter(help="One of the run's files, as `show` lists them. Example: out/model.joblib")],
    dest: Annotated[
        Path | None, Parameter(help="A file or folder; by default the file's name here. Example: models/")
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
    from cloudrun.ledger import Ledger

    with closing(Ledger()) as ledger:
        record = ledger.run(run)
        artifact = _artifact(record, path)
        destination = _destination(artifact, dest, force=force, again=f"cloudrun get {run} {path}")
        ledger.artifacts.copy_out(artifact.sha256, destination)
        if as_json:
            print_json(
                {
                    "run_id": record.run_id,
                    "path": artifact.path,
                    "destination": str(destination.absolute()),
                    "size": artifact.size,
                    "sha256": artifact.sha256,
                }
            )
        else:
            print(destination)


def _artifact(run: RunRecord, wanted: str) -> Artifact:
    """By path, else by file name where only one has it. Raises NotFound naming near ones, UsageError for several."""
    from difflib import get_close_matches

    exact = [artifact for artifact in run.artifacts if artifact.path == wanted]
    named = [artifact for artifact in run.artifacts if artifact.path.rpartition("/")[2] == wanted]
    found = exact[:1] or named
    if len(found) == 1:
        return found[0]
    paths = [artifact.path for artifact in found or run.artifacts]
    if found:
        raise UsageError(
            f"{run.run_id} has several files named {wanted}: {', '.join(map(printable, paths))}",
            next_step=f"cloudrun get {run.run_id} {paths[0]}",
        )
    near = get_close_matches(wanted, paths, n=3) or paths[:3]
    has = f"; it has {', '.join(map(printable, near))}" if near else "; it has no files"
    raise NotFound(f"{run.run_id} has no file {printable(wanted)}{has}", next_step=f"cloudrun show {run.run_id}")


def _destination(artifact: Artifact, wanted: Path | None, *, force: bool, again: str) -> Path:
    """Where the copy goes. Raises UsageError where that is no place for it, or something else is there."""
    name = artifact.path.rpartition("/")[2]
    destination = (wanted or Path(name)).expanduser()
    if destination.is_dir() or str(wanted or "").endswith("/"):
        destination /= name
    if not destination.parent.is_dir():
        raise UsageError(
            f"there is no folder {destination.parent}", next_step=f"mkdir -p {destination.parent}, then type it again"
        )
    if destination.is_dir():
        raise UsageError(f"{destination} is a folder", next_step=f"{again} ANOTHER_NAME")
    if destination.exists() and not force:
        raise UsageError(
            f"{destination} is there already ({size_text(destination.stat().st_size)})",
            next_step=f"{again} ANOTHER_NAME, or add --force to replace it",
        )
    return destination
