"""Bringing a run home: outputs and logs into the store, scores and passport read from them, its end recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cloudrun.core.clock import Clock, SystemClock
from cloudrun.core.errors import ConnectionLost, LedgerError, ManifestRefused, TransferError
from cloudrun.core.events import Note, Observer, Progress, nobody
from cloudrun.core.outputs import Outputs
from cloudrun.core.records import Artifact, FileEntry, JobStatus, Passport, RunRecord, Usage
from cloudrun.core.settings import Settings
from cloudrun.core.states import EndReason, RunState
from cloudrun.ledger import Ledger
from cloudrun.ledger.models import is_model
from cloudrun.plan.endings import Ending, verdict
from cloudrun.plan.quantities import counted
from cloudrun.plan.ranking import better_is_smaller
from cloudrun.plan.scores import scores_from
from cloudrun.runs.printed import scores_tail
from cloudrun.units.phases import Phases, together

if TYPE_CHECKING:
    from cloudrun.ssh.agent import Finished, OnProgress, OpenSink


class Source(Protocol):
    """Where outputs come from: a unit's agent, or the bucket that it put them in."""

    def outputs(self, run_dir: str) -> Outputs: ...

    def fetch(
        self, run_dir: str, entries: Sequence[FileEntry], open_sink: OpenSink, on_progress: OnProgress | None = None
    ) -> None: ...

    def fetch_logs(self, run_dir: str, entries: Sequence[FileEntry], open_sink: OpenSink) -> None: ...


def earlier_log(number: int, name: str) -> str:
    """What the log `name` of an attempt that was interrupted is called among the artifacts of its run."""
    return f"attempt-{number}/{name}"


def logs_at_home(ledger: Ledger, run_id: str, number: int) -> set[str]:
    """Names of the logs of attempt `number` that are among the artifacts of its run. Raises NotFound, LedgerError."""
    run, attempts = ledger.run(run_id), ledger.attempts(run_id)
    saved = attempts[number - 1].outputs if number <= len(attempts) else ()
    logs = {each.path for each in (*run.artifacts, *saved) if each.kind == "log"}
    earlier = earlier_log(number, "")
    names = {path.removeprefix(earlier) for path in logs if path.startswith(earlier)}
    return names | logs if number == len(attempts) else names  # without a prefix they are the last attempt's


