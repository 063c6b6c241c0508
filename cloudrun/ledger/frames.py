"""Runs as a table of pandas', where that is installed: a row for each, a column for each parameter and score."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cloudrun.core.errors import UsageError
from cloudrun.core.records import RunRecord

if TYPE_CHECKING:
    import pandas as pd

FACTS = (
    *("name", "script", "state", "end_reason", "exit_code", "metric"),
    *("created_at", "ended_at", "grid_id", "attempts"),
)
NAMED = ("params.", "scores.")


def frame_of(runs: Iterable[RunRecord]) -> pd.DataFrame:
    """See `Ledger.to_pandas`. Raises UsageError where pandas is not installed."""
    try:
        import pandas as pd
    except ImportError as error:
        raise UsageError("pandas is not installed here", next_step="pip install pandas") from error
    rows = [_row(run) for run in runs]
    met = dict.fromkeys(name for row in rows for name in row)  # in the order in which they were met
    named = [name for kind in NAMED for name in met if name.startswith(kind)]
    others = [name for name in met if not name.startswith(NAMED) and name not in ("run_id", *FACTS)]
    frame = pd.DataFrame(rows, columns=["run_id", *FACTS, *named, *others]).set_index("run_id")
    for name in ("created_at", "ended_at"):
        frame[name] = pd.to_datetime(frame[name], utc=True)
    return frame


def _row(run: RunRecord) -> dict[str, Any]:
    facts = {name: getattr(run, name) for name in FACTS}
    words = {name: None if facts[name] is None else str(facts[name]) for name in ("state", "end_reason")}
    return {
        "run_id": run.run_id,
        **facts,
        **words,
        **{f"params.{name}": value for name, value in run.params.items()},
        **{f"scores.{name}": value for name, value in run.scores.items()},
        "instance_id": run.instance_id,
        "instance_type": run.instance_type,
        "region": run.place.region if run.place else None,
        **asdict(run.timings),
        "cost_usd": run.cost_usd,
    }
