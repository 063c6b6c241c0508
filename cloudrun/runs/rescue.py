"""The end of a unit that nobody needs: what its runs have written comes home first, as long as the unit answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloudrun.core.clock import Clock
from cloudrun.core.errors import CloudrunError, ConnectionLost, LedgerError, NotFound
from cloudrun.core.events import Note, Observer, nobody
from cloudrun.core.records import RunRecord, UnitRecord
from cloudrun.core.states import EndReason, RunState
from cloudrun.ledger import Ledger
from cloudrun.plan.endings import Ending
from cloudrun.runs.printed import logs_in
from cloudrun.runs.pulling import clear_stores, despite_cuts, homecoming, pull_run, pull_stored
from cloudrun.units import terminating
from cloudrun.units.connection import connected
from cloudrun.units.costs import settle
from cloudrun.units.leases import Attended, lease
from cloudrun.wiring import Cloud

if TYPE_CHECKING:
    from cloudrun.ssh.agent import Agent

NOBODY = Ending(RunState.FAILED, EndReason.CLIENT_LOST, "the client that started it is gone, so it was ended")
LOGIN_S = 20.0  # a unit that does not let us in within this is ended without its outputs
TERMINATE_S = 300.0


def end_unit(cloud: Cloud, ledger: Ledger, clock: Clock, observe: Observer, unit: UnitRecord) -> str:
    """Save what is on it and terminate it, unless somebody has come for it since; the problem in words, or ""."""
    try:
        with lease(ledger, unit, clock) as held:
            unsaved = _save_runs(cloud, ledger, clock, observe, unit)
            if unsaved:
                held.leave(to=unit.client_id, on_exit=unit.on_exit)
            elif held.holds():
                _terminate(cloud, ledger, clock, unit)
                settle(ledger, [unit.instance_id])
            return unsaved
    except Attended:
        observe(Note(f"{unit.instance_id}: another process has come for it: it is left to it"))
        return ""
    except NotFound:
        raise
    except LedgerError:  # one that cannot be written keeps no machine alive
        if unsaved := _save_runs(cloud, ledger, clock, observe, unit):
            return unsaved
        _terminate(cloud, ledger, clock, unit)
        return ""


def end_lost(ledger: Ledger, run: RunRecord, ending: Ending, clock: Clock) -> None:
    """Close a run that nobody can bring home any more, with what its client had seen of its logs."""
    attempt = ledger.attempts(run.run_id)[-1]
    home = homecoming(ledger, run, attempt, "", nobody, clock)
    home.end(ending, logs=logs_in(ledger.home / "runs" / f"{run.run_id}.{attempt.number}"))


def _terminate(cloud: Cloud, ledger: Ledger, clock: Clock, unit: UnitRecord) -> None:
    ids = [unit.instance_id]
    terminating.terminate(cloud, ledger, ids, reason=EndReason.CLIENT_LOST, timeout_s=TERMINATE_S, clock=clock)


def _save_runs(cloud: Cloud, ledger: Ledger, clock: Clock, observe: Observer, unit: UnitRecord) -> str:
    """Before a unit goes: what its runs have written comes home, as long as the unit answers.

    Returns why the unit must not go yet ("" where it may): outputs that are there and find no room at home.
    """
    runs = ledger.unfinished_runs(unit.instance_id)
    if not runs:
        return ""
    found = cloud.instances.describe([unit.instance_id]).get(unit.instance_id)
    for run in runs:
        try:
            if found is None or found.state != "running" or unit.address is None:
                raise CloudrunError("its unit does not run any more")
            _save(cloud, ledger, clock, observe, unit, run)
            clear_stores(cloud, ledger, run.run_id, observe)
        except LedgerError as error:
            if not isinstance(error, NotFound):
                return f"the outputs of {run.run_id} are still on it: {error}"
            end_lost(ledger, run, Ending(RunState.LOST, EndReason.CLIENT_LOST, str(error)), clock)
        except CloudrunError as error:
            if _came_by_bucket(cloud, ledger, run, observe, clock):
                continue
            observe(Note(f"{run.run_id}: nothing could be brought home: {error}", "warning"))
            end_lost(ledger, run, Ending(RunState.LOST, EndReason.CLIENT_LOST, str(error)), clock)
    return ""


def _save(cloud: Cloud, ledger: Ledger, clock: Clock, observe: Observer, unit: UnitRecord, run: RunRecord) -> None:
    """Over as many connections as it takes, as long as the first one was let in."""

    def bring(agent: Agent) -> None:
        pull_run(ledger, run, agent, observe, clock, forced=NOBODY)

    with connected(cloud, ledger, unit, observe, timeout_s=LOGIN_S) as connection:
        try:
            bring(connection.agent)
            return
        except ConnectionLost as error:
            observe(Note(f"{error}; connecting again", "warning"))
    despite_cuts(cloud, ledger, unit, observe, bring)


def _came_by_bucket(cloud: Cloud, ledger: Ledger, run: RunRecord, observe: Observer, clock: Clock) -> bool:
    try:
        if not pull_stored(cloud, ledger, run, ledger.attempts(run.run_id)[-1], observe, clock):
            return False
    except CloudrunError as error:
        observe(Note(f"{run.run_id}: its bucket could not be read: {error}", "warning"))
        return False
    clear_stores(cloud, ledger, run.run_id, observe)
    return True