@dataclass(frozen=True)
class Homecoming:
    """Everything needed to end one attempt in the ledger; also used by a later client for an earlier one's run."""

    ledger: Ledger
    run: RunRecord
    place: str  # the run directory, relative to the login user's home
    phases: Phases
    observe: Observer
    clock: Clock
    max_bytes: int = Settings.output_max_bytes
    max_files: int = Settings.output_max_files
    number: int = 1
    earlier: tuple[Artifact, ...] = ()  # what the attempt before this one had saved

    def bring(
        self,
        source: Source,
        status: JobStatus,
        forced: Ending | None = None,
        logs: Mapping[str, Path] | None = None,
        finished: Finished | None = None,
    ) -> None:
        """Fetch and record; raises what those raise. `forced` overrides the exit code; `logs` as for `end`; `finished`
        is what came along with the job's last words."""
        self._count_run(status)
        with self.ledger.artifacts.in_use():  # what is here already is not fetched, and must be here at the end
            with self.phases.phase("pull"):
                outputs = self._fetch(source, finished)
            for path, why in outputs.left_out:
                self.observe(Note(f"{path!r} was not brought home: {why}", "warning"))
            self.end(forced or verdict(status, outputs.refused), status.exit_code, outputs, logs, status.usage)

    def requeue(
        self,
        source: Source | None,
        detail: str,
        status: JobStatus | None = None,
        logs: Mapping[str, Path] | None = None,
        finished: Finished | None = None,
        reason: EndReason = EndReason.INTERRUPTED,
    ) -> None:
        """Save what the job had written when its machine was taken back, and let a next attempt go on from there.

        What does not come any more is left as the attempt before it had it; with `source` None that is everything but
        the `logs`, which are as for `end`. Raises LedgerError.
        """
        with self.ledger.artifacts.in_use():
            self._requeue(source, detail, status, logs or {}, finished, reason)

    def _requeue(
        self,
        source: Source | None,
        detail: str,
        status: JobStatus | None,
        logs: Mapping[str, Path],
        finished: Finished | None,
        reason: EndReason,
    ) -> None:
        store = self.ledger.artifacts
        saved = {each.path: each for each in self.earlier}
        fetched: list[FileEntry] = []
        if status is not None:
            self._count_run(status)
        if source is not None:
            with self.phases.phase("pull"):
                try:
                    outputs = finished.outputs if finished and finished.outputs else source.outputs(self.place)
                    try:
                        self._fetch(source, finished, outputs)
                    except (ConnectionLost, TransferError) as error:
                        self.observe(Note(f"the machine went before all had come home: {error}", "warning"))
                    here = [entry for entry in outputs.entries if store.has(entry.sha256)]
                    saved |= {entry.path: Artifact(entry.path, entry.size, entry.sha256) for entry in here}
                    fetched = [log for log in outputs.logs if store.has(log.sha256)]
                except (ConnectionLost, TransferError) as error:
                    self.observe(Note(f"the machine went before anything had come home: {error}", "warning"))
        for log in self._stored(logs, fetched):
            path = earlier_log(self.number, log.path)
            saved[path] = Artifact(path, log.size, log.sha256, "log")
        self.ledger.set_timings(self.run.run_id, together(self.run.timings, self.phases.timings()))
        self.ledger.requeue_run(self.run.run_id, reason=reason, detail=detail, outputs=tuple(saved.values()))

    def _count_run(self, status: JobStatus) -> None:
        """How long a job ran that nobody here has watched, by its unit's clock."""
        if not self.phases.has("run") and status.started_at is not None and status.ended_at is not None:
            self.phases.count("run", max(0.0, status.ended_at - status.started_at))

    def _begin_pulling(self) -> None:
        state = self.ledger.run(self.run.run_id).state
        if state is RunState.SHIPPING:  # it has run: that could not be written down at the time
            self.ledger.move_run(self.run.run_id, RunState.RUNNING)
        if state is not RunState.PULLING:
            self.ledger.move_run(self.run.run_id, RunState.PULLING)

    def _fetch(self, source: Source, finished: Finished | None, outputs: Outputs | None = None) -> Outputs:
        store = self.ledger.artifacts
        outputs = outputs or (finished.outputs if finished and finished.outputs else source.outputs(self.place))
        self._check_caps(outputs)
        # By digest: what the ledger has, from this run or another, is not fetched again.
        missing = {entry.sha256: entry for entry in (*outputs.entries, *outputs.logs) if not store.has(entry.sha256)}
        of_logs = {id(log) for log in outputs.logs}
        with store.batch() as open_writer:
            for sha256, content in finished.small.items() if finished else ():
                if entry := missing.pop(sha256, None):
                    with open_writer(entry) as sink:
                        sink.write(content)
            files = [entry for entry in missing.values() if id(entry) not in of_logs]
            logs = [entry for entry in missing.values() if id(entry) in of_logs]
            if missing:
                self._begin_pulling()
            source.fetch(self.place, files, open_writer, self._progress)
            source.fetch_logs(self.place, logs, open_writer)
        return outputs

    def _check_caps(self, outputs: Outputs) -> None:
        """The unit keeps to the limits of its spec; one that does not is not believed."""
        total = sum(entry.size for entry in outputs.entries)
        if len(outputs.entries) > self.max_files or total > self.max_bytes:
            raise ManifestRefused(
                f"the unit lists {counted(len(outputs.entries), 'output')} of {counted(total, 'byte')}, over the limits"
            )

    def end(
        self,
        ending: Ending,
        exit_code: int | None = None,
        outputs: Outputs | None = None,
        logs: Mapping[str, Path] | None = None,
        usage: Usage | None = None,
    ) -> None:
        """Write the run's end. Called alone where nothing can be fetched: then `logs`, by name, are what was seen.

        Raises LedgerError.
        """
        with self.ledger.artifacts.in_use():
            self._end(ending, exit_code, outputs, logs or {}, usage)

    def _end(
        self,
        ending: Ending,
        exit_code: int | None,
        outputs: Outputs | None,
        logs: Mapping[str, Path],
        usage: Usage | None,
    ) -> None:
        entries = outputs.entries if outputs else ()
        kept = self._stored(logs, outputs.logs if outputs else ())
        scores = self._scores(entries, kept)
        metric = self.run.metric or next(iter(scores), None)
        if self.run.metric and self.run.metric not in scores and ending.state is RunState.SUCCEEDED:
            has = ", ".join(scores) or "none at all"
            self.observe(Note(f"the job gave no score named {metric!r} (it gave {has})", "warning"))
        self.ledger.finish_run(
            self.run.run_id,
            ending.state,
            reason=ending.reason,
            exit_code=exit_code,
            detail=ending.detail,
            scores=scores,
            metric=metric,
            minimize=self.run.minimize or (metric is not None and better_is_smaller(metric)),
            artifacts=[
                *(Artifact(entry.path, entry.size, entry.sha256) for entry in entries),
                *(Artifact(entry.path, entry.size, entry.sha256, "log") for entry in kept),
                *self._of_earlier_attempts(outputs),
            ],
            passport=self._passport(outputs),
            timings=together(self.run.timings, self.phases.timings()),
            at=self.clock.now(),
            usage=usage,
        )

    def _of_earlier_attempts(self, outputs: Outputs | None) -> list[Artifact]:
        """The logs of attempts that were interrupted; and where this one left nothing, what they had saved."""
        return [each for each in self.earlier if each.kind == "log" or outputs is None]

    def _stored(self, logs: Mapping[str, Path], fetched: Sequence[FileEntry]) -> list[FileEntry]:
        """Logs of the unit's, and of those kept on this computer the ones that the unit did not give."""
        entries = list(fetched)
        for name, path in logs.items():
            if name in {entry.path for entry in fetched}:
                continue
            try:
                stored = self.ledger.artifacts.add(path)
            except LedgerError as error:  # how a run ended is worth more than what was said on the way
                self.observe(Note(f"{name} stays at {path}: {error}", "warning"))
                continue
            entries.append(FileEntry(name, stored.size, stored.sha256))
        return entries

    def _scores(self, entries: Sequence[FileEntry], logs: Sequence[FileEntry]) -> dict[str, float]:
        store = self.ledger.artifacts
        files = [entry for entry in entries if entry.path.rpartition("/")[2] == "scores.json"]
        text = None
        if files:
            nearest = min(files, key=lambda entry: (entry.path.count("/"), entry.path))
            text = scores_tail(store.path(nearest.sha256))
        stdout = next((entry for entry in logs if entry.path == "stdout.log"), None)
        return scores_from(scores_tail(store.path(stdout.sha256)) if stdout else "", text)

    def _passport(self, outputs: Outputs | None) -> Passport | None:
        if outputs is None or not any(is_model(entry.path) for entry in outputs.entries):
            return None
        return Passport(
            outputs.python,
            dict(outputs.versions),
            outputs.platform,
            code_digest=self.run.code_digest,
            data_digest=self.run.data_digest,
            environment_digest=self.run.environment_digest,
        )

    def _progress(self, done_bytes: int, total_bytes: int) -> None:
        self.observe(Progress("pull", done_bytes, total_bytes))


def end_queued(ledger: Ledger, run_id: str, ending: Ending) -> None:
    """End a run that waits for an attempt that will not be; what its last one had saved is its outputs.

    Raises LedgerError.
    """
    clock, attempts = SystemClock(), ledger.attempts(run_id)
    earlier = attempts[-1].outputs if attempts else ()
    phases = Phases(nobody, clock)
    Homecoming(ledger, ledger.run(run_id), "", phases, nobody, clock, number=len(attempts), earlier=earlier).end(ending)
