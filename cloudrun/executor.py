"""`process_pool`: several rented machines with one queue, as an executor of `concurrent.futures`."""

from __future__ import annotations

import shutil
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor  # noqa: F401  # registered before us
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

from cloudrun import config, prepared, wiring
from cloudrun.calls import Call, Calls, RunFuture
from cloudrun.clients import is_alive
from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import Cancelled, CloudrunError, UsageError, mark_incomplete
from cloudrun.core.events import Event, Note, Observer
from cloudrun.core.states import RunState
from cloudrun.functions import CALLS, Functions, call_key, chunks_of, each, outcome
from cloudrun.grids import GridRun, Wishes, limits_of, on_its_share, write_costs
from cloudrun.gridwork import GridWork
from cloudrun.leases import present
from cloudrun.ledger import Ledger, Run
from cloudrun.lifeline import LIFELINE
from cloudrun.plan.grid import Grid, check_cells, check_size, make_grid
from cloudrun.pool import Pool
from cloudrun.prepared import Job
from cloudrun.process import given_keywords
from cloudrun.runs import new_run
from cloudrun.standing import Standing, Task
from cloudrun.submit import with_data
from cloudrun.units import ENDING_S

LINGER_S = 60.0  # EC2 bills a minute at least, and another machine would take about as long to boot


