"""A grid from its command to its end: cells into the ledger, what is done taken from there, the rest on a pool."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial

from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import BEGIN_AGAIN, Cancelled, CloudrunError, UsageError, before_launch, stopped
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import ComingJobs, GridRecord, Image, RunRecord
from cloudrun.core.settings import Settings
from cloudrun.core.states import GridState, RunState
from cloudrun.grids.cancelling import end_left
from cloudrun.grids.cells import ON_UNITS, Cells, Tally
from cloudrun.grids.changed import changed_since, warning
from cloudrun.grids.estimating import UNSEEN, outlook
from cloudrun.grids.handing import HandedOut, hand_out
from cloudrun.grids.inherited import Held, inherit
from cloudrun.grids.machines import GRID_TAG, bill_of, names_of, units_of, what_is_gone
from cloudrun.grids.rows import begin, failed_of, fill, is_again, tally_of
from cloudrun.ledger import Ledger
from cloudrun.plan import budget
from cloudrun.plan.costs import Bill
from cloudrun.plan.endings import in_words
from cloudrun.plan.estimate import Estimate
from cloudrun.plan.expecting import Expectation
from cloudrun.plan.grid import Grid
from cloudrun.plan.pricing import vcpus
from cloudrun.plan.quantities import counted
from cloudrun.plan.retrying import Failures
from cloudrun.plan.scheduling import Backlog, Limits, Terms, decide, least_life_s
from cloudrun.pools.pool import Pool, QueueSlots
from cloudrun.pools.work import Joined
from cloudrun.prices import refresh, usd_per_hour
from cloudrun.runs import provenance
from cloudrun.runs.prepared import Job, Prepared, coming_jobs
from cloudrun.runs.submit import checked
from cloudrun.units.beforehand import say_beforehand, say_what_differs
from cloudrun.units.costs import settle
from cloudrun.units.leases import present
from cloudrun.units.lifeline import LIFELINE
from cloudrun.wiring import Cloud

SLOTS_MAX = 256  # each is a thread here, and a channel to the machine
SAVING_S = 15.0  # before a deadline, beside the grace of what runs, for outputs to be saved: as `agent.power` has it


@dataclass(frozen=True)
class Wishes:
    """How a grid is to be run. `units`: so many; `max_units`: as many as are worth it, up to that."""

    units: int = 1
    max_units: int | None = None
    slots: int | None = None  # cells at a time on a unit; None: its vCPUs divided by `cpus`
    cpus: int = 1  # that one cell computes on
    budget_usd: float | None = None
    retries: int = 0
    keep_going: bool = False
    again: bool = False


@dataclass(frozen=True)
class Finished:
    """A grid when its command returns. `bill`: of all machines that it ever had. `why`: what kept it from being done;
    "" where it is."""

    grid: GridRecord
    tally: Tally
    bill: Bill
    why: str = ""
    failures: Failures = field(default_factory=Failures)  # of this command
    earlier_usd: float = 0.0  # of what was spent, on machines of earlier commands
    most_usd: float = 0.0  # what machines that go on with it can cost until they power themselves off


Changed = Callable[[Tally, Pool | None], None]


def run_grid(
    job: Job,
    grid: Grid,
    settings: Settings,
    wishes: Wishes,
    *,
    ledger: Ledger,
    observe: Observer,
    changed: Changed = lambda _tally, _pool: None,
    over: Callable[[RunRecord], None] = lambda _: None,
    estimated: Callable[[Estimate], None] = lambda _: None,
    detach: bool = False,
    left_alone: Callable[[Finished], None] = lambda _: None,
    only: str | None = None,
) -> Finished:
    """Run every cell that has not succeeded before. The same command goes on with a grid that was left in the middle.

    With `detach` it returns as soon as each machine has its share; `left_alone` is called with what it returns before a
    signal can come between. `only` is the id of the grid that it shall be.

    `estimated` is called before anything is launched, `over` with each cell's run as it ends, `changed` whenever
    something has moved. Raises UsageError before anything is launched, where another process goes on with the same grid
    too; and what `Pool.run` raises.
    """
    check_wishes(wishes)
    with before_launch():
        cloud, image, plan = checked(job, settings, ledger, observe)
        refresh(cloud, (settings.instance_type, *settings.fallback_types), SystemClock().now())
        say_beforehand(cloud, settings, SystemClock().now(), observe)
        say_what_differs(cloud, settings, image, observe)
    terms = terms_of(wishes, settings, cloud.place.region)
    limits = limits_of(wishes, settings, terms)
    plan = on_its_share(plan, wishes, terms)
    with present(ledger, SystemClock()) as client_id:
        check_money(limits)
        provenance.keep(plan, ledger)
        run = GridRun(plan, grid, wishes, ledger, client_id, observe, over, only)

        def make_pool(limits: Limits, terms: Callable[[str], Terms], queue_slots: QueueSlots = None) -> Pool:
            return Pool(
                cloud, ledger, settings, image, limits, observe, client_id,
                changed=lambda pool: changed(run.tally, pool), check=run.check, tags={GRID_TAG: run.grid_id},
                terms=terms, queue_slots=queue_slots, coming=run.coming,
            )  # fmt: skip

        def make_pool_of_shares(limits: Limits) -> Pool:
            return make_pool(limits, lambda name: replace(terms(name), slots=1), lambda name: terms(name).slots)

        def tell() -> None:
            seen = outlook(
                ledger, run.grid_id, run.cells.backlog().queued, run.cells.expected_s(),
                settings=settings, region=cloud.place.region, environment=plan.environment.fingerprint,
                limits=limits, terms=terms,
            )  # fmt: skip
            estimated(seen.estimate)

        try:
            changed(run.tally, None)
            if run.was_done:
                return run.finish(earlier_usd=bill_of(ledger, run.grid_id).usd)
            if detach:
                tell()
                take_over = partial(run.inherit, cloud, image)
                handed = hand_out(run.cells, plan, limits, ledger, observe, take_over, make_pool_of_shares)
                with LIFELINE.shield():  # who is stopped from here on says first what goes on
                    finished = run.leave_alone(handed)
                    left_alone(finished)
                return finished
            pool = make_pool(limits, terms)
            joined = run.inherit(cloud, image)
            if run.tally.running:
                count, word = run.tally.running, "cell goes" if run.tally.running == 1 else "cells go"
                observe(Note(f"{count} {word} on, on machines of an earlier command"))
            _warn_of_money(joined, limits, run.grid_id, observe)
            tell()
            try:
                pool.run(run.cells, joined)
            finally:
                settle(ledger, {*pool.used, *names_of(ledger, run.grid_id)})
        except BaseException as error:
            run.leave(error)
            raise
        return run.finish(pool.why, pool.used, joined.spent_usd)


def _warn_of_money(joined: Joined, limits: Limits, grid_id: str, observe: Observer) -> None:
    """A budget may be smaller than the one that the machines which live were launched with."""
    held = [Held(record, price) for record, price, _ in joined.units]
    most_usd = budget.worst_usd(SystemClock().now().timestamp(), held, joined.spent_usd)
    if limits.budget_usd is not None and most_usd > limits.budget_usd:
        observe(
            Note(
                f"the machines of {grid_id} that live may cost ${most_usd:.4f} until their deadlines, more than the"
                f" budget of ${limits.budget_usd:g}: they get nearer ones, and no other is launched; cloudrun cancel"
                f" {grid_id} ends them",
                "warning",
            )
        )


class GridRun:
    """A grid in this client's hands: its cells are work for a pool."""

    def __init__(
        self,
        plan: Prepared,
        grid: Grid,
        wishes: Wishes,
        ledger: Ledger,
        client_id: str,
        observe: Observer,
        over: Callable[[RunRecord], None] = lambda _: None,
        only: str | None = None,
    ) -> None:
        """Raises UsageError where another process goes on with it, and where it is another grid than `only`."""
        self._ledger = ledger
        self._plan = plan
        self._settings = settings = plan.settings
        self._client_id = client_id
        self._observe = observe
        with ledger.together():  # two processes that begin it at the same moment are one after the other
            record, former = begin(
                plan,
                grid,
                asdict(wishes),
                ledger,
                client_id,
                again=wishes.again,
                budget_usd=wishes.budget_usd,
                only=only,
            )
        self.grid_id = record.grid_id
        self.was_done = record.state is GridState.DONE  # by an earlier command: there is nothing to do
        if former is not None:  # begun anew before it was over: nobody needs its machines any more
            why = f"it was begun anew as {record.grid_id}"
            ledger.end_grid(former.grid_id, GridState.CANCELLED, why)
            end_left(ledger, former.grid_id, why, grace_s=settings.grace_s, observe=observe, profile=settings.profile)
        self.tally = Tally(grid.size)
        try:
            taken = fill(record, plan, grid, ledger, again=is_again(record))
            self.tally = tally_of(record, ledger, taken)
            self._warn_of_changes(plan)
            self.cells = Cells(
                ledger, record.grid_id, plan, self.tally, observe,
                retries=wishes.retries, keep_going=wishes.keep_going, over=over,
                expectation=Expectation(ledger.timed(record.script)),
            )  # fmt: skip
        except BaseException as error:
            self.leave(error)
            raise

    def _warn_of_changes(self, plan: Prepared) -> None:
        """Data is what `--data` names: where a cell has read anything else, its result may be of what was there."""
        if self.tally.taken and plan.beside:
            changed, cells = changed_since(self._ledger, self.grid_id, self._ledger.beside(plan.beside))
            if changed:
                self._observe(Note(warning(changed, cells), "warning"))

    def inherit(self, cloud: Cloud, image: Image) -> Joined:
        """What dead clients have left of it, taken over."""
        joined = inherit(
            self.grid_id, cloud, self._ledger, self._settings, image, self.tally, self._client_id, self._observe,
            self.cells.came_home,
        )  # fmt: skip
        self.cells.refresh()
        return joined

    def coming(self) -> ComingJobs | None:
        """What a machine is about to get, where that is more than one: a job alone is no sooner ready."""
        return coming_jobs(self._plan) if self.cells.backlog().queued > 1 else None

    def check(self) -> None:
        """Raises Cancelled where somebody has cancelled the grid, LedgerError where another client has taken it."""
        if self.was_done:
            return
        self._ledger.guard_grid(self.grid_id, self._client_id)
        if self._ledger.grid(self.grid_id).state is GridState.CANCELLED:
            raise Cancelled(f"{self.grid_id} was cancelled", next_step=f"cloudrun results --grid {self.grid_id}")

    def leave(self, error: BaseException) -> None:
        """Something has put an end to the command, and not to the grid: say so, to who looks at it and to who typed
        it."""
        with suppress(CloudrunError):
            grid = self._ledger.grid(self.grid_id)
            if grid.client_id != self._client_id or grid.state is not GridState.OPEN:
                return
            self._ledger.end_grid(self.grid_id, GridState.STOPPED, in_words(error))
            counts = self._ledger.counts(self.grid_id)
            if counts[RunState.QUEUED] == self.tally.cells:
                error.add_note("no cell was begun")
                stopped(error, BEGIN_AGAIN)
            else:
                error.add_note(self._how_far(counts))
                stopped(error, f"the same command goes on with {self.grid_id}; cloudrun show {self.grid_id}")
            if gone := what_is_gone(self._ledger, self.grid_id):
                error.add_note(gone)
            left = [
                unit for unit in units_of(self._ledger, self.grid_id) if not unit.client_id and unit.on_exit == "keep"
            ]
            if left:
                names = ", ".join(unit.instance_id for unit in left)
                error.add_note(
                    f"{names}: detached, and going on with what they have; cloudrun attach {self.grid_id} comes back to"
                    f" them, cloudrun cancel {self.grid_id} ends them"
                )
        self.let_go()

    def _how_far(self, counts: Mapping[RunState, int]) -> str:
        others = {"failed": failed_of(counts), "cancelled while they ran": counts[RunState.CANCELLED]}
        words = [f"{counts[RunState.SUCCEEDED]} of {counted(self.tally.cells, 'cell has', 'cells have')} succeeded"]
        return ", ".join([*words, *(f"{count} {word}" for word, count in others.items() if count)])

    @property
    def is_done(self) -> bool:
        """Whether each of its cells is over."""
        return not (self.tally.left or self.tally.running or self.tally.elsewhere)

    def finish(self, why_not: str = "", used: Iterable[str] = (), earlier_usd: float = 0.0) -> Finished:
        """Write down its end. `why_not`: what the pool says of cells that are left; `used`: the units it had."""
        why = self.cells.stopped() or ("" if self.is_done else why_not)
        if not self.was_done:
            self._ledger.end_grid(self.grid_id, GridState.DONE if self.is_done else GridState.STOPPED, why)
        self.let_go()
        bill = bill_of(self._ledger, self.grid_id, used)
        return Finished(self._ledger.grid(self.grid_id), self.tally, bill, why, self.cells.failures, earlier_usd)

    def leave_alone(self, handed: HandedOut) -> Finished:
        """Leave it to its machines, for whoever comes next; a grid that has nothing left to do is done."""
        counts = self._ledger.counts(self.grid_id)
        tally = tally_of(self._ledger.grid(self.grid_id), self._ledger, self.tally.taken)
        tally.running = sum(counts[state] for state in ON_UNITS)
        if not tally.left and not tally.running:
            self._ledger.end_grid(self.grid_id, GridState.DONE)
        self.let_go()
        grid = self._ledger.grid(self.grid_id)
        return Finished(grid, tally, bill_of(self._ledger, self.grid_id), handed.why, most_usd=handed.most_usd)

    def let_go(self) -> None:
        """Whoever comes next may go on with it, while this process lives on."""
        with suppress(CloudrunError):
            self._ledger.take_grid(self.grid_id, "", of=self._client_id)


