"""Who a ledger is. A copied `.cloudrun/` takes a new id, so that it never ends what the original started; a moved one
keeps its own.
"""

from __future__ import annotations

import platform
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cloudrun.core.clock import utc_text
from cloudrun.core.ids import new_id
from cloudrun.core.states import TERMINAL, GridState, RunState
from cloudrun.ledger.database import atomic
from cloudrun.ledger.home import DATABASE


@dataclass(frozen=True)
class Whereabouts:
    path: str
    directory: str  # "device:inode"
    machine: str

    @classmethod
    def of(cls, home: Path) -> Whereabouts:
        status = home.stat()
        return cls(str(home), f"{status.st_dev}:{status.st_ino}", _machine())


def settle(connection: sqlite3.Connection, home: Path) -> str:
    """The ledger's id: a fresh one for a new ledger or for a copy, else the one it has. Remembers where it is now."""
    here = Whereabouts.of(home)
    row = connection.execute("SELECT ledger_id, path, directory, machine FROM identity").fetchone()
    if row and Whereabouts(row["path"], row["directory"], row["machine"]) == here:
        return str(row["ledger_id"])
    with atomic(connection):
        return _settle_anew(connection, here)


def _settle_anew(connection: sqlite3.Connection, here: Whereabouts) -> str:
    row = connection.execute("SELECT ledger_id, path, directory, machine FROM identity").fetchone()
    if row is None:
        ledger_id = new_id("ledger")
    else:
        ledger_id = str(row["ledger_id"])
        before = Whereabouts(row["path"], row["directory"], row["machine"])
        if _is_copy(ledger_id, before, here):
            ledger_id = new_id("ledger")
            _leave_to_the_original(connection, before)
    connection.execute(
        "INSERT OR REPLACE INTO identity VALUES (1, ?, ?, ?, ?)", (ledger_id, here.path, here.directory, here.machine)
    )
    return ledger_id


def _is_copy(ledger_id: str, before: Whereabouts, here: Whereabouts) -> bool:
    if before.directory == here.directory:
        return False  # the very same folder: renamed, or mounted somewhere else
    if before.machine != here.machine:
        return True  # from another computer, where nobody can look whether the original is still there
    return before.path != here.path and _has_ledger(Path(before.path), ledger_id)


def _has_ledger(home: Path, ledger_id: str) -> bool:
    """Whether that folder's ledger has this id. One that is there and cannot be read is taken to have it."""
    database = home / DATABASE
    if not database.exists():
        return False
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            row = connection.execute("SELECT ledger_id FROM identity").fetchone()
    except sqlite3.Error:
        return True
    return row is not None and row[0] == ledger_id


def _leave_to_the_original(connection: sqlite3.Connection, original: Whereabouts) -> None:
    """Units and launches carry the old id and are no longer ours; runs that were under way go on over there."""
    detail = f"copied while it was under way; it goes on in the ledger {original.path}"
    lost = (str(RunState.LOST), utc_text(datetime.now(UTC)), detail)
    terminal = sorted(state for state in TERMINAL if isinstance(state, RunState))
    marks = ", ".join("?" for _ in terminal)
    connection.execute("UPDATE attempts SET state = ?, ended_at = ?, detail = ? WHERE ended_at IS NULL", lost)
    connection.execute(
        f"UPDATE runs SET state = ?, ended_at = ?, detail = ? WHERE state NOT IN ({marks})",  # noqa: S608  only marks
        (*lost, *map(str, terminal)),
    )
    connection.execute(
        "UPDATE grids SET state = ?, ended_at = ?, client_id = '', detail = ? WHERE state = ?",
        (str(GridState.STOPPED), *lost[1:], str(GridState.OPEN)),
    )


def _machine() -> str:
    """This computer's lasting name: systemd's machine id, else (macOS, some containers) the host name."""
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip() or platform.node()
    except (OSError, ValueError):
        return platform.node()
