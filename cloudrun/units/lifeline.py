"""The process-wide registry of open units: a signal, or the interpreter's end, closes every one of them.

Signal handlers can be set by the main thread only, and Python runs them there. So: importing `cloudrun.units.unit` in
the main thread takes them for good, for units that other threads open, and with no unit open they do what was there
before; a handler that the caller set since then is taken while a unit of the main thread is open, and is put back
after it.

First signal: every unit is asked to stop (its run is ended, what is done is pulled, the instance terminated), and the
main thread gets the exception the signal stands for. Second: no more pulling, terminate. Later ones change nothing.
While the main thread is cleaning up (`shield`), an exception would leave that half done: it comes afterwards. So does
one for which the main thread is on its way into a block of the ledger's, or out of it (`ledger.midway`): the turn could
be left taken, and other threads would wait for theirs.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any, Protocol

from cloudrun.core.errors import CloudrunError
from cloudrun.ledger.midway import is_midway

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None
FIRST_WORDS = "cloudrun: ending what runs and bringing it home; once more: terminate now, lose what is not home"
LATER_S = 0.002
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Closable(Protocol):
    """What the registry needs of a unit. Each may be called from any thread, more than once."""

    def interrupt(self) -> None:
        """Make whatever waits on this unit raise `Cancelled` soon, and close it where its own thread is elsewhere."""

    def hurry(self) -> None:
        """Give up on everything but terminating."""

    def wait_for_end(self) -> None:
        """Where another thread works on it: tell that one to end, and wait for it, some minutes at most."""

    def close(self) -> None:
        """End the unit as its settings say, now, in the calling thread."""


class Lifeline:
    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._open: list[Closable] = []
        self._before: dict[int, Handler] = {}
        self._borrowed: set[int] = set()  # taken while a unit is open, to be given back after it
        self._signalled = 0
        self.received: BaseException | None = None  # what the signal that came first, and last, stands for
        self._shields = 0
        self._postponed: Callable[[], None] | None = None
        self._late: frozenset[int] = frozenset()  # signals that come once more, since the ledger was midway
        self._pid = os.getpid()

    def add(self, unit: Closable) -> None:
        with self._lock:
            if self._pid != os.getpid():  # forked: the parent's units are the parent's to end
                self._open, self._pid = [], os.getpid()
            self._open.append(unit)
        self._borrowed.update(self.take_signals())

    def remove(self, unit: Closable) -> None:
        with self._lock:
            self._open = [other for other in self._open if other is not unit]
            if self._open:
                return
            self._signalled = 0
        self._give_signals_back()

    def take_signals(self) -> set[int]:
        """Those that were taken now: none outside the main thread, and none that are ours already."""
        taken: set[int] = set()
        if threading.current_thread() is not threading.main_thread():
            return taken
        for number in SIGNALS:
            before = signal.getsignal(number)
            # Ignored stays ignored (nohup); None is a handler that C code set: not ours to wrap.
            if before not in (signal.SIG_IGN, None) and before != self._on_signal:
                self._before[number] = before
                signal.signal(number, self._on_signal)
                taken.add(number)
        return taken

    def _give_signals_back(self) -> None:
        """Those taken by the import stay: a unit that another thread opens later has no others to rely on."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in self._borrowed:
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, self._before.pop(number))
        self._borrowed.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get(number, signal.SIG_DFL)
        is_new, self._late = number not in self._late, self._late - {number}
        with self._lock:
            units = list(self._open) if self._pid == os.getpid() else []
            self._signalled += bool(units) and is_new
            times = self._signalled
        if units and times > 1 and is_new:
            self._in_thread([unit.hurry for unit in units])
            if times == 2:
                print("cloudrun: terminating now", file=sys.stderr)
            return
        if units and is_new:
            self.received = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
            print(FIRST_WORDS, file=sys.stderr)
            # In a thread, since the handler may have interrupted code that holds the very locks this needs.
            self._in_thread([unit.interrupt for unit in units])
        if self._shields:
            self._postponed = partial(_deliver, number, frame, before, gently=bool(units))
        elif is_midway(frame):
            self._late |= {number}
            once_more = partial(signal.pthread_kill, threading.main_thread().ident or 0, number)
            _start(threading.Timer(LATER_S, once_more))
        else:
            _deliver(number, frame, before, gently=bool(units))

    @contextmanager
    def shield(self, *, drop: bool = False) -> Iterator[None]:
        """Signals that arrive in the main thread while it is in here raise at the end, and only if all went well.

        `drop`: not even then, because an earlier cause is on its way up already.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._shields += 1
        try:
            yield
        except BaseException:
            drop = True
            raise
        finally:
            self._shields -= 1
            if not self._shields:
                deliver, self._postponed = self._postponed, None
                if deliver is not None and not drop:
                    deliver()

    @staticmethod
    def _in_thread(calls: list[Callable[[], None]]) -> None:
        """Each in a thread of its own: one unit that takes long, or cannot be ended, keeps no other one waiting."""
        for call in calls:
            _start(threading.Thread(target=_told, args=(call,), name="cloudrun-signal"))

    def close_all(self) -> None:
        """End what is still open: the interpreter is going.

        It may go while other threads work on their units (a signal that interrupts `Thread.join` makes Python forget
        to wait for that thread): those end their own, bring home what they can, and are waited for. A signal hurries
        that and raises nothing: the process ends as it is, and what it would leave open nobody else ends.
        """
        with self._lock:
            units = list(self._open) if self._pid == os.getpid() else []
        with self.shield(drop=True):
            for unit in reversed(units):
                _told(unit.wait_for_end)
                _told(unit.close)


def _start(thread: threading.Thread) -> None:
    """Python 3.12 starts none while it ends: then all that is open is being ended already."""
    with suppress(RuntimeError):
        thread.start()


def _told(call: Callable[[], None]) -> None:
    """Do it; a failure is said, since nobody may be left who would."""
    try:
        call()
    except CloudrunError as failure:
        print(f"cloudrun: {failure}; next: {failure.next_step}", file=sys.stderr)


def _deliver(number: int, frame: FrameType | None, before: Handler, *, gently: bool) -> None:
    """Do what the signal did before we took it. `gently`: with units open, leave by an exception, not by dying."""
    if callable(before):
        before(number, frame)
    elif gently:
        raise SystemExit(128 + number)
    else:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


LIFELINE = Lifeline()
atexit.register(LIFELINE.close_all)
