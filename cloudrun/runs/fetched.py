"""Models and other outputs that were fetched into the project, and would travel to every machine from then on.

A job would find them there, too: a checkpoint that was fetched is one that every later run goes on from.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path

from cloudrun.core.events import Note, Observer
from cloudrun.core.settings import MEGABYTE
from cloudrun.ledger import Ledger
from cloudrun.plan.quantities import size_text
from cloudrun.runs.project import Shipment, how_to_leave_out

BESIDE_FILES = 10_000  # of a larger project nothing is written down: some 500 kB for each state of its files
NO_INPUT = (".py", ".ipynb", ".md", ".rst", "LICENSE", "pyproject.toml", "cloudrun.toml", ".lock")
DIGITS = 16  # of a digest, where it is written down for each file of a project
LARGE = MEGABYTE  # worth a word also where nobody can tell whether a run was given it
NAMED = 3


def may_be_read(path: str) -> bool:
    """Whether a script may read it as data: not Python, nor what is written for people or for tools."""
    return not path.endswith(NO_INPUT) and "/." not in f"/{path}"


def say_fetched(goods: Shipment, ledger: Ledger, observe: Observer) -> None:
    """A warning, once for each content, of files that a run made and that are shipped. What a run was given and has
    copied to its outputs is no such file."""
    files = {each.sha256: each for each in goods.entries if each.size and may_be_read(each.path)}
    if len(files) > BESIDE_FILES:
        files = {sha256: each for sha256, each in files.items() if each.size >= LARGE}
    said = ledger.home / "cache" / "fetched.txt"
    new = files.keys() - _words(said) if files else set()
    given = cache(ledger.came_with)
    makers = ledger.makers(new) if new else {}
    made = {sha256: run_id for sha256, run_id in makers.items() if sha256[:DIGITS] not in given(run_id)}
    if not made:
        return
    found = [f"{files[sha256].path} ({size_text(files[sha256].size)}, of {run_id})" for sha256, run_id in made.items()]
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
