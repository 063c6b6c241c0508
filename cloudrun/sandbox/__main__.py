"""The sandbox's daemon, `python -m cloudrun.sandbox`: detaches, takes the lock, serves until idle or told to end."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from cloudrun.sandbox.region import RunningRegion
from cloudrun.sandbox.state import Locked, StateDir, locked, state_dir

TAKEOVER_TIMEOUT_S = 25.0  # how long a region that is stopping may take before a new one gives up
DEFAULT_IDLE_S = 900.0
TICK_S = 1.0  # how often idleness is looked at; a signal does not wait for it
ENDING = (signal.SIGTERM, signal.SIGINT)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cloudrun.sandbox", description=__doc__)
    parser.add_argument("--ready-fd", type=int, help="write `ready` here once requests are answered; detach before")
    parser.add_argument("--image", type=Path, help="the root file system that machines are booted from")
    arguments = parser.parse_args()
    if arguments.ready_fd is not None and os.fork():
        os._exit(0)  # the daemon is nobody's child: the client that started it never has to wait for it
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    state = state_dir()
    state.create()
    try:
        with locked(state.daemon_lock, timeout_s=TAKEOVER_TIMEOUT_S):
            return _serve(state, arguments.ready_fd, arguments.image)
    except Locked:
        print("another sandbox daemon holds the lock and does not end", file=sys.stderr)
        return 1


def _serve(state: StateDir, ready_fd: int | None, image: Path | None) -> int:
    def end(_signal: int, _frame: FrameType | None) -> None:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)  # once is enough: the clean-up below is not to be interrupted
        sys.exit(0)

    idle_s = float(os.environ.get("CLOUDRUN_SANDBOX_IDLE_S") or DEFAULT_IDLE_S)
    region = RunningRegion(state, image)
    for number in ENDING:
        signal.signal(number, end)
    try:
        try:
            state.sign_lock()
            region.start()
        except OSError as error:  # a full disk, which leaves no room in the log either
            if ready_fd is not None:
                with contextlib.suppress(BrokenPipeError):
                    os.write(ready_fd, str(error).encode())
            raise
        if ready_fd is not None:
            with contextlib.suppress(BrokenPipeError):  # the client that asked has gone; others may come
                os.write(ready_fd, b"ready")
            os.close(ready_fd)
        while not region.failed and not region.withdrawn:
            time.sleep(TICK_S)
            if not region.withdrawn and region.idle_for_s() > idle_s and _retire(state, region, idle_s):
                return 0
        return 1
    finally:
        region.stop()


def _retire(state: StateDir, region: RunningRegion, idle_s: float) -> bool:
    """Withdraw an idle region, unless a client is being handed it right now: then it is used again."""
    try:
        with locked(state.start_lock, timeout_s=0.0):
            if region.idle_for_s() <= idle_s:
                return False
            state.region.unlink(missing_ok=True)
            return True
    except Locked:
        return False


if __name__ == "__main__":
    sys.exit(main())
