"""One sandbox for the whole session, in a folder of its own; at the end nothing of it may be alive.

The folder's name travels in the environment, so workers that run side by side share one region.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A fault that 40 examples do not show shows sooner or later, since each run draws others;
# `--hypothesis-profile=default` draws 100. How long one takes says how busy this computer is.
settings.register_profile("quick", max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("quick")

LONG = [Path(__file__).parent / name for name in ("sandbox", "contract")]  # whose tests take long, and often wait
_OWNED = pytest.StashKey[Path]()


def pytest_collection() -> None:
    gc.disable()  # thousands of tests that all stay: to look through them again and again takes as long as to find them


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_IGN:  # as it is in the background: children would not be interrupted
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    folder = Path(tempfile.mkdtemp(prefix="cloudrun-tests-"))
    config.stash[_OWNED] = folder
    os.environ["CLOUDRUN_SANDBOX_DIR"] = str(folder / "sandbox")
    os.environ["XDG_CONFIG_HOME"] = str(folder / "config")  # the user's own settings are not under test
    os.environ["CLOUDRUN_CACHE_DIR"] = str(folder / "cache")
    for name in [name for name in os.environ if name.startswith(("AWS_", "CLOUDRUN_"))]:
        if name not in ("CLOUDRUN_CACHE_DIR", "CLOUDRUN_SANDBOX_DIR", "AWS_CA_BUNDLE"):
            del os.environ[name]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow variations of quicker tests run when they are asked for; of the others each worker begins with long ones."""
    if "slow" not in config.option.markexpr:
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if item not in slow]
        config.hook.pytest_deselected(items=slow)
    if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
        items[:] = _dealt(items, workers)


def _dealt(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Each worker is given as many tests that follow each other, and steals from the end of what others have left: so
    the modules that take long are spread over the beginnings of these shares, and what is stolen last is small."""
    modules: dict[Path, list[pytest.Item]] = {}
    for folder in LONG:
        for item in items:
            if folder in item.path.parents:
                modules.setdefault(item.path, []).append(item)
    shares: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for module in modules.values():
        min(shares, key=len).extend(module)
    others = [item for item in items if item.path not in modules]
    for number, share in enumerate(shares):
        room = max(0, len(items) * (number + 1) // workers - len(items) * number // workers - len(share))
        share += others[:room]
        del others[:room]
    return [item for share in shares for item in share] + others


def pytest_unconfigure(config: pytest.Config) -> None:
    folder = config.stash.get(_OWNED, None)
    if folder is None:
        return
    from cloudrun.sandbox import client

    client.stop()
    alive = _processes_of(folder)
    shutil.rmtree(folder, ignore_errors=not alive)
    if alive:
        raise pytest.UsageError("processes of the test session's sandbox are still alive:\n" + "\n".join(alive))


def _processes_of(folder: Path) -> list[str]:
    """Command lines of processes that name the session's folder or were started with it in their environment."""
    listed = subprocess.run(["ps", "axeww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    mine = {str(os.getpid()), str(os.getppid())}
    return [
        line[:300]
        for line in listed.splitlines()
        if str(folder / "sandbox" / "units") in line and line.split(None, 1)[0] not in mine
    ]
