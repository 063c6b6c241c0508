"""The local results ledger: an SQLite file and a content-addressed artifact store under the project's `.cloudrun/`.

`Ledger` and `Run` are loaded when they are first used: a shell that completes an id wants neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloudrun.ledger.run import Run
    from cloudrun.ledger.store import Ledger

__all__ = ["Ledger", "Run"]


def __getattr__(name: str) -> Any:
    if name == "Ledger":
        from cloudrun.ledger.store import Ledger

        globals()[name] = Ledger
        return Ledger
    if name == "Run":
        from cloudrun.ledger.run import Run

        globals()[name] = Run
        return Run
    raise AttributeError(f"module 'cloudrun.ledger' has no attribute {name!r}")
