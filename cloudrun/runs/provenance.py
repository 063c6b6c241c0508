"""Keeping what a run is made of, so that two runs can be compared when the project has long gone on."""

from __future__ import annotations

from contextlib import suppress

from cloudrun.ledger import Ledger
from cloudrun.plan.fingerprint import code_digest
from cloudrun.runs.prepared import Prepared


def keep(plan: Prepared, ledger: Ledger) -> None:
    """Its environment, and the text of its script and the modules of the project that this imports.

    Raises LedgerError. Files that have changed since the plan was made are another run's.
    """
    ledger.keep_environment(plan.environment)
    with ledger.artifacts.in_use():
        if ledger.has_code(plan.code_digest):
            return
        with suppress(OSError):
            files = {path: (plan.shipment.root / path).read_bytes() for path in plan.code}
            if code_digest(files) == plan.code_digest:
                ledger.keep_code(plan.code_digest, files)