class process_pool(Executor):  # noqa: N801 - used like a function: `with process_pool() as pool`
    """Rent machines for what is submitted in a `with` block, as many as that is worth.

        with process_pool(units=4) as pool:
            for run in pool.grid("train.py", {"alpha": [0.1, 1.0], "l1_ratio": [0.15, 0.5]}):
                print(run.params, run.scores)
            future = pool.submit(fit, alpha=0.1)         # a function: what it returns comes home
            print(future.result(), future.run)

    `units`: so many machines where there is work for them, or `max_units`: as many as are worth it, up to that.
    `slots` jobs at a time on each (its vCPUs divided by `cpus`, what one job computes on). `budget` in USD is never
    passed, at list prices. A job that fails is tried `retries` times more. A grid whose first cells all fail in the
    same way is stopped, unless `keep_going`. The other keywords are those of `process_unit`; `idle` (one minute) is how
    long a machine is kept that nothing is left for, while the block goes on.

    Nothing is launched before there is work. Whatever ends the block (its last line, an exception, Ctrl-C, SIGTERM)
    ends all machines; at its last line everything that was submitted is waited for, else it is cancelled, and what it
    had written comes home. What jobs print is in the logs of their runs; `observe` is called with
    `cloudrun.core.events`, by default warnings go to `sys.stderr`.

    It may be used without a block as well; `shutdown` ends it then. Raises UsageError before anything is launched,
    CredentialsError, CleanupIncomplete; what keeps machines from being launched is raised by the futures and grids.
    """

    def __init__(
        self,
        *,
        units: int = 1,
        max_units: int | None = None,
        slots: int | None = None,
        cpus: int = 1,
        budget: float | None = None,
        retries: int = 0,
        keep_going: bool = False,
        project: str | Path | None = None,
        observe: Observer | None = None,
        **settings: Any,
    ) -> None:
        for name, count, least in (
            ("units", units, 1),
            ("max_units", max_units, 1),
            ("slots", slots, 1),
            ("cpus", cpus, 1),
            ("retries", retries, 0),
        ):
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < least):
                raise UsageError(f"{name}={count!r} is not a whole number from {least} up")
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int | float) or not budget > 0):
            raise UsageError(f"budget={budget!r} is not an amount of USD", next_step="write budget=5.00")
        if settings.get("on_exit") not in (None, "terminate"):
            raise UsageError("the machines of a pool end with it", next_step="process_unit(on_exit=...) keeps one")
        self._wishes = Wishes(units, max_units, slots, cpus, budget, retries, keep_going)
        self._given = given_keywords(settings)
        self._project = project
        self._observe = observe or write_warnings
        self._lock = threading.RLock()
        self._is_begun = False
        self._is_shut = False
        self._is_over = False  # nobody listens to what the pool is told
        self._aborting: BaseException | None = None
        self._error: BaseException | None = None  # what ended the pool
        self._done = threading.Event()
        self._keyed: dict[str, RunFuture] = {}

    def __enter__(self) -> process_pool:
        with self._lock:
            self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.shutdown()
            return
        with self._lock:
            self._is_shut = True
        if self._is_begun:
            self._end_at_once(error)

    # -- functions -----------------------------------------------------------------------------------------------------

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> RunFuture:
        """Call `fn(*args, **kwargs)` on a unit. The future gives what it returns, or raises what it raises, with the
        traceback as it was there as the cause; `future.run` is its run.

        `fn` may be a function of the script or notebook, a lambda, a closure; modules of the project travel with it,
        others are installed in the versions installed here. It is called anew each time: see `submit_keyed`.

        Raises UsageError for what cannot be pickled, or not be run on a unit; RuntimeError after the pool has ended.
        """
        return self._submit(fn, args, kwargs)

    def submit_keyed(self, key: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> RunFuture:
        """As `submit`, once for each `key`: where a run of that key has succeeded before, also in another process, the
        future has its result already.

        `key` is what JSON can say. It stands for the code, the arguments and the data: only it, the name of `fn` and
        the environment are compared. `pool.submit_keyed({"alpha": 0.1, "version": 3}, fit, data, alpha=0.1)`
        """
        return self._submit(fn, args, kwargs, keyed=(key,))

    def map(
        self, fn: Callable[..., Any], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        """The results of `fn(*items)` in the order of `iterables`; `chunksize` calls are one run.

        Raises TimeoutError where one is not there `timeout` seconds after the call of `map`.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout)
        chunks = chunks_of(zip(*iterables, strict=False), chunksize)
        return chain.from_iterable(super().map(each(fn), chunks, timeout=timeout))

    def _submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], keyed: tuple[Any, ...] = ()
    ) -> RunFuture:
        with self._lock:
            self._check_open()
            self._begin()
            plan = self._functions.prepare(fn, args, kwargs, getattr(fn, "__name__", type(fn).__name__))
            key = call_key(keyed[0], fn, plan.environment.fingerprint) if keyed else ""
            known = self._known(key) if key else None
            if known is not None:
                self._functions.forget(plan)
                return known
            future = RunFuture(self._ledger)
            run = replace(new_run(plan, SystemClock().now()), cell_key=key)
            self._tell(partial(self._calls.add, Call(future, plan, run)))
            if key:
                self._keyed[key] = future
            return future

    def _known(self, key: str) -> RunFuture | None:
        """The future of a call with the same key: under way, or done before."""
        before = self._keyed.get(key)
        if before is not None and not before.cancelled() and not (before.done() and before.exception()):
            return before
        run_id, state = self._ledger.runs_by_cell([key]).get(key, ("", RunState.LOST))
        if state is not RunState.SUCCEEDED:
            return None
        try:
            value = outcome(self._ledger.get(run_id))
        except CloudrunError as error:
            self._observe(Note(f"{run_id} is run again: {error}", "warning"))
            return None
        return RunFuture.of_the_past(self._ledger, run_id, value)

    # -- grids ---------------------------------------------------------------------------------------------------------

    def grid(
        self,
        script: str | Path,
        grid: Mapping[str, Any] | Sequence[Mapping[str, Any]] | Grid,
        *,
        again: bool = False,
        arguments: Sequence[str] = (),
        name: str | None = None,
    ) -> Iterator[Run]:
        """Run a script with every combination of parameters; gives each cell's run as it ends, failed ones too.

        `grid`: {"alpha": [0.1, 1.0], "seed": 7}, or a list of such tables, whose cells follow each other. The cells are
        queued when this returns, so that several grids share the machines. What has succeeded before, of the same code,
        parameters, data and environment, comes first and is not run again, unless `again`; what a process that was
        killed has left on living machines is taken over.

        Raises UsageError before anything is launched, also where another process goes on with the same grid. Where
        cells are left in the end the iterator raises why: JobFailed where the first cells all failed in the same way.
        """
        made = grid if isinstance(grid, Grid) else make_grid(grid)
        check_size(made, yes=False)
        check_cells(made)
        with self._lock:
            self._check_open()
            self._begin()
            job = Job(Path(script), tuple(arguments), {}, name)
            plan = prepared.prepare(job, self._settings, self._ledger, self._image.architecture, self._observe)
            plan = on_its_share(with_data(plan, self._cloud, self._observe), self._pool.limits, self._wishes)
            wishes = replace(self._wishes, again=again)

            def begin(over: Callable[[Any], None]) -> GridRun:
                return GridRun(plan, made, wishes, self._ledger, self._pool.client_id, self._observe, over)

            work = GridWork(self._ledger, begin)
            self._tell(partial(self._adopt, work))
        return work.runs()

    def _adopt(self, work: GridWork) -> None:
        for record, cells in work.grid.joined:
            self._pool.join(record, [Task(work, cell) for cell in cells])
        self._standing.add(work)

    # -- from its beginning to its end ---------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more; end the machines when all that was submitted is over, and wait for that unless `wait` is
        false. `cancel_futures`: what no unit has begun is cancelled. Raises CleanupIncomplete."""
        with self._lock:
            self._is_shut = True
            if not self._is_begun:
                return
            if not self._is_over:
                if cancel_futures:
                    self._pool.tell(self._calls.cancel)
                self._pool.tell(self._standing.shut)
        if not wait:
            return
        try:
            self._done.wait()
        except BaseException as interruption:
            self._end_at_once(interruption)
            raise
        LIFELINE.remove(self)  # here as well: only the main thread gives signals back
        error, self._error = self._error, None
        if error is not None and (error is not self._aborting or getattr(error, "cleanup_incomplete", False)):
            raise error

    def _begin(self) -> None:
        if self._is_begun:
            return
        self._ledger = Ledger(self._project)
        self._settings = config.load(self._ledger.project, self._given, origin="keyword")
        self._cloud = wiring.connect(self._settings.provider, self._settings.region, self._settings.profile)
        settings, cloud = self._settings, self._cloud
        for note in cloud.notes:
            self._observe(Note(note))
        self._image = cloud.images.find(settings.instance_type, image_id=settings.image, user=settings.user)
        limits = limits_of(self._wishes, settings, cloud.place.region)
        with ExitStack() as stack:
            client_id = stack.enter_context(present(self._ledger, SystemClock()))
            self._clear_behind_the_dead()
            self._functions = Functions(
                self._ledger, settings, cloud, self._image, self._observe, client_id,
                finish=lambda plan: on_its_share(plan, limits, self._wishes),
            )  # fmt: skip
            self._calls = Calls(
                self._ledger, self._observe, retries=self._wishes.retries, forget=self._functions.forget
            )
            self._standing = Standing()
            self._standing.add(self._calls)
            self._pool = Pool(
                cloud, self._ledger, settings, self._image, limits, self._observe, client_id,
                linger_s=LINGER_S if settings.idle_s is None else settings.idle_s,
            )  # fmt: skip
            LIFELINE.add(self)
            stack.callback(LIFELINE.remove, self)
            stack.callback(self._functions.close)
            # A daemon: what an interpreter that ends waits for is `_shut_all`.
            threading.Thread(target=self._live, args=(stack.pop_all(),), name="cloudrun-pool", daemon=True).start()
            _begun.add(self)
        self._is_begun = True

    def _live(self, ending: ExitStack) -> None:
        """The deciding thread."""
        try:
            self._pool.run(self._standing)
        except BaseException as error:  # noqa: BLE001  # told to whoever waits
            self._error = error
        try:
            with self._lock:
                self._is_over = True
            self._pool.carry_out_told()
            write_costs(self._ledger, self._pool)
            self._standing.close(self._error)
            ending.close()
        finally:
            self._done.set()

    def _clear_behind_the_dead(self) -> None:
        """Functions that pools have left which could not do it themselves."""
        now = SystemClock().now()
        for folder in (self._ledger.home / CALLS).glob("*"):
            if not is_alive(self._ledger.client(folder.name), now):
                shutil.rmtree(folder, ignore_errors=True)

    def _check_open(self) -> None:
        if self._is_shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self._is_over:
            raise BrokenExecutor(f"the pool has ended: {self._error or self._aborting}") from self._error

    def _tell(self, act: Callable[[], None]) -> None:
        self._check_open()
        self._pool.tell(act)

    def _abort(self, why: BaseException) -> None:
        with self._lock:
            if not self._is_begun or self._is_over or self._aborting is not None:
                return
            self._aborting = why

        def stop() -> None:
            if not self._is_over:
                raise why

        self._pool.tell(stop)

    def _end_at_once(self, error: BaseException) -> None:
        """Cancel what runs, bring home what it had written, end all machines; then `error` goes on its way."""
        self._abort(Cancelled("the pool's block was left by an exception"))
        with LIFELINE.shield(drop=True):
            self._done.wait()
        LIFELINE.remove(self)
        ending, self._error = self._error, None
        for note in getattr(ending, "__notes__", ()):
            error.add_note(note)
        if getattr(ending, "cleanup_incomplete", False):
            mark_incomplete(error)
        elif ending is not None and ending is not self._aborting and ending is not error:
            error.add_note(f"the pool had ended: {ending}")
        if isinstance(error, KeyboardInterrupt | SystemExit | Cancelled) and not self._machines():
            error.add_note("no machine is left of it: nothing runs, and nothing is billed any more")

    def _machines(self) -> list[str]:
        """Those of this pool that have not gone."""
        return [unit.instance_id for unit in self._ledger.units() if unit.client_id == self._pool.client_id]

    # -- for the registry of what is open (`Lifeline`) -----------------------------------------------------------------

    def interrupt(self) -> None:
        self._abort(Cancelled("the process was told to stop", next_step="cloudrun results"))

    def hurry(self) -> None:
        self.interrupt()

    def wait_for_end(self) -> None:
        self.interrupt()
        self._done.wait(ENDING_S)

    def close(self) -> None:
        self.wait_for_end()


_begun: weakref.WeakSet[process_pool] = weakref.WeakSet()


def _shut_all() -> None:
    """As with every executor, an interpreter that ends without a word waits for what was submitted."""
    for pool in list(_begun):
        try:
            pool.shutdown()
        except CloudrunError as error:
            print(f"cloudrun: {error}; next: {error.next_step}", file=sys.stderr)


# What `concurrent.futures` itself registers with: it comes before other threads are waited for, and before executors
# that we use take no more work. Without it the machines end by `LIFELINE`, and what they do is cancelled.
if _register := getattr(threading, "_register_atexit", None):
    _register(_shut_all)


def write_warnings(event: Event) -> None:
    """The observer of a pool: what many jobs print at once nobody could tell apart."""
    if isinstance(event, Note) and event.level == "warning":
        print(f"cloudrun: {event.text}", file=sys.stderr)
