"""Ends what a test's machine would leave behind: warden, supervisors and jobs outlive every connection on purpose."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from cloudrun.agent import processes

PATIENCE_S = 60.0


def end_tree(pid: int) -> None:
    """Kill a server with all it has started: a session that is about to start a command is in nobody's home yet."""
    doomed = {pid}
    everybody = list(processes.everybody())
    while more := {each.pid for each in everybody if each.parent in doomed} - doomed:
        doomed |= more
    for each in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def end_all_in(home: Path) -> None:
    """Kill every process whose working directory is in `home`, until there is none; the warden's is, and each job's."""
    give_up = time.monotonic() + PATIENCE_S
    while pids := processes.below(str(home.resolve())):
        assert time.monotonic() < give_up, f"still alive in {home}: {pids}"
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
