"""What an executor runs on: a pool in a thread of its own, that works on whatever it is told until it is shut."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor  # noqa: F401  # it registers before we do
from contextlib import ExitStack, suppress
from dataclasses import replace

from cloudrun import wiring
from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import Cancelled, CloudrunError
from cloudrun.core.events import Note, Observer
from cloudrun.core.settings import Settings
from cloudrun.functions.calls import Calls
from cloudrun.functions.packing import CALLS, Functions
from cloudrun.functions.standing import Standing, Task
from cloudrun.grids.grid import Wishes, check_money, limits_of, on_its_share, terms_of
from cloudrun.grids.gridwork import GridWork
from cloudrun.ledger import Ledger
from cloudrun.plan.costs import AT_LIST_PRICES, mark, usd_text
from cloudrun.pools.pool import Pool
from cloudrun.runs.prepared import Prepared
from cloudrun.runs.submit import with_data
from cloudrun.units import launching
from cloudrun.units.beforehand import say_beforehand, say_what_differs
from cloudrun.units.clients import is_alive
from cloudrun.units.costs import settle
from cloudrun.units.leases import present
from cloudrun.units.lifeline import LIFELINE
from cloudrun.units.unit import ENDING_S

LINGER_S = 60.0  # EC2 bills a minute at least, and another machine would take about as long to boot


class Engine:
    """`begin` starts the thread. It knows nothing of its executor, so that nothing keeps one that is forgotten."""

    def __init__(self, ledger: Ledger, settings: Settings, wishes: Wishes, observe: Observer) -> None:
        """Raises UsageError, CredentialsError; nothing is launched before there is work."""
        self.ledger = ledger
        self.settings = settings
        self.wishes = wishes
        self.observe = observe
        self.error: BaseException | None = None  # what ended the pool
        self.aborted: BaseException | None = None
        self._is_over = False  # nobody listens to what the pool is told
        self._done = threading.Event()
        self._lock = threading.RLock()  # an executor may be forgotten, and shut, in the middle of anything
        self._pid = os.getpid()
        # A warning, since the usual observer of a pool shows nothing else: it takes long, and would do so in silence.
        self.cloud = wiring.connect(
            settings.provider, settings.region, settings.profile, lambda words: observe(Note(words, "warning"))
        )
        say_beforehand(self.cloud, settings, SystemClock().now(), observe)
        self.image = launching.find_image(self.cloud, settings)
        say_what_differs(self.cloud, settings, self.image, observe)
        self._terms = terms_of(wishes, settings, self.cloud.place.region)
        self._limits = limits_of(wishes, settings, self._terms)
        check_money(self._limits)

    def begin(self) -> None:
        with ExitStack() as stack:
            self.client_id = stack.enter_context(present(self.ledger, SystemClock()))
            self._clear_behind_the_dead()
            self.functions = Functions(
                self.ledger, self.settings, self.image, self.observe, self.client_id, self.finished
            )
            stack.callback(self.functions.close)
            self.calls = Calls(self.ledger, self.observe, retries=self.wishes.retries, forget=self.functions.forget)
            self._standing = Standing()
            self._standing.add(self.calls)
            self._pool = Pool(
                self.cloud, self.ledger, self.settings, self.image, self._limits, self.observe, self.client_id,
                check=self._standing.check, terms=self._terms,
                linger_s=LINGER_S if self.settings.idle_s is None else self.settings.idle_s,
            )  # fmt: skip
            LIFELINE.add(self)
            stack.callback(LIFELINE.remove, self)
            # A daemon: what an interpreter that ends waits for is `_shut_all`.
            threading.Thread(target=self._live, args=(stack.pop_all(),), name="cloudrun-pool", daemon=True).start()
            _engines.add(self)

    def _live(self, ending: ExitStack) -> None:
        """The deciding thread."""
        try:
            self._pool.run(self._standing)
        except BaseException as error:  # noqa: BLE001  # told to whoever waits
            self.error = error
        try:
            with ending:
                with self._lock:
                    self._is_over = True
                try:
                    self._do_the_rest()
                    settle(self.ledger, self._pool.used)
                finally:  # whatever has failed, nobody waits for ever
                    self._standing.close(self.error)
        except BaseException as error:  # noqa: BLE001
            self.error = self.error or error
        finally:
            self._done.set()

    def _do_the_rest(self) -> None:
        """What was told after the pool was over: one of it that fails keeps nothing else from being done."""
        while True:
            try:
                self._pool.do_what_was_told()
            except BaseException as error:  # noqa: BLE001
                self.error = self.error or error
            else:
                return

    def _clear_behind_the_dead(self) -> None:
        """Functions that pools have left which could not do it themselves."""
        now = SystemClock().now()
        for folder in (self.ledger.home / CALLS).glob("*"):
            if not is_alive(self.ledger.client(folder.name), now):
                shutil.rmtree(folder, ignore_errors=True)

    # -- from any thread -----------------------------------------------------------------------------------------------

    @property
    def is_ours(self) -> bool:
        """False in a forked child: the thread, the connections and the machines are the parent's."""
        return self._pid == os.getpid()

    def facts(self) -> dict[str, str]:
        """For people: how it stands."""
        pool, provider = self._pool, self.settings.provider
        backlog = pool.backlog
        states = [hand.state for hand in list(pool.hands.values())]
        alive = ", ".join(f"{states.count(word)} {word}" for word in dict.fromkeys(states))
        return {
            "is": f"{backlog.running} running, {backlog.queued} waiting",
            "machines now": alive or "none",
            "cost so far": f"{usd_text(pool.spent_usd)} {AT_LIST_PRICES}, runs and overhead{mark(provider)}",
            "why": pool.why or str(self.error or ""),
        }

    @property
    def has_machines(self) -> bool:
        return any(unit.client_id == self.client_id for unit in self.ledger.units())

    def finished(self, plan: Prepared) -> Prepared:
        """A plan with its data, for a unit of this pool. Raises UsageError, CredentialsError."""
        return on_its_share(with_data(plan, self.cloud, self.observe), self.wishes, self._terms)

    def tell(self, act: Callable[[], None]) -> None:
        """Have it done by the deciding thread. Raises BrokenExecutor where the pool has ended."""
        with self._lock:
            if self._is_over:
                raise BrokenExecutor(f"the pool has ended: {self.error or self.aborted}") from self.error
            self._pool.tell(act)

    def adopt(self, work: GridWork) -> None:
        """Work on a grid, also where a dead client has left it. Raises what `GridRun.inherit` raises."""
        try:
            joined = work.grid.inherit(self.cloud, self.image)
            units = [(unit, price, tuple(Task(work, cell) for cell in cells)) for unit, price, cells in joined.units]

            def add() -> None:
                if not self._is_over:
                    self._pool.join(replace(joined, units=tuple(units)))
                self._standing.add(work)

            self.tell(add)
        except BaseException as error:
            work.grid.leave(error)
            raise

    def shut(self, *, cancel_futures: bool = False) -> None:
        """Take nothing more, and end when all is done; `cancel_futures`: what no unit has begun is cancelled."""
        if self.is_ours and not self._is_over:
            with suppress(BrokenExecutor):
                if cancel_futures:
                    self.tell(self.calls.cancel)
                self.tell(self._standing.shut)

    def abort(self, why: BaseException) -> None:
        """Cancel what runs, bring home what it had written, end all machines."""

        def stop() -> None:
            if not self._is_over:
                raise why

        with self._lock:
            if self.aborted is None and not self._is_over:
                self.aborted = why
                self._pool.tell(stop)

    def wait(self, timeout_s: float | None = None) -> None:
        """Until nothing is left of it."""
        self._done.wait(timeout_s)
        LIFELINE.remove(self)  # here as well: only the main thread gives signals back

    # -- for the registry of what is open (`Lifeline`) -----------------------------------------------------------------

    def interrupt(self) -> None:
        self.abort(Cancelled("the process was told to stop", next_step="cloudrun results"))

    def hurry(self) -> None:
        self.interrupt()

    def wait_for_end(self) -> None:
        self.interrupt()
        self._done.wait(ENDING_S)

    def close(self) -> None:
        self.wait_for_end()


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _shut_all() -> None:
    """As with every executor, an interpreter that ends without a word waits for what was submitted."""
    for engine in [engine for engine in _engines if engine.is_ours]:
        engine.shut()
        with LIFELINE.shield(drop=True):  # a signal ends it, and has nobody to raise an exception for
            engine.wait()
        if isinstance(engine.error, CloudrunError) and engine.error is not engine.aborted:
            print(f"cloudrun: {engine.error}; next: {engine.error.next_step}", file=sys.stderr)


# What `concurrent.futures` itself registers with: it comes before other threads are waited for, and before executors
# that we use take no more work. Without it the machines end by `LIFELINE`, and what they do is cancelled.
if _register := getattr(threading, "_register_atexit", None):
    _register(_shut_all)
