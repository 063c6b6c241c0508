"""The warden's children: forked with nothing of the warden's open in them, and heard of when they have ended."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from typing import Any, Callable, NoReturn

from cloudrun.agent import processes

Life = Callable[[], Any]
Then = Callable[[], None]  # what to do when a child has ended


class Children:
    """`bury(pid, code, number)` is called for a child that was not started here, before its pid can be another's; code
    and number are those of `os.waitid`."""

    def __init__(self, bury: Callable[[int, int, int], None]) -> None:
        self._bury = bury
        self._then: dict[int, Then] = {}

    def fork(self, life: Life, *kept: int, then: Then = lambda: None) -> int:
        """A child that does nothing but `life`, with standard streams and `kept` for its only descriptors."""
        pid = os.fork()
        if pid == 0:
            _live(life, kept)
        self.expect(pid, then)
        return pid

    def expect(self, pid: int, then: Then) -> None:
        """Also for one that somebody else has forked, and whose parent this process is or will be."""
        self._then[pid] = then

    def reap(self) -> bool:
        """Reap who has ended. Whether anybody was among them whom nobody expected."""
        ended: list[Then] = []
        strangers = False
        with contextlib.suppress(ChildProcessError):
            while (found := processes.peek()) is not None:
                pid = found.si_pid
                then = self._then.pop(pid, None)
                if then is not None:
                    ended.append(then)
                else:
                    strangers = True
                    self._bury(pid, found.si_code, found.si_status)
                os.waitpid(pid, 0)
        for then in ended:
            then()
        return strangers


def _live(life: Life, kept: tuple[int, ...]) -> NoReturn:
    """The rest of a forked child's life. Nothing of the warden's stays open in it, its lock above all."""
    code = 1
    try:
        gc.freeze()  # whoever owns a descriptor that is closed here must not close its number once more
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        for descriptor in _descriptors():
            if descriptor > 2 and descriptor not in kept:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        life()
        code = 0
    finally:
        os._exit(code)


def _descriptors() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # where none is left there is none to look with
        return list(range(min(os.sysconf("SC_OPEN_MAX"), 65536)))
