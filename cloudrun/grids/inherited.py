"""What dead clients have left of a grid: machines to go on with, the cells on them, and what was spent already."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

from cloudrun import reaper, wiring
from cloudrun.core.clock import SystemClock
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import Image, Instance, LaunchRecord, OnExit, UnitRecord
from cloudrun.core.settings import Settings
from cloudrun.core.states import UnitState
from cloudrun.grids.cells import ON_UNITS, Cell, Tally
from cloudrun.grids.lost import recover
from cloudrun.grids.machines import launches_of
from cloudrun.ledger import Ledger
from cloudrun.plan import budget
from cloudrun.pools.work import Joined
from cloudrun.prices import usd_per_hour
from cloudrun.units.clients import is_alive
from cloudrun.wiring import Cloud

BATCH = 1000


def inherit(
    grid_id: str,
    cloud: Cloud,
    ledger: Ledger,
    settings: Settings,
    image: Image,
    tally: Tally,
    client_id: str,
    observe: Observer,
    came_home: Callable[[Cell], None] = lambda _: None,
) -> Joined:
    """Take over what lives; what ran where nothing lives any more comes home from its bucket, as `came_home`
    is told, or is queued again. A unit that was left to its queue still is, should this process die.

    What another living process has at the moment (`cloudrun attach` to a cell) is left to it, and so are machines in
    another place than `cloud`'s: their cells count as `elsewhere`.
    """
    now = SystemClock().now()
    cells = cells_on_units(grid_id, ledger)
    launches = launches_of(ledger, grid_id)
    of_pools = {*cells, *_of_dead_pools(grid_id, ledger, now, launches)}  # which had more to do than this grid
    if not launches and not of_pools:
        return Joined()

    def lost(gone: list[Cell], name: str, how: str = "went away while nobody looked") -> None:
        by_run = {cell.run.run_id: cell for cell in gone}
        for run in recover(ledger, cloud, [cell.run for cell in gone], f"{name} {how}", observe):
            came_home(replace(by_run[run.run_id], run=run))

    units = {
        unit.instance_id: unit
        for unit in ledger.units(live=False)
        if unit.launch_id in launches or unit.instance_id in of_pools
    }
    launches |= {unit.launch_id: ledger.launch(unit.launch_id) for unit in units.values()}
    alive = {name: unit for name, unit in units.items() if unit.state is not UnitState.TERMINATED}
    here = [name for name, unit in alive.items() if unit.place == cloud.place]
    found = cloud.instances.describe(here) if here else {}

    joined: list[tuple[UnitRecord, float, tuple[Cell, ...]]] = []
    ending: list[str] = []
    spent_usd = 0.0
    for name, unit in units.items():
        on_it = cells.pop(name, [])
        price = _price(unit)
        if name not in alive:
            spent_usd += budget.cost_usd(price, ((unit.ended_at or now) - unit.created_at).total_seconds())
            lost(on_it, name)
        elif unit.place != cloud.place and wiring.reconnect(unit.place, settings.profile) is None:
            lost(on_it, name, "went away with its sandbox")
            reaper.forget(ledger, unit)
        elif not _taken(unit, cloud, ledger, client_id, settings, now):
            spent_usd += budget.worst_usd(now.timestamp(), [Held(unit, price)], 0.0)
            tally.elsewhere += len(on_it)
            observe(Note(f"{name} is not this process's to use: what is on it is left alone", "warning"))
        elif _is_of_use(found.get(name), unit, on_it, launches[unit.launch_id], image):
            tally.running += len(on_it)
            joined.append((ledger.unit(name), price, tuple(on_it)))
        else:
            spent_usd += budget.cost_usd(price, (now - unit.created_at).total_seconds())
            ending.append(name)
            lost(on_it, name)
    return Joined(tuple(joined), tuple(ending), tuple(_unreleased(cloud, ledger, launches)), spent_usd)


class Held:
    """A unit as `plan.budget` counts it."""

    def __init__(self, unit: UnitRecord, price: float) -> None:
        self.unit_id = unit.instance_id
        self.requested_at = unit.created_at.timestamp()
        self.deadline = unit.deadline.timestamp()
        self.usd_per_hour = price


def _of_dead_pools(grid_id: str, ledger: Ledger, now: datetime, own: Mapping[str, object]) -> set[str]:
    """Units that nobody has any more, and that the grid has run on, without those of its `own` launches."""
    others = [unit for unit in ledger.units() if unit.launch_id not in own]
    left = {unit.instance_id for unit in others if not is_alive(ledger.client(unit.client_id), now)}
    return {
        name for name in left if any(ledger.run(each.run_id).grid_id == grid_id for each in ledger.attempts_on([name]))
    }


def _price(unit: UnitRecord) -> float:
    known = usd_per_hour(unit.instance_type, unit.place.region)
    return known.usd_per_hour if known else 0.0


def cells_on_units(grid_id: str, ledger: Ledger) -> dict[str, list[Cell]]:
    """Those of a grid's cells that are on a unit, or were on their way to one, by that unit and then by number."""
    cells: dict[str, list[Cell]] = defaultdict(list)
    after = -1
    while batch := ledger.cells(grid_id, after=after, limit=BATCH, states=ON_UNITS):
        for cell in batch:
            run = ledger.run(cell.run_id)
            cells[run.instance_id or ""].append(Cell(cell.number, run, on_unit=True))
        after = batch[-1].number
    return cells


def _taken(unit: UnitRecord, cloud: Cloud, ledger: Ledger, client_id: str, settings: Settings, now: datetime) -> bool:
    """Whether it is ours from here on, to be ended as the grid's units are."""
    if unit.client_id == client_id:  # taken with another grid that was on it
        return True
    if unit.place != cloud.place or is_alive(ledger.client(unit.client_id), now):
        return False
    how: OnExit = "keep" if unit.on_exit == "keep" else settings.on_exit
    return ledger.take_unit(unit.instance_id, client_id, of=unit.client_id, on_exit=how)


def _is_of_use(found: Instance | None, unit: UnitRecord, on_it: list[Cell], launch: LaunchRecord, image: Image) -> bool:
    """Whether cells run on it, or may."""
    if found is None or found.state not in ("pending", "running") or unit.state is UnitState.TERMINATING:
        return False
    return bool(on_it) or launch.architecture == image.architecture


def _unreleased(cloud: Cloud, ledger: Ledger, launches: dict[str, LaunchRecord]) -> list[str]:
    """Launches whose key pair or security group is still there: their client died before it could delete them."""
    left = cloud.network.leftovers(ledger.ledger_id)
    keys, groups = set(left.key_names), set(left.security_group_ids)
    return [
        name
        for name, launch in launches.items()
        if launch.request.key_name in keys or launch.request.security_group_id in groups
    ]
