"""Rent an EC2 machine for exactly as long as a training script needs it.

    from cloudrun import process_unit

    with process_unit() as unit:
        run = unit.send_run("train.py")

    from cloudrun import process_pool

    with process_pool(units=4) as pool:
        for run in pool.grid("train.py", {"alpha": [0.1, 1.0]}):
            print(run.scores)

What is imported from here is loaded when it is first used: `import cloudrun` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloudrun.core.errors import CloudrunError, JobFailed
    from cloudrun.functions.executor import process_pool
    from cloudrun.ledger import Ledger, Run
    from cloudrun.process import Unit, process_unit

__all__ = ["CloudrunError", "JobFailed", "Ledger", "Run", "Unit", "__version__", "process_pool", "process_unit"]

__version__ = "0.1.0"

_HOMES = {
    "CloudrunError": "cloudrun.core.errors",
    "JobFailed": "cloudrun.core.errors",
    "Ledger": "cloudrun.ledger",
    "Run": "cloudrun.ledger",
    "Unit": "cloudrun.process",
    "process_pool": "cloudrun.functions.executor",
    "process_unit": "cloudrun.process",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cloudrun' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
