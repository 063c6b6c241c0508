"""Waiting in tests, however long a busy machine takes; and code for jobs that wait, or leave a daemon behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 120.0
# a job that waits for a file, but not for ever: it shall not outlive a test that failed
WAIT = """
import os, time
for _ in range(18000):
    if os.path.exists("go-on"): break
    time.sleep(0.01)
"""
# leaves a daemon, out of its session and its family, whose pid is in a file of the working directory
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        with open("daemon.tmp", "w") as note: note.write(str(os.getpid()))
        os.rename("daemon.tmp", "daemon.pid")
        time.sleep(60)
    os._exit(0)
while not os.path.exists("daemon.pid"): time.sleep(0.01)
"""


def until(condition: Callable[[], Any]) -> Any:
    """What the condition says once that is true; fails after PATIENCE_S."""
    give_up = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.01)
    return found
