"""Why a run failed, in one line: what its script said last, or what was done to it."""

from __future__ import annotations

from cloudrun.core.errors import LedgerError
from cloudrun.core.records import RunRecord
from cloudrun.core.states import EndReason
from cloudrun.ledger import Ledger
from cloudrun.plan.retrying import last_line

STDERR_BYTES = 4096  # from the end of a log


def why_failed(ledger: Ledger, run: RunRecord) -> str:
    """The last line on stderr of a script that failed by itself, else the ledger's sentence. As the script wrote it:
    control characters are whoever prints it to mask."""
    said = _stderr(ledger, run) if run.end_reason is EndReason.EXITED else ""
    return last_line(said) or run.detail or ""


def _stderr(ledger: Ledger, run: RunRecord) -> str:
    for artifact in run.artifacts:
        if artifact.kind == "log" and artifact.path == "stderr.log":
            try:
                with ledger.artifacts.open(artifact.sha256) as file:
                    file.seek(max(0, artifact.size - STDERR_BYTES))
                    return file.read().decode(errors="replace")
            except LedgerError:  # damaged, or gone
                return ""
    return ""
