"""Launches, units and the clients that hold them: what was asked of EC2, what came of it, and who answers for it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime

from cloudrun.core.clock import utc_text, utc_time
from cloudrun.core.errors import LedgerError, NotFound
from cloudrun.core.near import did_you_mean, instead
from cloudrun.core.records import ClientRecord, LaunchRecord, MachineTimes, OnExit, UnitRecord
from cloudrun.core.states import LAUNCH, UNIT, EndReason, LaunchState, UnitState
from cloudrun.ledger.database import Database
from cloudrun.ledger.rows import (
    check_move,
    client_record,
    insert,
    launch_columns,
    launch_record,
    marks,
    text,
    unit_columns,
    unit_record,
)

FIRST_RUNS = 16  # of a machine: one of those that began at once has waited for the environment, and counted that
UNSETTLED = (LaunchState.INTENDED, LaunchState.REQUESTED, LaunchState.UNRESOLVED)
_UNITS = "SELECT units.*, provider, region, generation, ledger_id, ssh_jump FROM units JOIN launches USING (launch_id)"


class Fleet:
    """The part of the ledger that must never forget a machine. Every method is one transaction, durable on return.

    Lists hold only what this ledger launched itself: a copy does not see the original's units as its own.
    """

    _database: Database

    @property
    def ledger_id(self) -> str:
        """Whose units these are; the value of the tag on everything of ours."""
        with self._database.reading() as connection:
            return str(connection.execute("SELECT ledger_id FROM identity").fetchone()[0])

    # -- launches

    def intend(self, launch: LaunchRecord) -> None:
        """Write down a launch before anybody is asked for it. Raises LedgerError where that id is there already."""
        if launch.state is not LaunchState.INTENDED:
            raise LedgerError(f"a launch begins as intended, not {launch.state}")
        with self._database.writing() as connection:
            insert(connection, "launches", launch_columns(launch, self.ledger_id))

    def move_launch(self, launch_id: str, state: LaunchState, detail: str = "") -> None:
        """Raises LedgerError for a transition that `states.LAUNCH` does not have. RESOLVED is `resolve_launch`'s."""
        if state is LaunchState.RESOLVED:
            raise LedgerError("a launch is resolved together with its units")
        with self._database.writing() as connection:
            check_move(LAUNCH, f"launch {launch_id}", _launch(connection, launch_id).state, state)
            connection.execute(
                "UPDATE launches SET state = ?, detail = ? WHERE launch_id = ?", (str(state), text(detail), launch_id)
            )

    def resolve_launch(self, launch_id: str, units: Sequence[UnitRecord]) -> None:
        """The launch happened and these are its units, all at once. Again, with the same or more units, is fine."""
        with self._database.writing() as connection:
            before = _launch(connection, launch_id).state
            if before is not LaunchState.RESOLVED:
                check_move(LAUNCH, f"launch {launch_id}", before, LaunchState.RESOLVED)
                connection.execute(
                    "UPDATE launches SET state = ?, detail = '' WHERE launch_id = ?",
                    (str(LaunchState.RESOLVED), launch_id),
                )
            for unit in units:
                if unit.launch_id != launch_id:
                    raise LedgerError(f"unit {unit.instance_id} is of launch {unit.launch_id}, not {launch_id}")
                known = connection.execute("SELECT 1 FROM units WHERE instance_id = ?", [unit.instance_id]).fetchone()
                if not known:
                    insert(connection, "units", unit_columns(unit))

    def launch(self, launch_id: str) -> LaunchRecord:
        """Raises NotFound."""
        with self._database.reading() as connection:
            return _launch(connection, launch_id)

    def launches(self, *, unsettled: bool = False) -> list[LaunchRecord]:
        """This ledger's launches, oldest first; `unsettled` ones may have made units that nobody knows of."""
        states = UNSETTLED if unsettled else tuple(LaunchState)
        with self._database.reading() as connection:
            rows = connection.execute(
                f"""SELECT * FROM launches WHERE ledger_id = ? AND state IN ({marks(states)})
                ORDER BY created_at, launch_id""",  # noqa: S608  only marks
                (self.ledger_id, *map(str, states)),
            )
            return [launch_record(row) for row in rows]

    # -- units

    def move_unit(self, instance_id: str, state: UnitState, *, reason: EndReason | None = None) -> None:
        """Raises LedgerError for a transition that `states.UNIT` does not have. The first reason given is kept."""
        now = datetime.now(UTC)
        ended_at = utc_text(now) if state is UnitState.TERMINATED else None
        with self._database.writing() as connection:
            before = _unit(connection, instance_id)
            check_move(UNIT, f"unit {instance_id}", before.state, state)
            connection.execute(
                "UPDATE units SET state = ?, ended_at = ?, end_reason = coalesce(end_reason, ?) WHERE instance_id = ?",
                (str(state), ended_at, None if reason is None else str(reason), instance_id),
            )
            if state is UnitState.STOPPED or before.stopped_at is not None:  # while it is stopped it costs nothing
                since = now if state is UnitState.STOPPED else None
                more_s = (now - before.stopped_at).total_seconds() if before.stopped_at else 0.0
                connection.execute(
                    "UPDATE units SET stopped_at = ?, stopped_s = stopped_s + ? WHERE instance_id = ?",
                    (since and utc_text(since), max(0.0, more_s), instance_id),
                )

    def update_unit(
        self,
        instance_id: str,
        *,
        address: str | None = None,
        ssh_port: int | None = None,
        host_key: str | None = None,
        deadline: datetime | None = None,
        on_exit: OnExit | None = None,
        client_id: str | None = None,
    ) -> None:
        """Change what is given; None leaves as it is. Raises NotFound."""
        changes: dict[str, object] = {
            "address": address,
            "ssh_port": ssh_port,
            "host_key": host_key,
            "deadline": None if deadline is None else utc_text(deadline),
            "on_exit": on_exit,
            "client_id": client_id,
        }
        given = {name: value for name, value in changes.items() if value is not None}
        with self._database.writing() as connection:
            _unit(connection, instance_id)
            for name, value in given.items():
                connection.execute(f"UPDATE units SET {name} = ? WHERE instance_id = ?", (value, instance_id))  # noqa: S608

    def take_unit(self, instance_id: str, client_id: str, *, of: str, on_exit: OnExit) -> bool:
        """Put a unit into a client's hands, if it still is in those of client `of`; false where another was quicker."""
        with self._database.writing() as connection:
            taken = connection.execute(
                "UPDATE units SET client_id = ?, on_exit = ? WHERE instance_id = ? AND client_id = ?",
                (client_id, on_exit, instance_id, of),
            )
            return taken.rowcount == 1

    def unit(self, instance_id: str) -> UnitRecord:
        """Raises NotFound."""
        with self._database.reading() as connection:
            return _unit(connection, instance_id)

    def units(self, *, live: bool = True) -> list[UnitRecord]:
        """This ledger's units, oldest first; `live` are those that are not known to be terminated."""
        states = [state for state in UnitState if not (live and state is UnitState.TERMINATED)]
        with self._database.reading() as connection:
            rows = connection.execute(
                f"""{_UNITS} WHERE ledger_id = ? AND units.state IN ({marks(states)})
                ORDER BY units.created_at, instance_id""",
                (self.ledger_id, *map(str, states)),
            )
            return [unit_record(row) for row in rows]

    def machine_times(self, provider: str, region: str, limit: int = 20) -> list[MachineTimes]:
        """Of the newest machines there that have worked and are over."""
        with self._database.reading() as connection:
            units = connection.execute(
                """SELECT instance_id, units.created_at, ended_at FROM units JOIN launches USING (launch_id)
                WHERE provider = ? AND region = ? AND ended_at IS NOT NULL ORDER BY units.rowid DESC LIMIT ?""",
                (provider, region, limit),
            ).fetchall()
            found = [_times(connection, unit) for unit in units]
        return [times for times in found if times is not None]

    # -- clients

    def register_client(self, client: ClientRecord) -> None:
        """Write down a process that is about to act on units; again replaces what was known of it."""
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO clients (client_id, host, boot_id, pid, pid_started, heartbeat_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (
                    client.client_id,
                    client.host,
                    client.boot_id,
                    client.pid,
                    client.pid_started,
                    utc_text(client.heartbeat_at),
                ),
            )

    def beat(self, client_id: str, at: datetime) -> None:
        """The client was alive at that time. Raises NotFound."""
        with self._database.writing() as connection:
            beaten = connection.execute(
                "UPDATE clients SET heartbeat_at = max(heartbeat_at, ?) WHERE client_id = ?", (utc_text(at), client_id)
            )
            if not beaten.rowcount:
                raise NotFound(f"no client {client_id} in the ledger", next_step="register it first")

    def dismiss_client(self, client_id: str) -> None:
        """It acts on nothing any more, though its process may live on. One that is not there is fine."""
        with self._database.writing() as connection:
            connection.execute("DELETE FROM clients WHERE client_id = ?", [client_id])

    def clients(self) -> list[ClientRecord]:
        """Every process that may act on units: those that let go of all are not among them, those that died are."""
        with self._database.reading() as connection:
            return [client_record(row) for row in connection.execute("SELECT * FROM clients ORDER BY client_id")]

    def client(self, client_id: str) -> ClientRecord | None:
        with self._database.reading() as connection:
            row = connection.execute("SELECT * FROM clients WHERE client_id = ?", [client_id]).fetchone()
            return None if row is None else client_record(row)


