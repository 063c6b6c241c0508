"""Runs into MLflow's tracking store, where mlflow is installed. Run again, it adds what is new, and each run once.

A script is an experiment, `PROJECT/SCRIPT`; a run of it keeps its name, its times and its state, with our id as the tag
`cloudrun.run_id`. Parameters are parameters; scores are metrics, and so are `cost_usd` and the times by phase
(`time.run_s`); digests, the machine and the grid are tags; outputs, logs and code are artifacts.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from cloudrun.core.errors import CloudrunError, UsageError
from cloudrun.core.records import RunRecord
from cloudrun.core.states import RunState, is_terminal
from cloudrun.exporting import export_run
from cloudrun.ledger import Ledger

ID_TAG, WHOLE_TAG = "cloudrun.run_id", "cloudrun.is_whole"  # the second one once all of a run is there
# Limits of MLflow's REST API ("Request Limits", "Log Batch") and of what its names may have
AT_ONCE = 100
LONGEST_PARAM = 6000
LONGEST_TAG = 5000
_NOT_IN_NAMES = re.compile(r"[^\w\-. /]")
_STATUS = {RunState.SUCCEEDED: "FINISHED", RunState.CANCELLED: "KILLED"}

T = TypeVar("T")


def export_to_mlflow(
    ledger: Ledger,
    runs: Iterable[RunRecord],
    uri: str | None = None,
    *,
    told: Callable[[RunRecord, bool], None] = lambda _run, _new: None,
) -> int:
    """Add those of `runs` that are over to the tracking store at `uri` (None: as MLflow itself finds it). Returns how
    many were new; `told` hears of each, and whether it was.

    Raises UsageError where mlflow is not installed, CloudrunError where the store does not take it.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise UsageError("mlflow is not installed here", next_step="pip install mlflow") from error
    new = 0
    try:
        client = MlflowClient(tracking_uri=uri)
        experiments: dict[str, str] = {}
        for run in runs:
            if not is_terminal(run.state):
                continue
            name = f"{ledger.project.name}/{run.script}"
            if name not in experiments:
                experiments[name] = _experiment(client, name)
            is_new = _export(client, experiments[name], ledger, run)
            new += is_new
            told(run, is_new)
    except (MlflowException, OSError) as error:
        raise CloudrunError(
            f"MLflow does not take it: {error}", next_step="check the address, then type it again: it goes on"
        ) from error
    return new


def _experiment(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found is not None else client.create_experiment(name))


def _export(client: Any, experiment_id: str, ledger: Ledger, run: RunRecord) -> bool:
    """Whether it was new. One that an interrupted export has left half done is made anew."""
    for there in client.search_runs([experiment_id], f"tags.`{ID_TAG}` = '{run.run_id}'"):
        if there.data.tags.get(WHOLE_TAG) == "true":
            return False
        client.delete_run(there.info.run_id)
    made = client.create_run(experiment_id, _ms(run.created_at), {ID_TAG: run.run_id}, run.name or run.run_id)
    mlflow_id = made.info.run_id
    for entries in batches(_params(run), AT_ONCE):
        client.log_batch(mlflow_id, params=entries)
    for metrics in batches(_metrics(run), AT_ONCE):
        client.log_batch(mlflow_id, metrics=metrics)
    for tags in batches(_tags(run), AT_ONCE):
        client.log_batch(mlflow_id, tags=tags)
    with tempfile.TemporaryDirectory(prefix="cloudrun-mlflow-") as folder:
        client.log_artifacts(mlflow_id, str(export_run(ledger, ledger.get(run.run_id), Path(folder) / "run")))
    client.set_terminated(mlflow_id, _STATUS.get(run.state, "FAILED"), _ms(run.ended_at or run.created_at))
    client.set_tag(mlflow_id, WHOLE_TAG, "true")
    return True


def _params(run: RunRecord) -> Iterator[Any]:
    from mlflow.entities import Param

    for name, value in run.params.items():
        text = value if isinstance(value, str) else json.dumps(value)
        yield Param(_name(name), text[:LONGEST_PARAM])


def _metrics(run: RunRecord) -> Iterator[Any]:
    """Numbers only: not every store takes a NaN, so those that are none are tags."""
    from mlflow.entities import Metric

    times = {f"time.{name}": seconds for name, seconds in asdict(run.timings).items() if seconds}
    cost = {"cost_usd": run.cost_usd} if run.cost_usd is not None else {}
    for name, value in {**run.scores, **times, **cost}.items():
        if math.isfinite(value):
            yield Metric(_name(name), float(value), _ms(run.ended_at or run.created_at), 0)


def _tags(run: RunRecord) -> Iterator[Any]:
    from mlflow.entities import RunTag

    tags = {
        "state": str(run.state),
        "end_reason": "" if run.end_reason is None else str(run.end_reason),
        "exit_code": "" if run.exit_code is None else str(run.exit_code),
        "detail": run.detail,
        "script": run.script,
        "arguments": " ".join(run.arguments),
        "grid_id": run.grid_id or "",
        "metric": run.metric or "",
        "instance_id": run.instance_id or "",
        "instance_type": run.instance_type or "",
        "place": f"{run.place.provider} {run.place.region}" if run.place else "",
        "code": run.code_digest,
        "data": run.data_digest,
        "environment": run.environment_digest,
        **{f"score.{name}": str(value) for name, value in run.scores.items() if not math.isfinite(value)},
    }
    for name, value in tags.items():
        if value:
            yield RunTag(f"cloudrun.{_name(name)}", value[:LONGEST_TAG])


def _name(name: str) -> str:
    """As MLflow takes it: letters, digits, _ - . / and spaces, and no path that leads out."""
    plain = _NOT_IN_NAMES.sub("_", name).strip("/ .") or "_"
    return "/".join(part.strip(".") or "_" for part in plain.split("/") if part)[:250]


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def batches(items: Iterable[T], size: int) -> Iterator[Sequence[T]]:
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
