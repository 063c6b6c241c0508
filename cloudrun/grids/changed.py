"""Files that changed since cells ran which are taken from the ledger: they may have read them, and nobody knows."""

from __future__ import annotations

from collections.abc import Mapping

from cloudrun.ledger import Ledger

NAMED = 3  # of the files


def changed_since(ledger: Ledger, grid_id: str, now: Mapping[str, str]) -> tuple[list[str], int]:
    """Which files that travelled with succeeded cells of a grid are another now, or gone, and how many cells that
    concerns. `now`: digests by path, as `runs.prepared.beside` gives them."""
    changed: set[str] = set()
    cells = 0
    for before, count in ledger.beside_cells(grid_id):
        others = [path for path, digest in before.items() if now.get(path) != digest]
        changed.update(others)
        cells += count if others else 0
    return sorted(changed), cells


def warning(changed: list[str], cells: int) -> str:
    """What to say of that."""
    more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
    which = "1 of the cells taken" if cells == 1 else f"{cells} of the cells taken"
    return (
        f"{which} from the ledger ran before {', '.join(changed[:NAMED])}{more} changed: --again runs all of them with"
        " what there is now, and a file that is named by --data FILE makes cells others when it changes"
    )
