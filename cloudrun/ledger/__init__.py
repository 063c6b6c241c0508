"""The local results ledger: an SQLite file and a content-addressed artifact store under the project's `.cloudrun/`."""

from __future__ import annotations

from cloudrun.ledger.run import Run
from cloudrun.ledger.steps import Claim, End, Move
from cloudrun.ledger.store import Ledger

__all__ = ["Claim", "End", "Ledger", "Move", "Run"]
