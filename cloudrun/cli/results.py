"""`cloudrun results`: runs as tables, best first, sorted and filtered by whatever they have. It needs no network.

Runs of several scripts are never ranked against each other: each script has a ranking of its own, by its own score.
However many runs there are, a few are in memory at a time; unless the columns are named, they are read twice.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Annotated, Any

from cyclopts import Parameter

from cloudrun.cli.meant import say_grid
from cloudrun.cli.parser import Json
from cloudrun.cli.preferred import preferred
from cloudrun.cli.printing import columns, folded, print_json_list, printable
from cloudrun.cli.result_tables import COST, RANK, Columns, Table, print_csv
from cloudrun.core.errors import UsageError
from cloudrun.core.near import did_you_mean, instead
from cloudrun.core.states import RunState
from cloudrun.ledger import Ledger, Run
from cloudrun.ledger.names import FUNCTIONS
from cloudrun.ledger.results import Ordering
from cloudrun.plan.costs import AT_LIST_PRICES, mark
from cloudrun.plan.filters import (
    FIELDS,
    PER_USD,
    TIMINGS,
    Column,
    Comparison,
    all_columns,
    check_column,
    nonsense,
    parse_column,
)
from cloudrun.plan.filters import parse_where as parse_filter
from cloudrun.plan.quantities import counted
from cloudrun.plan.ranking import Preferred, chosen, direction_text
from cloudrun.plan.typed import quoted

LINES = 20  # of a table, unless more are asked for
TABLES = 5  # scripts that have one, unless one is asked for
NEWEST = 1000  # runs whose names are looked at first
SPECIAL = (RANK.name, PER_USD)  # columns that no run has by itself


def results(
    *,
    script: Annotated[
        str | None,
        Parameter(help="Only runs of that script; by default a table for each. Example: --script train.py"),
    ] = None,
    grid: Annotated[
        str | None,
        Parameter(help="Only the cells of that grid: its id, the beginning of it, or its name. Example: --grid sweep"),
    ] = None,
    metric: Annotated[
        str | None,
        Parameter(
            help="The score to rank by; by default the setting's, else that of the newest run. Example: --metric f1"
        ),
    ] = None,
    minimize: Annotated[
        bool | None,
        Parameter(
            negative="--maximize",
            help="Smallest first; by default as the settings say of their metric, else as each run says. "
            "Example: --minimize",
        ),
    ] = None,
    sort: Annotated[
        str | None,
        Parameter(
            help="Sort by a score, a parameter, a time (run_s) or a field (cost_usd); the ranks stay what they are."
            " score_per_usd ranks by the score for each dollar of cost_usd, where that is known (times the dollars"
            " where smaller is better). Example: --sort alpha"
        ),
    ] = None,
    reverse: Annotated[bool, Parameter(help="The other way round. Example: --sort run_s --reverse")] = False,
    where: Annotated[
        str | None,
        Parameter(
            help="Only runs for which these comparisons hold, joined by `and`: scores, parameters (a plain name is a"
            " score, else a parameter; scores.NAME and params.NAME say which), times, state and other fields; null is"
            " what a run does not have. Example: --where 'alpha<1 and state=succeeded'"
        ),
    ] = None,
    columns: Annotated[
        str | None,
        Parameter(help="What to show, with commas between. Example: --columns rank,run_id,alpha,accuracy,run_s"),
    ] = None,
    limit: Annotated[
        int | None,
        Parameter(
            help="How many runs of each script to list; 0 for all; by default 20, with --csv and --json all."
            " Example: --limit 100"
        ),
    ] = None,
    as_csv: Annotated[
        bool, Parameter(name="--csv", help="Comma-separated values with all digits. Example: --csv > runs.csv")
    ] = False,
    as_json: Json = False,
) -> None:
    """Rank the runs of this project, best first; runs without that score come after
    them, newest first. Each script has a ranking of its own, the one that ran
    last comes first.

    Type, for example:
        cloudrun results
        cloudrun results --script train.py --metric log_loss --minimize --limit 5
        cloudrun results --grid sweep --where 'alpha<1' --sort score_per_usd
        cloudrun results --json | jq '.runs[0].scores'
    """
    if limit is not None and limit < 0:
        raise UsageError(f"--limit {limit} is less than zero", next_step="cloudrun results --limit 20")
    if as_csv and as_json:
        raise UsageError("--csv and --json are two forms of the same", next_step="keep one of them")
    comparisons = () if where is None else parse_filter(where)
    named = None if columns is None else [parse_column(each) for each in _names(columns)]
    with closing(Ledger()) as ledger:
        grid_id = None if grid is None else _grid_id(ledger, grid)
        scripts = _scripts(ledger, grid_id, script)
        _check_names(ledger, grid_id, where or "", comparisons, named, sort, metric)
        scripts = _with_score(ledger, scripts, metric) if metric else scripts
        of_settings = preferred()
        look = partial(_looks, ledger, grid_id, scripts, of_settings, where=comparisons, metric=metric)
        look = partial(look, minimize=minimize, sort=sort, reverse=reverse)
        if as_json or as_csv:
            found = list(look(limit=limit or None))
            if as_json:
                _print_json(found)
            else:
                print_csv(
                    named or Columns.all([*look(limit=None)]), found
                )  # the columns of all, however few are listed
            return
        looks = look(limit=LINES if limit is None else limit or None)
        shown, unseen = list(islice(looks, TABLES)), [each.script for each in looks]
        if not shown:
            print(_nothing(ledger, grid, where), file=sys.stderr)
            return
        _print_tables(shown, named, unseen=unseen, other_metric=metric is None)
        if metric is None:
            _say_of_settings(ledger, of_settings)


@dataclass(frozen=True)
class Look:
    """The runs of one script (None: of a grid), in order; each time `runs` is called they are read again."""

    ledger: Ledger
    grid_id: str | None
    script: str | None
    order: Ordering
    where: tuple[Comparison, ...]
    asked: dict[str, Any]  # how `Ledger.results` is asked
    count: int

    def runs(self) -> Iterator[Run]:
        return self.ledger.results(self.grid_id, script=self.script, where=self.where, **self.asked)

    def ranked(self) -> Iterator[tuple[int | None, Run]]:
        """Each with its place in the ranking, however they are sorted."""
        if self.order.column is None and not self.order.per_usd and not self.asked["reverse"]:
            for place, run in enumerate(self.runs(), 1):  # the ranking itself, from its first on
                yield (place if run.state is RunState.SUCCEEDED and self.order.metric in run.scores else None), run
            return
        ranks = self.ledger.ranks(self.order, self.grid_id, script=self.script, where=self.where)
        for run in self.runs():
            yield ranks.get(run.run_id), run


def _looks(
    ledger: Ledger,
    grid_id: str | None,
    scripts: Sequence[str | None],
    of_settings: Preferred,
    *,
    where: tuple[Comparison, ...],
    metric: str | None,
    minimize: bool | None,
    sort: str | None,
    reverse: bool,
    limit: int | None,
) -> Iterator[Look]:
    """Those that have runs of that kind."""
    for script in scripts:
        if not (count := ledger.count(grid_id, script=script, where=where)):
            continue
        by: dict[str, Any] = {"metric": metric, "minimize": minimize, "sort": sort}
        order = ledger.ordering(grid_id, script=script, **by)
        is_by_score = sort is not None and not order.per_usd and order.column is None  # which ranks them, then
        has = partial(ledger.has_score, grid_id=grid_id, script=script)
        by["metric"], by["minimize"] = chosen(order.metric if is_by_score else metric, minimize, of_settings, has)
        order = ledger.ordering(grid_id, script=script, **by)
        yield Look(ledger, grid_id, script, order, where, {**by, "reverse": reverse, "limit": limit}, count)


def _grid_id(ledger: Ledger, wanted: str) -> str:
    """The grid that is meant; where others are called the same, that is said."""
    meant = ledger.grid(wanted)
    if meant.grid_id != wanted and meant.name == wanted and len(called := ledger.grids_called(wanted)) > 1:
        say_grid(wanted, called)
    return meant.grid_id


def _say_of_settings(ledger: Ledger, of_settings: Preferred) -> None:
    """On stderr: that no run has the score that the settings name, and the nearest."""
    metric = of_settings.metric
    if metric is None or ledger.has_score(metric):
        return
    known = ledger.names(limit=NEWEST).scores
    if known:
        meant = did_you_mean(metric, known)
        said = f"  {of_settings.where}: no run here has the score {printable(metric)!r}{meant}"
        print(folded(said, columns(sys.stderr)), file=sys.stderr)


def _scripts(ledger: Ledger, grid_id: str | None, wanted: str | None) -> list[str | None]:
    """Which scripts are looked at, each by itself; None is that of the grid."""
    if grid_id is not None and wanted is None:
        return [None]
    known = ledger.scripts()
    if wanted is None:
        return [*known]
    fitting = [each for each in known if wanted in (each, each.rpartition("/")[2], _what(each))]
    if not fitting:
        raise UsageError(
            f"no run here is of the script {wanted!r}{did_you_mean(wanted, known)}",
            next_step=f"--script is one of: {', '.join(map(_what, known))}" if known else "cloudrun submit train.py",
            instead=instead(wanted, known),
        )
    return [wanted] if wanted in fitting else [*fitting]


def _with_score(ledger: Ledger, scripts: Sequence[str | None], metric: str | None) -> list[str | None]:
    """Those that have what is asked for: where somebody names a score, a table without it is none of his."""
    having = [each for each in scripts if each is None or (metric and ledger.has_score(metric, script=each))]
    return having or [*scripts]


def _names(columns: str) -> list[str]:
    names = [name.strip() for name in columns.split(",")]
    if not all(names):
        raise UsageError(f"--columns {columns!r} has a name missing", next_step="write --columns run_id,alpha,accuracy")
    return names


def _check_names(
    ledger: Ledger,
    grid_id: str | None,
    where: str,
    comparisons: Sequence[Comparison],
    columns: Sequence[Column] | None,
    sort: str | None,
    metric: str | None,
) -> None:
    """Raises UsageError where something is asked for that no run has."""
    asked = [("--columns", column) for column in columns or ()]
    if sort is not None:
        asked.append(("--sort", parse_column(sort)))
    for most in (NEWEST, None):
        known = ledger.names(grid_id, limit=most)
        scores, params = known.scores, known.params
        if not known.runs:
            return
        try:
            for each in comparisons:
                if why := check_column(each.column, scores, params):
                    raise nonsense(where, each.at, why, f"compare one of: {all_columns(scores, params)}")
            for flag, column in asked:
                also = SPECIAL if flag == "--columns" else (PER_USD,)
                if why := check_column(column, scores, params, *also):
                    takes = all_columns(scores, params, *also)
                    meant = instead(column.name, [*scores, *params, *also, *FIELDS, *TIMINGS])
                    raise UsageError(f"{flag}: {why}", next_step=f"{flag} takes one of: {takes}", instead=meant)
            if metric is not None and (why := check_column(Column("score", metric), scores, params)):
                names = ", ".join(map(printable, scores)) or "none: the runs have no scores"
                meant = instead(metric, scores)
                raise UsageError(f"--metric: {why}", next_step=f"--metric is one of: {names}", instead=meant)
        except UsageError:
            if most is None or known.runs < most:
                raise
        else:
            return


def _what(script: str | None) -> str:
    return "functions" if script == FUNCTIONS else printable(script)


def _print_json(looks: Sequence[Look]) -> None:
    rankings = [
        {
            "script": each.script or (each.ledger.grid(each.grid_id).script if each.grid_id else None),
            "metric": each.order.metric,
            "minimize": each.order.minimize,
            "by": PER_USD if each.order.per_usd else each.order.metric,
            "runs": each.count,
        }
        for each in looks
    ]
    runs = ({"rank": rank, **run.to_dict()} for each in looks for rank, run in each.ranked())
    print_json_list("runs", runs, rankings=rankings)


def _print_tables(
    looks: Sequence[Look], named: list[Column] | None, *, unseen: Sequence[str | None], other_metric: bool
) -> None:
    """A table for each script that has a ranking, then one of all the others."""
    for place, each in enumerate(looks):
        seen = Columns.of(each)
        by = each.order
        if len(looks) > 1 or unseen:
            print(
                folded(f"{os.linesep if place else ''}{_what(each.script)}: {_by(each)}", columns(sys.stdout)),
                flush=True,
            )
        elif by.metric is not None and direction_text(by.metric, by.minimize):
            print(folded(_by(each), columns(sys.stdout)), flush=True)
        table = Table(each.order, named or seen.usual(each.order))
        left_out = table.print(each.ranked(), seen)
        _say_what_else(each, seen, table.columns, left_out, other_metric=other_metric)
    if unseen:
        names = ", ".join(_what(script) for script in unseen[:10]) + (", ..." if len(unseen) > 10 else "")
        print(f"  older: {names}; cloudrun results --script {quoted(_what(unseen[0]))}", file=sys.stderr)


def _by(look: Look) -> str:
    runs = counted(look.count, "run")
    if look.order.metric is None:
        return f"{runs}, none with a score"
    way = "smaller" if look.order.minimize else "larger"
    return f"{runs} by {_ranks(look.order)}, {way} is better"


def _ranks(order: Ordering) -> str:
    metric = printable(order.metric)
    return f"{PER_USD} of {metric}" if order.per_usd else metric


def _say_what_else(
    look: Look, seen: Columns, shown: Sequence[Column], left_out: Sequence[str], *, other_metric: bool
) -> None:
    """On stderr: what there is and is not in the table."""
    notes = []
    if look.count > seen.count:
        notes.append(f"{seen.count} of {counted(look.count, 'run')}; --limit 0 lists all")
    others = [name for name in seen.scores if name != look.order.metric]
    if other_metric and others and look.order.metric is not None:
        notes.append(
            f"ranked by {_ranks(look.order)}; other scores: {', '.join(map(printable, others[:5]))}"
            f"{', ...' if len(others) > 5 else ''} (--metric {quoted(others[0])})"
        )
    if seen.under_way:
        of_them = counted(seen.under_way, "of them is", "of them are")
        notes.append(f"{of_them} not over or not home; cloudrun ps asks the machines")
    if COST in shown:
        runs = look.ledger.results(look.grid_id, script=look.script, where=look.where, limit=1)
        provider = next((run.place.provider for run in runs if run.place), None)
        notes.append(f"cost_usd is a run's share {AT_LIST_PRICES}, without overhead{mark(provider)}")
    if left_out:
        notes.append(f"no room for {', '.join(map(printable, left_out))} (--columns)")
    for note in notes:
        print(folded(f"  {note}", columns(sys.stderr)), file=sys.stderr)


def _nothing(ledger: Ledger, grid: str | None, where: str | None) -> str:
    if where is not None and ledger.runs(limit=1):
        return f"no run is like that: {printable(where)}\n  next: cloudrun results"
    if grid is not None:
        return f"grid {grid} has no cells yet\n  next: cloudrun results"
    return f"no runs yet in {ledger.project}\n  next: cloudrun submit train.py"
