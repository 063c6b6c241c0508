"""Models and other outputs that were fetched into the project, and would travel to every machine from then on."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from cloudrun.core.events import Note, Observer
from cloudrun.core.settings import MEGABYTE
from cloudrun.ledger import Ledger
from cloudrun.plan.quantities import size_text
from cloudrun.runs.project import Shipment, how_to_leave_out

WORTH_A_WORD = MEGABYTE
NAMED = 3


def say_fetched(goods: Shipment, ledger: Ledger, observe: Observer) -> None:
    """A warning, once for each content, of large files that a run made and that are shipped."""
    large = {each.sha256: each for each in goods.entries if each.size >= WORTH_A_WORD}
    if not large:
        return
    said = ledger.home / "cache" / "fetched.txt"
    made = ledger.makers(large.keys() - _words(said))
    if not made:
        return
    found = [f"{large[sha256].path} ({size_text(large[sha256].size)}, of {run_id})" for sha256, run_id in made.items()]
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    are = "is" if len(found) == 1 else "are"
    otherwise = f"where the job does not need {'it' if len(found) == 1 else 'them'}, {how_to_leave_out(goods.root)}"
    observe(Note(f"{', '.join(found[:NAMED])}{more} {are} shipped: {otherwise}", "warning"))
    with suppress(OSError):  # it is said again then
        said.parent.mkdir(parents=True, exist_ok=True)
        with said.open("a", encoding="ascii") as file:
            file.writelines(f"{sha256}\n" for sha256 in made)


def _words(path: Path) -> set[str]:
    try:
        return set(path.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return set()
