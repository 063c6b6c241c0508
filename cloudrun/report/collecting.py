"""What a report is about, taken out of the ledger."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cloudrun.core.errors import UsageError
from cloudrun.core.near import did_you_mean, instead
from cloudrun.core.records import AttemptRecord, RunRecord, UnitRecord
from cloudrun.core.states import RunState
from cloudrun.ledger import Ledger
from cloudrun.plan.costs import Bill
from cloudrun.plan.ranking import NOTHING_PREFERRED, Preferred, better_is_smaller, chosen, rank_key
from cloudrun.report.tails import log_tails
from cloudrun.units.costs import bill

MAX_RUNS = 50_000  # more make a page that no browser is quick with


@dataclass(frozen=True)
class Data:
    """A report's contents, as records. `attempts` are all those on `units`, of other runs too: a machine that works
    for another run is not idle.
    """

    title: str
    made_at: datetime
    runs: Sequence[RunRecord]
    attempts: Sequence[AttemptRecord] = ()
    units: Sequence[UnitRecord] = ()
    metric: str | None = None  # the score that ranks
    minimize: Mapping[str, bool] = field(default_factory=dict)  # for each score whether smaller is better
    tails: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by run, then "stdout" and "stderr"
    cut: bool = False  # older runs were left out: there was no room
    bill: Bill | None = None  # of all `units`


def collect(
    ledger: Ledger,
    references: Sequence[str] = (),
    *,
    metric: str | None = None,
    minimize: bool | None = None,
    preferred: Preferred = NOTHING_PREFERRED,
    max_runs: int = MAX_RUNS,
) -> Data:
    """Those runs (a grid's id is all of its cells), or the newest; without a `metric` the one that is `preferred` ranks
    where they have it, else the newest primary score.

    Raises UsageError where there is no run, or none has that score; NotFound for a reference to nothing.
    """
    if references:
        chosen = {run.run_id: run for reference in references for run in _meant(ledger, reference)}
        runs = sorted(chosen.values(), key=lambda run: (run.created_at, run.run_id), reverse=True)
        of_them = ledger.attempts_of(chosen)
        unit_ids = {attempt.instance_id for attempt in of_them}
        units = [unit for unit in ledger.units(live=False) if unit.instance_id in unit_ids]
    else:
        runs = ledger.runs(limit=max_runs + 1)
        units = ledger.units(live=False)
    if not runs:
        raise UsageError(f"no runs yet in {ledger.project}", next_step="cloudrun submit train.py")
    cut = len(runs) > max_runs
    runs = runs[:max_runs]
    metric, directions = _metric(runs, metric, minimize, preferred)
    return Data(
        title=ledger.project.name,
        made_at=datetime.now(UTC),
        runs=runs,
        attempts=ledger.attempts_on([unit.instance_id for unit in units]),
        units=units,
        metric=metric,
        minimize=directions,
        tails=log_tails(ledger.artifacts, _most_wanted(runs, metric, directions)),
        cut=cut,
        bill=bill(ledger, units),
    )


def _meant(ledger: Ledger, reference: str) -> Iterator[RunRecord]:
    """The runs of a grid that has this id, else the run that is called so."""
    if not reference.startswith("g-"):
        yield ledger.run(reference)
        return
    grid_id, after = ledger.grid(reference).grid_id, -1
    while cells := ledger.cells(grid_id, after=after):
        yield from (ledger.run(cell.run_id) for cell in cells)
        after = cells[-1].number


def _metric(
    newest_first: Sequence[RunRecord], metric: str | None, minimize: bool | None, preferred: Preferred
) -> tuple[str | None, dict[str, bool]]:
    """The score that ranks, and which way each score is better: as its newest run says, else as its name says."""
    succeeded = [run for run in newest_first if run.state is RunState.SUCCEEDED]
    names = list(dict.fromkeys(name for run in succeeded for name in run.scores))
    metric, minimize = chosen(metric, minimize, preferred, names.__contains__)
    if metric is None:
        metric = next((run.metric for run in succeeded if run.metric in run.scores), names[0] if names else None)
    elif metric not in names:
        known = f"there are {', '.join(names[:10])}" if names else "they have no scores at all"
        raise UsageError(
            f"none of the succeeded runs has a score {metric!r}{did_you_mean(metric, names) or f': {known}'}",
            next_step="leave out --metric, or name one that is there",
            instead=instead(metric, names),
        )
    directions = {name: better_is_smaller(name) for name in names}
    for run in reversed(succeeded):
        if run.metric in directions:
            directions[run.metric] = run.minimize
    if preferred.metric in directions and preferred.minimize is not None:
        directions[preferred.metric] = preferred.minimize
    if metric is not None and minimize is not None:
        directions[metric] = minimize
    return metric, directions


def _most_wanted(runs: Sequence[RunRecord], metric: str | None, directions: Mapping[str, bool]) -> Sequence[RunRecord]:
    """In the order in which somebody will want to read their logs: what failed, then the best, then the rest."""

    minimize = directions.get(metric or "", False)

    def key(run: RunRecord) -> tuple[bool, float, str]:
        return rank_key(run.scores.get(metric or "", math.nan), run.run_id, minimize=minimize)

    failed = [run for run in runs if run.state is not RunState.SUCCEEDED]
    return [*failed, *sorted((run for run in runs if run.state is RunState.SUCCEEDED), key=key)]
