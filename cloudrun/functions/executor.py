"""`process_pool`: several rented machines with one queue, as an executor of `concurrent.futures`."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from inspect import Parameter, signature
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from cloudrun import config, notebook
from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import Cancelled, CloudrunError, UsageError, mark_incomplete, notes_of
from cloudrun.core.events import Event, Note, Observer
from cloudrun.core.ids import new_id
from cloudrun.functions.calls import Call, RunFuture
from cloudrun.functions.engine import Engine
from cloudrun.functions.packing import Arguments, Function, call_key, outcome
from cloudrun.grids.grid import GridRun, Wishes
from cloudrun.grids.gridwork import GridWork
from cloudrun.ledger import Ledger, Run
from cloudrun.plan.costs import AT_LIST_PRICES
from cloudrun.plan.grid import Grid, check_cells, check_size, make_grid
from cloudrun.plan.markup import pool_html
from cloudrun.process import given_keywords
from cloudrun.runs import prepared, provenance
from cloudrun.runs.doubts import check_names
from cloudrun.runs.prepared import Job
from cloudrun.units.lifeline import LIFELINE


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

    It may be used without a block as well; `shutdown` ends it then, and so does forgetting it, or the program's end,
    when all that was submitted is over. A forked process has no part in it.

    Raises UsageError before anything is launched, CredentialsError, CleanupIncomplete; what keeps machines from being
    launched is raised by the futures and grids.
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
        if max_units is not None and units != 1:
            raise UsageError(
                f"units={units} is so many machines, max_units={max_units} as many as are worth it, up to that",
                next_step="keep one of the two",
            )
        is_number = isinstance(budget, int | float) and not isinstance(budget, bool)
        if budget is not None and not (is_number and 0 < budget < math.inf):
            raise UsageError(f"budget={budget!r} is not an amount of USD", next_step="write budget=5.00")
        if settings.get("on_exit") not in (None, "terminate"):
            raise UsageError("the machines of a pool end with it", next_step="process_unit(on_exit=...) keeps one")
        self._ledger = Ledger(project)
        self._settings = config.load(self._ledger.project, given_keywords(settings), origin="keyword")
        most_usd = self._settings.budget if budget is None else budget
        self._wishes = Wishes(units, max_units, slots, cpus, most_usd, retries, keep_going)
        self._observe = observe or write_warnings
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._engine: Engine | None = None
        self._is_shut = False
        self._keyed: weakref.WeakValueDictionary[str, RunFuture] = weakref.WeakValueDictionary()

    def _repr_html_(self) -> str:
        """For a notebook: what there is to do, and who does it. No query, no call."""
        wishes = self._wishes
        facts = {"machines": f"up to {wishes.max_units}" if wishes.max_units else str(wishes.units)}
        facts |= {"type": self._settings.instance_type, "where": self._settings.provider}
        facts["budget"] = "" if wishes.budget_usd is None else f"${wishes.budget_usd:g} {AT_LIST_PRICES}"
        if self._engine is not None:
            facts |= self._engine.facts()
        facts["is"] = "shut" if self._is_shut else facts.get("is", "open, and idle until something is submitted")
        return pool_html(facts)

    def __enter__(self) -> process_pool:
        with self._lock:
            self._begun()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.shutdown()
        elif self._pid == os.getpid():
            with self._lock:
                self._is_shut = True
            self._end_at_once(error)

    # -- functions -----------------------------------------------------------------------------------------------------

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> RunFuture:
        """Call `fn(*args, **kwargs)` on a unit. The future gives what it returns, or raises what it raises, with the
        traceback on the unit as a note; `future.run` is its run.

        `fn` may be a function of the script or notebook, a lambda, a closure; modules of the project travel with it, as
        they are at the pool's first call, others are installed in the versions installed here. It is called anew each
        time. A `key` that is no parameter of `fn` is that of `submit_keyed`.

        Raises UsageError for what cannot be pickled, or not be run on a unit; RuntimeError after the pool has ended.
        """
        if "key" in kwargs and not _has_parameter(fn, "key"):
            return self.submit_keyed(kwargs.pop("key"), fn, *args, **kwargs)
        with self._lock:
            return self._submit(self._open().functions.function(fn), [(args, kwargs)])

    def submit_keyed(self, key: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> RunFuture:
        """As `submit`, once for each `key`: where a run of that key has succeeded before, also in another process, the
        future has its result already.

        `key` is what JSON can say. It stands for the code, the arguments and the data: only it, the name of `fn` and
        the environment are compared. `pool.submit_keyed({"alpha": 0.1, "version": 3}, fit, data, alpha=0.1)`
        """
        with self._lock:
            return self._submit(self._open().functions.function(fn), [(args, kwargs)], keyed=(key,))

    def map(
        self, fn: Callable[..., Any], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        """The results of `fn(*items)` in the order of `iterables`, all of which are read at once; `chunksize` calls are
        one run. Leaving the iterator early cancels what no unit has begun.

        Raises TimeoutError where a result is not there `timeout` seconds after the call of `map`.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        end = None if timeout is None else time.monotonic() + timeout
        calls: Iterator[Arguments] = (((*items,), {}) for items in zip(*iterables, strict=False))
        with self._lock:
            function = self._open().functions.function(fn)
            futures = [
                self._submit(function, chunk, single=False)
                for chunk in iter(lambda: list(islice(calls, chunksize)), [])
            ]
        return _results(futures, end)

    def _submit(
        self, function: Function, calls: Sequence[Arguments], *, single: bool = True, keyed: tuple[Any, ...] = ()
    ) -> RunFuture:
        engine = self._open()
        parcel = engine.functions.parcel(function, calls)
        key = call_key(keyed[0], function.full_name, parcel.kind.environment.fingerprint) if keyed else ""
        if key and (known := self._known(key)) is not None:
            engine.functions.forget(parcel)
            return known
        future = RunFuture(engine.ledger, new_id("r"))
        call = Call(future, parcel, SystemClock().now(), single, key)
        engine.tell(partial(engine.calls.add, call))
        if key:
            self._keyed[key] = future
        return future

    def _known(self, key: str) -> RunFuture | None:
        """The future of a call with the same key: under way, or done before."""
        before = self._keyed.get(key)
        if before is not None and not before.cancelled() and (not before.done() or before.exception() is None):
            return before
        run_id = self._ledger.succeeded_by_cell([key]).get(key)
        if run_id is None:
            return None
        future = RunFuture(self._ledger, run_id)
        try:
            future.set_result(outcome(self._ledger.get(run_id))[0])
        except CloudrunError as error:
            self._observe(Note(f"{run_id} is run again: {error}", "warning"))
            return None
        return future

    # -- grids ---------------------------------------------------------------------------------------------------------

    def grid(
        self,
        script: str | Path,
        grid: Mapping[str, Any] | Sequence[Mapping[str, Any]] | Grid,
        *,
        again: bool = False,
        arguments: Sequence[str] = (),
        name: str | None = None,
        progress: bool | None = None,
    ) -> Iterator[Run]:
        """Run a script with every combination of parameters; gives each cell's run as it ends, failed ones too.

        `grid`: {"alpha": [0.1, 1.0], "seed": 7}, or a list of such tables, whose cells follow each other. The cells are
        queued when this returns, so that several grids share the machines. What has succeeded before, of the same code,
        parameters, data and environment, comes first and is not run again, unless `again`; what a process that was
        killed has left on living machines is taken over. Leaving the iterator early leaves what no unit has begun to
        the next time. `progress`: one line on `sys.stderr` says how far it is, by default in a notebook.

        Raises UsageError before anything is launched, also where another process goes on with the same grid. Where
        cells are left in the end the iterator raises why: JobFailed (with the first one's run) where the first cells
        all failed in the same way; and JobFailed after the last run where none has succeeded, unless `keep_going`.
        """
        made = grid if isinstance(grid, Grid) else make_grid(grid)
        check_size(made, yes=False)
        check_cells(made)
        with self._lock:
            engine = self._open()
            job = Job(Path(script), tuple(arguments), {}, name)
            plan = prepared.prepare(job, self._settings, self._ledger, engine.image.architecture, self._observe)
            names, metric = {name: None for table in made.tables for name in table}, self._settings.metric
            check_names(
                job.script, names, metric, self._ledger, self._observe, arguments=arguments, metric_set_in="metric"
            )
            plan, wishes = engine.finished(plan), replace(self._wishes, again=again)
            provenance.keep(plan, self._ledger)
            begin = partial(GridRun, plan, made, wishes, self._ledger, engine.client_id, self._observe)
            work = GridWork(self._ledger, begin, keep_going=wishes.keep_going, observe=self._observe)
            engine.adopt(work)
        runs = work.runs(engine.tell)
        if not (notebook.in_notebook() if progress is None else progress):
            return runs
        tally = work.grid.tally
        return notebook.watched(runs, lambda: (tally.succeeded, tally.running, tally.failed, tally.cells))

    # -- from its beginning to its end ---------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more; end the machines when all that was submitted is over, and wait for that unless `wait` is
        false. `cancel_futures`: what no unit has begun is cancelled. Raises CleanupIncomplete."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._is_shut = True
            engine = self._engine
        if engine is None:
            return
        engine.shut(cancel_futures=cancel_futures)
        if not wait:
            return
        try:
            engine.wait()
        except BaseException as interruption:
            self._end_at_once(interruption)
            raise
        error, engine.error = engine.error, None
        if error is not None and (error is not engine.aborted or getattr(error, "cleanup_incomplete", False)):
            raise error

    def _begun(self) -> Engine:
        if self._engine is None:
            engine = Engine(self._ledger, self._settings, self._wishes, self._observe)
            engine.begin()
            self._engine = engine
            weakref.finalize(self, engine.shut).atexit = False  # the engines see to that themselves
        return self._engine

    def _open(self) -> Engine:
        if self._pid != os.getpid():
            raise RuntimeError("this pool is of the process that this one was forked from: begin another one")
        if self._is_shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        return self._begun()

    def _end_at_once(self, error: BaseException) -> None:
        """Cancel what runs, bring home what it had written, end all machines; then `error` goes on its way."""
        engine = self._engine
        if engine is None:
            return
        engine.abort(Cancelled("the pool's block was left by an exception"))
        with LIFELINE.shield(drop=True):
            engine.wait()
        ending, engine.error = engine.error, None
        for note in notes_of(ending) if ending is not None else ():
            error.add_note(note)
        if getattr(ending, "cleanup_incomplete", False):
            mark_incomplete(error)
        elif ending is not None and ending is not engine.aborted and ending is not error:
            error.add_note(f"the pool had ended: {ending}")
        if isinstance(error, KeyboardInterrupt | SystemExit | Cancelled) and not engine.has_machines:
            error.add_note("no machine is left of it: nothing runs, and nothing is billed any more")


def _results(futures: list[RunFuture], end: float | None) -> Iterator[Any]:
    """In order. What is left when it is closed is cancelled; no name keeps what was given out. As `Executor.map` does
    it."""
    futures.reverse()
    try:
        while futures:
            values = futures.pop().result(None if end is None else end - time.monotonic())
            values.reverse()
            while values:
                yield values.pop()
    finally:
        for future in futures:
            future.cancel()


def _has_parameter(fn: Callable[..., Any], name: str) -> bool:
    """Whether `fn` takes that keyword, as far as anybody can tell."""
    try:
        parameters = signature(fn).parameters
    except (TypeError, ValueError):
        return True
    return name in parameters or any(each.kind is Parameter.VAR_KEYWORD for each in parameters.values())


def write_warnings(event: Event) -> None:
    """The observer of a pool: what many jobs print at once nobody could tell apart."""
    if isinstance(event, Note) and event.level == "warning":
        print(f"cloudrun: {event.text}", file=sys.stderr)
