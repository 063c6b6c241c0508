"""A detached grid: each unit is given its share of the cells, starts them one after the other, and needs no client."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heapreplace
from threading import Condition
from typing import TYPE_CHECKING

from cloudrun.core import rundir
from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import Cancelled, CloudrunError, LedgerError
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import RunRecord
from cloudrun.core.states import RunState
from cloudrun.grids.cells import ON_UNITS, Cell
from cloudrun.grids.gathering import catch_up
from cloudrun.ledger import Ledger
from cloudrun.plan.quantities import counted
from cloudrun.plan.scheduling import Backlog
from cloudrun.pools.hands import MACHINE_FAILED
from cloudrun.pools.pooled import PooledUnit
from cloudrun.runs import performing
from cloudrun.runs.attempt import Attempt
from cloudrun.runs.prepared import Prepared
from cloudrun.runs.project import Shipment
from cloudrun.runs.pulling import requeue_unseen
from cloudrun.runs.slots import Turn

if TYPE_CHECKING:
    from cloudrun.ssh.agent import Queued

BATCH = 100  # cells that are written down, and handed over, at a time
POLL_S = 0.5  # while other units get their environments


@dataclass(frozen=True)
class Share:
    """What one unit has to do. `there`: cells that it was given before; `cells`: (place in the queue, run id)."""

    there: tuple[Cell, ...] = ()
    cells: tuple[tuple[int, str], ...] = ()


def deal(run_ids: Iterable[str], loads: Sequence[int]) -> list[list[tuple[int, str]]]:
    """Spread a queue over units that have so many cells already: each next cell to whoever has the fewest."""
    dealt: list[list[tuple[int, str]]] = [[] for _ in loads]
    heap = [(load, index) for index, load in enumerate(loads)]
    heapify(heap)
    for place, run_id in enumerate(run_ids):
        load, index = heap[0]
        dealt[index].append((place, run_id))
        heapreplace(heap, (load + 1, index))
    return dealt


class HandOver:
    """`Work` for a pool: its tasks are shares, each of which a unit is given and then left alone with."""

    def __init__(self, ledger: Ledger, plan: Prepared, shares: Iterable[Share], observe: Observer) -> None:
        self._ledger = ledger
        self._plan = plan
        self._shares = deque(shares)
        self._observe = observe
        self._taken: set[int] = set()  # ids of shares that a unit has been given
        self._units: dict[int, PooledUnit] = {}  # by the id of the share that is on its way to it
        self._changed = Condition()
        self._furnishing: set[PooledUnit] = set()  # units that may not have their environment yet
        self.handed = 0  # units that were left to their shares
        self.trouble: CloudrunError | None = None  # why shares are left

    @property
    def left(self) -> list[str]:
        """Runs of shares that no unit has come for, in the order of their queue."""
        return [run_id for _, run_id in sorted(cell for share in self._shares for cell in share.cells)]

    def backlog(self) -> Backlog:
        return Backlog(len(self._shares), len(self._taken))

    def take(self, beside: Sequence[Share] = ()) -> Share | None:  # noqa: ARG002  # a unit has one share
        if not self._shares:
            return None
        share = self._shares.popleft()
        self._taken.add(id(share))
        return share

    def stopped(self) -> str:
        return ""

    def is_open(self) -> bool:
        return False

    def given_up(self, why: str, error: BaseException | None) -> None:  # noqa: ARG002  # `why` is the pool's to say
        """No machine comes for what is left: those that were left to their shares may have it, and where there are none
        it is an error."""
        if error is not None and not self.handed:
            raise error

    def begin(self, given: Sequence[tuple[str, Share]]) -> list[Share]:
        """A unit writes down its share itself, when it has the project."""
        return [share for _, share in given]

    def carry_out(self, unit: PooledUnit, task: Share, turn: Turn) -> None:  # noqa: ARG002  # it has one
        self._units[id(task)] = unit
        with self._changed:
            self._furnishing.add(unit)
        try:
            hand_over(unit, self._plan, task, lambda: self._is_furnished(unit))
        finally:
            self._is_furnished(unit)
        with self._changed:  # others may be getting their environment from it: its connection is open as long
            while self._furnishing and not unit.stop.is_set():
                self._changed.wait(POLL_S)

    def _is_furnished(self, unit: PooledUnit) -> None:
        with self._changed:
            self._furnishing.discard(unit)
            self._changed.notify_all()

    def ended(self, task: Share, error: BaseException | None) -> None:
        unit = self._units.pop(id(task), None)
        self._taken.discard(id(task))
        if error is None:
            self.handed += 1
            return
        if not isinstance(error, CloudrunError):
            raise error
        if unit is None or not unit.is_let_go:
            self._take_back(task, error)
        if isinstance(error, (*MACHINE_FAILED, Cancelled)):
            self.trouble = error
            return
        raise error  # what is wrong is not this machine: on the next it would be the same

    def _take_back(self, share: Share, error: CloudrunError) -> None:
        """Its unit is ended: what it had of the share waits for another one."""
        again = []
        ids = [(cell.number, cell.run.run_id) for cell in share.there] + list(share.cells)
        for place, run_id in ids:
            run = self._ledger.run(run_id)
            if run.state in ON_UNITS:
                requeue_unseen(self._ledger, run, str(error))
            if self._ledger.run(run_id).state is RunState.QUEUED:
                again.append((place, run_id))
        if again and not isinstance(error, Cancelled):
            self._observe(
                Note(f"{counted(len(again), 'cell goes', 'cells go')} to another machine: {error}", "warning")
            )
            self._shares.append(Share(cells=tuple(again)))


# -- one unit ----------------------------------------------------------------------------------------------------------


def hand_over(unit: PooledUnit, plan: Prepared, share: Share, furnished: Callable[[], None]) -> None:
    """Give an open unit its share and let go of it, where there is anything left for it to do. What it was given
    before and has ended comes home; what it never got, since a client died over it, it gets now. `furnished` is called
    when it has its environment."""
    ledger = unit.ledger
    unit.check_cancelled()
    some = [cell.run.run_id for cell in share.there[:1]] + [run_id for _, run_id in share.cells[:1]]
    if not some:
        return
    first = ledger.run(some[-1])
    way = Attempt(unit, first, first.attempts + (first.state is RunState.QUEUED))
    places = {cell.run.run_id: cell.number for cell in share.there}
    there = [cell.run for cell in share.there]
    missing = way.despite_cuts(lambda: catch_up(ledger, unit.cloud, unit.agent, there, observe=unit.observe))
    if missing or share.cells:
        performing.furnish(way, plan)
        furnished()
        tree = tree_key(plan.shipment)
        goods = plan.shipment
        with way.phases.phase("ship", f"{counted(len(share.cells), 'cell')} of {counted(len(goods.entries), 'file')}"):
            way.despite_cuts(lambda: unit.agent.ship(rundir.tree_dir(tree), goods.root, goods.entries))
            _queue(way, plan, tree, [(places[run.run_id], run) for run in missing])
            for start in range(0, len(share.cells), BATCH):
                unit.check_cancelled()
                _queue(way, plan, tree, _begun(unit, plan, share.cells[start : start + BATCH]))
    unit.check_cancelled()
    if ledger.unfinished_runs(unit.instance_id):
        way.despite_cuts(lambda: unit.let_go(power_off_when_done=bool(plan.settings.bucket)))


def tree_key(goods: Shipment) -> str:
    """One name for this project's files, as they are."""
    text = json.dumps(["cloudrun project 1", *sorted([each.path, each.sha256, each.mode] for each in goods.entries)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _begun(unit: PooledUnit, plan: Prepared, cells: Sequence[tuple[int, str]]) -> list[tuple[int, RunRecord]]:
    """Write down that these are this unit's, all of them at once: from here on a later client looks for them there."""
    ledger, now = unit.ledger, SystemClock().now()
    begun: list[tuple[int, RunRecord]] = []
    with ledger.together():
        for place, run_id in cells:
            run = ledger.run(run_id)
            store = performing.store_of(ledger, plan, run_id, run.attempts + 1)
            try:
                ledger.begin_attempt(run_id, unit.instance_id, now, store=store, beside=plan.beside)
            except LedgerError:
                if ledger.run(run_id).state is RunState.QUEUED:
                    raise
                continue  # somebody has cancelled it
            begun.append((place, ledger.run(run_id)))
    return begun


def _queue(way: Attempt, plan: Prepared, tree: str, cells: Sequence[tuple[int, RunRecord]]) -> None:
    waiting = [_queued(way, plan, tree, place, run) for place, run in cells]
    way.despite_cuts(lambda: way.unit.agent.queue(waiting))


def _queued(way: Attempt, plan: Prepared, tree: str, place: int, run: RunRecord) -> Queued:
    from cloudrun.ssh.agent import Queued

    unit, number = way.unit, run.attempts
    mine = replace(plan, job=replace(plan.job, params=dict(run.params)))
    spec = performing.spec_on(unit, mine, run.run_id, number)
    attempt = Attempt(unit, run, number) if number > 1 else None
    if attempt is None or not attempt.home.earlier:
        return Queued(rundir.run_dir(run.run_id, number), spec, place, tree)
    way.despite_cuts(lambda: performing.ship(attempt, mine))  # what it goes on from is its own
    return Queued(attempt.place, spec, place, None)
