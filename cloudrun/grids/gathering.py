"""What a grid's machines and buckets have, brought home by a client that goes again: one connection a machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from cloudrun.core import rundir
from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import CloudrunError, LedgerError
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import GridRecord, Instance, JobStatus, RunRecord, UnitOrders, UnitRecord
from cloudrun.core.states import EndReason, GridState, RunState, UnitState, is_terminal
from cloudrun.grids.cells import ON_UNITS, ends_of
from cloudrun.grids.inherited import cells_on_units
from cloudrun.grids.lost import GiveUp, recover
from cloudrun.grids.machines import names_of, units_of
from cloudrun.grids.rows import retries_of
from cloudrun.ledger import Ledger
from cloudrun.plan.endings import Ending
from cloudrun.plan.retrying import next_step
from cloudrun.runs import attaching, pulling, watching
from cloudrun.units import terminating
from cloudrun.units.clients import is_alive
from cloudrun.units.costs import settle
from cloudrun.units.leases import Attended, lease, present
from cloudrun.wiring import Cloud

if TYPE_CHECKING:
    from cloudrun.ssh.agent import Agent

VISITORS = 8  # machines at a time
CANCELLERS = 8  # jobs of one machine that are ended at a time: each may take its grace
CLOCK = SystemClock()

Act = Callable[[Cloud, "Agent", Sequence[RunRecord]], object]


@dataclass(frozen=True)
class Pulled:
    """A grid after what has ended came home. `problems`: why something could not be had, for people."""

    grid: GridRecord
    counts: Mapping[RunState, int]
    problems: tuple[str, ...]


def pull_grid(ledger: Ledger, reference: str, *, observe: Observer, profile: str | None = None) -> Pulled:
    """Bring home what has ended, end machines that nothing is left on, and queue again what lost ones had; what runs or
    waits on machines goes on there.

    Raises NotFound, Attended where a process goes on with the grid, LedgerError.
    """
    grid = ledger.grid(reference)
    attended = Attended(
        f"a process goes on with {grid.grid_id}, and brings its cells home",
        next_step=f"cloudrun results --grid {grid.grid_id} shows how far it is",
    )
    if is_alive(ledger.client(grid.client_id), CLOCK.now()):
        raise attended
    with present(ledger, CLOCK) as client_id:
        if not ledger.take_grid(grid.grid_id, client_id, of=grid.client_id):
            raise attended
        try:
            bring = partial(catch_up, ledger, observe=observe, requeue=True)
            problems = visit(ledger, grid.grid_id, bring, pulling.requeue_unseen, observe, profile)
            _end_where_done(ledger, grid.grid_id)
        finally:
            settle(ledger, names_of(ledger, grid.grid_id))
            ledger.take_grid(grid.grid_id, "", of=client_id)
    return Pulled(ledger.grid(grid.grid_id), ledger.counts(grid.grid_id), problems)


def end_grids_of(ledger: Ledger, run_id: str) -> None:
    """Where that run, which has been brought home by itself, was the last cell of a grid that no process has: that one
    is over, too."""
    for grid_id in ledger.grids_with([run_id]):
        if not is_alive(ledger.client(ledger.grid(grid_id).client_id), CLOCK.now()):
            with ledger.together():
                _end_where_done(ledger, grid_id)


def _end_where_done(ledger: Ledger, grid_id: str) -> None:
    grid, counts = ledger.grid(grid_id), ledger.counts(grid_id)
    over = sum(count for state, count in counts.items() if is_terminal(state))
    if over == grid.cells and grid.state in (GridState.OPEN, GridState.STOPPED) and not _is_tried_again(ledger, grid):
        if grid.state is GridState.STOPPED:
            ledger.reopen_grid(grid_id)
        ledger.end_grid(grid_id, GridState.DONE)


def _is_tried_again(ledger: Ledger, grid: GridRecord) -> bool:
    """Whether a cell has failed that `--retries` has another try for: by a client that launches machines."""
    after, retries = -1, retries_of(grid)
    while retries and (batch := ledger.cells(grid.grid_id, after=after, states=[RunState.FAILED])):
        for cell in batch:
            ends = ends_of(ledger, ledger.run(cell.run_id))
            if ends and next_step(ends, retries=retries) == "again":
                return True
        after = batch[-1].number
    return False


def end_cells(
    ledger: Ledger, grid_id: str, ending: Ending, *, grace_s: float, observe: Observer, profile: str | None = None
) -> None:
    """End every cell that is on a machine: what has ended comes home as what it is, what runs after its grace."""

    def give_up(ledger: Ledger, run: RunRecord, _why: str) -> None:
        pulling.homecoming(ledger, run, ledger.attempts(run.run_id)[-1], "", observe, CLOCK).end(ending)

    def end(cloud: Cloud, agent: Agent, runs: Sequence[RunRecord]) -> None:
        orders = agent.standing_orders() or UnitOrders(CLOCK.now().timestamp())
        agent.orders(replace(orders, slots=0))  # first: or what waits would take the place of what is ended
        catch_up(ledger, cloud, agent, runs, observe=observe)
        known = _known(agent)
        running = []
        with ledger.together():
            for run in _still_there(ledger, runs):
                status = known.get(_place(run))
                if status is None or status.state == "queued":
                    give_up(ledger, run, "")
                else:
                    running.append(run)
        with ThreadPoolExecutor(CANCELLERS, thread_name_prefix="cloudrun-cancel") as pool:
            pull = partial(pulling.pull_run, agent=agent, observe=observe, clock=CLOCK)
            list(pool.map(lambda run: pull(ledger, run, cancel_after_s=grace_s, forced=ending), running))

    _end_attended(ledger, grid_id, grace_s, observe, profile)
    visit(ledger, grid_id, end, give_up, observe, profile)


def _end_attended(ledger: Ledger, grid_id: str, grace_s: float, observe: Observer, profile: str | None) -> None:
    """Cells on machines that a living process has, a pool with other work say: they are ended, and it brings them
    home."""
    for name, cells in cells_on_units(grid_id, ledger).items():
        if not is_alive(ledger.client(ledger.unit(name).client_id), CLOCK.now()):
            continue
        for cell in cells:
            try:
                attaching.cancel(ledger, cell.run.run_id, grace_s=grace_s, observe=observe, profile=profile)
            except LedgerError:
                raise
            except CloudrunError as error:  # the others are tried all the same
                observe(Note(f"{cell.run.run_id}: {error}", "warning"))


def catch_up(
    ledger: Ledger,
    cloud: Cloud,
    agent: Agent,
    runs: Sequence[RunRecord],
    *,
    observe: Observer,
    requeue: bool = False,
) -> list[RunRecord]:
    """Bring home those of a unit's runs that have ended there. Returns those that it does not know of, since a client
    died over giving them to it; with `requeue` they wait for another unit."""
    missing = []
    known = _known(agent)
    for run in _still_there(ledger, runs):
        status = known.get(_place(run))
        if status is None:
            missing.append(run)
            if requeue:
                pulling.requeue_unseen(ledger, run, "its client died before its machine had it")
        elif status.state == "exited":
            pulling.pull_run(ledger, run, agent, observe, CLOCK, cancel_after_s=None)
            pulling.clear_stores(cloud, ledger, run.run_id, observe)
    return missing


def _known(agent: Agent) -> dict[str, JobStatus | None]:
    return {each.run_dir: each.status for each in agent.runs()}


def _place(run: RunRecord) -> str:
    return rundir.run_dir(run.run_id, run.attempts)


def _still_there(ledger: Ledger, runs: Sequence[RunRecord]) -> list[RunRecord]:
    """As they are now: a connection before this one may have come some way."""
    return [now for run in runs if (now := ledger.run(run.run_id)).state in ON_UNITS]


# -- from machine to machine -------------------------------------------------------------------------------------------


def visit(
    ledger: Ledger, grid_id: str, act: Act, give_up: GiveUp, observe: Observer, profile: str | None
) -> tuple[str, ...]:
    """Do something on each of a grid's machines, several at a time; `act` may be called again where a connection was
    lost. A machine that nothing is left on then is ended. `give_up` is for runs whose machine has gone and which have
    left nothing in a bucket. Returns what went wrong with which machine; raises LedgerError."""
    cells = cells_on_units(grid_id, ledger)
    units = {unit.instance_id: unit for unit in units_of(ledger, grid_id)}
    units |= {name: ledger.unit(name) for name in cells if name not in units}
    found = watching.described(list(units.values()), profile)

    def go(unit: UnitRecord) -> str:
        runs = [cell.run for cell in cells.get(unit.instance_id, [])]
        try:
            _visit(ledger, unit, runs, found[unit.place], act, give_up, observe)
        except LedgerError:
            raise
        except CloudrunError as error:
            observe(Note(f"{unit.instance_id}: {error}", "warning"))
            return f"{unit.instance_id}: {error}"
        return ""

    with ThreadPoolExecutor(VISITORS, thread_name_prefix="cloudrun-visit") as pool:
        return tuple(problem for problem in pool.map(go, units.values()) if problem)


def _visit(
    ledger: Ledger,
    unit: UnitRecord,
    runs: Sequence[RunRecord],
    found: watching.Found,
    act: Act,
    give_up: GiveUp,
    observe: Observer,
) -> None:
    if is_alive(ledger.client(unit.client_id), CLOCK.now()):
        raise Attended("another process looks after it", next_step="cloudrun ps")
    if isinstance(found, CloudrunError):
        raise found
    cloud, instance = found[0], found[1].get(unit.instance_id)
    if cloud is not None and instance is None:  # one empty answer proves nothing
        instance = cloud.instances.describe([unit.instance_id]).get(unit.instance_id)
    if cloud is None or instance is None or instance.state in ("shutting-down", "terminated"):
        recover(ledger, cloud, runs, _how_it_went(unit, instance), observe, give_up)
        if instance is None or instance.state == "terminated":
            _forget(cloud, ledger, unit)
        return
    if instance.state != "running":
        raise CloudrunError(f"it is {instance.state}", next_step="the same command, in a minute")
    with lease(ledger, unit, CLOCK) as held:
        try:
            pulling.despite_cuts(cloud, ledger, unit, observe, lambda agent: act(cloud, agent, runs))
        except BaseException:
            held.leave()
            raise
        pulling.end_unit(cloud, ledger, unit, held, observe, CLOCK)


def _how_it_went(unit: UnitRecord, instance: Instance | None) -> str:
    return f"{unit.instance_id} {watching.how_it_went(unit, instance)}"


def _forget(cloud: Cloud | None, ledger: Ledger, unit: UnitRecord) -> None:
    """The machine is gone: so says its row, and what its launch made goes with the launch's last one."""
    if unit.state is not UnitState.TERMINATED:
        terminating.move_on(ledger, unit.instance_id, UnitState.TERMINATED, EndReason.UNIT_LOST)
    if any(other.launch_id == unit.launch_id for other in ledger.units()):
        return
    if cloud is None:
        ledger.key_path(unit.launch_id).unlink(missing_ok=True)
    else:
        terminating.release_resources(cloud, ledger, unit.launch_id, timeout_s=pulling.TERMINATE_S, clock=CLOCK)
