"""The local results ledger: an SQLite file and a content-addressed artifact store under the project's `.cloudrun/`.

What is imported from here is loaded when it is first used: a shell that completes an id wants none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloudrun.ledger.run import Run
    from cloudrun.ledger.steps import Claim, End, Move
    from cloudrun.ledger.store import Ledger

__all__ = ["Claim", "End", "Ledger", "Move", "Run"]

_HOMES = {"Claim": "steps", "End": "steps", "Ledger": "store", "Move": "steps", "Run": "run"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cloudrun.ledger' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"cloudrun.ledger.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