def _launch(connection: sqlite3.Connection, launch_id: str) -> LaunchRecord:
    row = connection.execute("SELECT * FROM launches WHERE launch_id = ?", [launch_id]).fetchone()
    if row is None:
        raise NotFound(f"no launch {launch_id} in the ledger", next_step="`cloudrun units` lists what there is")
    return launch_record(row)


def _times(connection: sqlite3.Connection, unit: sqlite3.Row) -> MachineTimes | None:
    """None where it has not worked."""
    first = connection.execute(
        """SELECT started_at, environment_digest, json_extract(timings, '$.provision_s')
        FROM attempts JOIN runs USING (run_id) WHERE attempts.instance_id = ? ORDER BY started_at LIMIT ?""",
        (unit["instance_id"], FIRST_RUNS),
    ).fetchall()
    (done,) = connection.execute(
        "SELECT max(ended_at) FROM attempts WHERE instance_id = ?", [unit["instance_id"]]
    ).fetchone()
    if not first or done is None:
        return None
    began, environment = first[0][0], first[0][1]
    created, began, done, ended = map(utc_time, (unit["created_at"], began, done, unit["ended_at"]))
    return MachineTimes(
        max(0.0, (began - created).total_seconds()),
        max(row[2] or 0.0 for row in first),
        max(0.0, (ended - done).total_seconds()),
        environment,
    )


def _unit(connection: sqlite3.Connection, instance_id: str) -> UnitRecord:
    row = connection.execute(f"{_UNITS} WHERE instance_id = ?", [instance_id]).fetchone()
    if row is None:
        rows = connection.execute("SELECT instance_id FROM units ORDER BY instance_id DESC LIMIT 1000")
        known = [str(each[0]) for each in rows]
        raise NotFound(
            f"no unit {instance_id} in the ledger{did_you_mean(instance_id, known)}",
            next_step="`cloudrun units` lists what there is",
            instead=instead(instance_id, known),
        )
    return unit_record(row)
