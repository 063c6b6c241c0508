"""A run as its user holds it: what the ledger says of it, and the ways to its model, files and logs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from cloudrun.core.clock import utc_text
from cloudrun.core.errors import NotFound, UsageError
from cloudrun.core.near import nearest
from cloudrun.core.records import Artifact, RunRecord
from cloudrun.ledger.artifacts import ArtifactStore
from cloudrun.ledger.models import is_model, load_model
from cloudrun.plan.quantities import score_text


@dataclass(frozen=True, repr=False)
class Run(RunRecord):
    """A run as it was when it was asked for; all of `RunRecord`, and what it made."""

    store: ArtifactStore = field(kw_only=True, compare=False)

    @classmethod
    def of(cls, record: RunRecord, store: ArtifactStore) -> Run:
        return cls(**{each.name: getattr(record, each.name) for each in fields(RunRecord)}, store=store)

    @property
    def record(self) -> RunRecord:
        return RunRecord(**{each.name: getattr(self, each.name) for each in fields(RunRecord)})

    def __repr__(self) -> str:
        scores = "".join(f" {name}={score_text(value)}" for name, value in self.scores.items())
        return f"<Run {self.run_id} {self.name} {self.state}{scores}>"

    def _repr_html_(self) -> str:
        from cloudrun.plan.markup import run_html  # only in a notebook

        return run_html(self)

    def __hash__(self) -> int:
        return hash(self.run_id)

    def model(self, name: str | None = None, *, allow_version_mismatch: bool = False) -> Any:
        """Load the run's model with joblib: its only `*.joblib`, `*.pkl` or `*.pickle`, or the one that `name` names
        by path or file name. Unpickling runs code of the file's: load only what your own jobs made.

        The digest is checked first, then the passport, and only then is anything unpickled.

        Raises NotFound where there is none, UsageError where several fit, LedgerError where the file is damaged or
        does not load, PassportMismatch where python, numpy or scikit-learn differ in major.minor from those here and
        `allow_version_mismatch` is not set.
        """
        artifact = self.artifact(name) if name is not None else self._only_model()
        with self.store.open(artifact.sha256) as file:
            return load_model(file, artifact.path, self.passport, allow_version_mismatch=allow_version_mismatch)

    def artifact(self, name: str) -> Artifact:
        """One of its files by its whole path, else by its file name; outputs before logs.

        Raises NotFound, UsageError where several fit.
        """
        for kind in ("output", "log"):
            of_kind = [artifact for artifact in self.artifacts if artifact.kind == kind]
            exact = [artifact for artifact in of_kind if artifact.path == name]
            fitting = exact or [artifact for artifact in of_kind if Path(artifact.path).name == name]
            if len(fitting) > 1:
                raise _several(f"artifacts are called {name!r}", fitting)
            if fitting:
                return fitting[0]
        raise self._no_artifact(name)

    def path(self, artifact_path: str) -> Path:
        """Where the ledger keeps that artifact: to read only. Raises NotFound, UsageError where several fit."""
        return self.store.path(self.artifact(artifact_path).sha256)

    def log(self, stream: Literal["stdout", "stderr", "provision"] = "stdout") -> str:
        """What the job printed; bytes that are no UTF-8 as U+FFFD. Raises NotFound where it is not home."""
        for artifact in self.artifacts:
            if artifact.kind == "log" and artifact.path == f"{stream}.log":
                with self.store.open(artifact.sha256) as file:
                    return file.read().decode("utf-8", "replace")
        raise NotFound(f"run {self.run_id} has no {stream} log here (it is {self.state})", next_step=self._look())

    def save(self, artifact_path: str, destination: str | Path = ".") -> Path:
        """Copy an artifact out, whole or not at all, to a file or into a folder; returns the file.

        Raises NotFound, UsageError where several artifacts fit, LedgerError where the disk is full.
        """
        artifact = self.artifact(artifact_path)
        target = Path(destination).expanduser()
        if target.is_dir():
            target = target / Path(artifact.path).name
        self.store.copy_out(artifact.sha256, target)
        return target

    def to_dict(self) -> dict[str, Any]:
        """The run as JSON holds it, with what is not finite as "NaN", "Infinity" and "-Infinity"."""
        unit = None
        if self.instance_id is not None:
            region = self.place.region if self.place else None
            unit = {"instance_id": self.instance_id, "instance_type": self.instance_type, "region": region}
        passport = None
        if self.passport is not None:
            passport = {**vars(self.passport), "packages": dict(self.passport.packages)}
        document = {
            "run_id": self.run_id,
            "name": self.name,
            "script": self.script,
            "arguments": list(self.arguments),
            "state": str(self.state),
            "end_reason": None if self.end_reason is None else str(self.end_reason),
            "exit_code": self.exit_code,
            "detail": self.detail,
            "scores": dict(self.scores),
            "metric": self.metric,
            "minimize": self.minimize,
            "params": dict(self.params),
            "artifacts": [asdict(artifact) for artifact in self.artifacts],
            "unit": unit,
            "digests": {"code": self.code_digest, "data": self.data_digest, "environment": self.environment_digest},
            "passport": passport,
            "attempts": self.attempts,
            "created_at": utc_text(self.created_at),
            "ended_at": None if self.ended_at is None else utc_text(self.ended_at),
            "timings": asdict(self.timings),
            "usage": None if self.usage is None else asdict(self.usage),
            "cost_usd": self.cost_usd,
            "grid_id": self.grid_id,
        }
        return {name: finite(value) for name, value in document.items()}

    def _only_model(self) -> Artifact:
        models = [artifact for artifact in self.artifacts if artifact.kind == "output" and is_model(artifact.path)]
        if not models:
            raise NotFound(
                f"run {self.run_id} made no model: none of its outputs is a .joblib, .pkl or .pickle file",
                next_step="dump the model with joblib.dump(model, 'model.joblib') in the script",
            )
        if len(models) > 1:
            raise _several("models", models)
        return models[0]

    def _no_artifact(self, name: str) -> NotFound:
        paths = [artifact.path for artifact in self.artifacts]
        by_name = {path.rpartition("/")[2]: path for path in paths}  # who types a file's name may mistype that
        near = nearest(name, paths, 3) or [by_name[each] for each in nearest(name, by_name, 3)]
        hint = f"; near: {', '.join(near)}" if near else ""
        instead = (name, near[0]) if near else None
        return NotFound(f"run {self.run_id} has no artifact {name!r}{hint}", next_step=self._look(), instead=instead)

    def _look(self) -> str:
        return f"`cloudrun show {self.run_id}` lists what it has"


class Ranking(list[Run]):
    """Runs in their order, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        from cloudrun.plan.markup import ranking_html

        return ranking_html(self)


def _several(what: str, artifacts: list[Artifact]) -> UsageError:
    paths = ", ".join(artifact.path for artifact in artifacts[:10])
    more = f" and {len(artifacts) - 10} more" if len(artifacts) > 10 else ""
    return UsageError(f"several {what}: {paths}{more}", next_step="name one by its path")


def finite(value: Any) -> Any:
    """`value` without the numbers that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(name): finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value