# -- before it ---------------------------------------------------------------------------------------------------------


def check_wishes(wishes: Wishes) -> None:
    """Raises UsageError for numbers that mean nothing."""
    counts = {"--units": wishes.units, "--max-units": wishes.max_units, "--slots": wishes.slots, "--cpus": wishes.cpus}
    for flag, count in counts.items():
        if count is not None and count < 1:
            raise UsageError(f"{flag} {count} is less than 1", next_step=f"leave out {flag}, or give it 1 or more")
    if wishes.slots is not None and wishes.slots > SLOTS_MAX:
        raise UsageError(f"--slots {wishes.slots}: a machine works on {SLOTS_MAX} cells at a time at most")
    if wishes.retries < 0:
        raise UsageError(f"--retries {wishes.retries} is less than 0")
    if wishes.budget_usd is not None and not 0 < wishes.budget_usd < math.inf:
        raise UsageError(
            f"--budget {wishes.budget_usd} pays for nothing", next_step="give it in US dollars: --budget 5"
        )


def check_money(limits: Limits) -> None:
    """Raises UsageError where not even the first machine fits between the limits."""
    first = decide(0.0, Backlog(1, 0), [], limits, 0.0)
    if not first.launch:
        least_s = least_life_s(limits)
        least_usd = math.ceil(budget.least_usd(limits.usd_per_hour, least_s) * 1e4) / 1e4
        enough = f"--budget {least_usd:.4f} or more"
        if limits.deadline_s < least_s:
            enough = f"--deadline {math.ceil(least_s)}s or more"
        raise UsageError(f"nothing was launched: {first.why}", next_step=enough)


def terms_of(wishes: Wishes, settings: Settings, region: str) -> Callable[[str], Terms]:
    """What a unit of a type is like. It raises UsageError for one that a budget cannot be kept with."""
    return partial(_terms, wishes, settings, region)


def _terms(wishes: Wishes, settings: Settings, region: str, instance_type: str) -> Terms:
    """A spot machine never costs more than the maximum price given for it, which is the on-demand price by default
    ("Spot Instances", Amazon EC2 User Guide).
    """
    listed = usd_per_hour(instance_type, region)
    price = listed.usd_per_hour if listed else None
    if settings.spot and settings.max_price is not None:
        price = settings.max_price
    if wishes.budget_usd is not None and price is None:
        raise UsageError(
            f"nobody here knows what a {instance_type} costs in {region}, so no budget can be kept",
            next_step="use a common type such as m7i.large, or leave out --budget and set an early --deadline",
        )
    return Terms(wishes.slots or max(1, (vcpus(instance_type) or 1) // wishes.cpus), price or 0.0)


def limits_of(wishes: Wishes, settings: Settings, terms: Callable[[str], Terms]) -> Limits:
    """For a pool's planner. Raises what `terms` raises."""
    for instance_type in settings.fallback_types:
        terms(instance_type)
    first = terms(settings.instance_type)
    return Limits(
        max_units=wishes.max_units or wishes.units,
        slots=first.slots,
        usd_per_hour=first.usd_per_hour,
        boot_s=UNSEEN[settings.provider].boot_s,
        deadline_s=settings.deadline_s,
        min_units=0 if wishes.max_units else wishes.units,
        budget_usd=wishes.budget_usd,
        lead_s=settings.grace_s + SAVING_S,
    )


def on_its_share(plan: Prepared, wishes: Wishes, terms: Callable[[str], Terms]) -> Prepared:
    """A cell that shares its unit computes on its own part of it."""
    types = (plan.settings.instance_type, *plan.settings.fallback_types)
    is_shared = any(terms(name).slots > 1 for name in types)
    return replace(plan, threads=wishes.cpus) if is_shared or wishes.cpus > 1 else plan
