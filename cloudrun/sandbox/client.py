"""The sandbox from outside: find the region that runs on this computer, start it, stop it, ask what is in it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from cloudrun import __version__
from cloudrun.core.errors import SandboxError, UsageError
from cloudrun.sandbox.state import Driver, Locked, Region, StateDir, locked, state_dir

__all__ = ["Driver", "Region", "current", "ensure", "interrupt", "shortage", "status", "stop"]

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
ASK_TIMEOUT_S = 30.0
INTERRUPTION_NOTICE_S = 120.0  # what EC2 gives ("Spot Instance interruption notices", Amazon EC2 User Guide)


def current() -> Region | None:
    """The region that runs, or None. Costs no network: a lock that the daemon holds for its life is the proof."""
    state = state_dir()
    return _current(state) if state.root.is_dir() else None


def ensure(machines: Literal["nspawn"] | None = None, say: Callable[[str], None] | None = None) -> Region:
    """The region that runs; where there is none it is started first. Callers at the same time get the same one.

    With `machines` it boots real ones; what they are booted from is built first where it is not there. But for that it
    takes at most about START_TIMEOUT_S. `say` is told what takes long.

    Raises SandboxError with the end of the daemon's log where it does not start, and where one runs that has other
    machines.
    """
    state = state_dir()
    image: Path | None = None
    if machines is not None:
        from cloudrun.sandbox import rootfs

        rootfs.check_requirements()
        _refuse_other_machines(machines)
        state.create()
        image = rootfs.ensure(state.cache, say or (lambda _: None), in_use=state.daemon_runs())
    state.create()
    try:
        with locked(state.start_lock, timeout_s=START_TIMEOUT_S):
            region = _current(state)
            if _is_anothers(state, region):
                _replace(state, region)
                region = None
            if region is not None:
                _refuse_other_machines(machines)
                with contextlib.suppress(FileNotFoundError):  # it has been told to stop this moment
                    os.utime(state.region)  # counts as use: a region that is handed out must not stop for idleness
                    return region
            return _start(state, image, say or (lambda _: None))
    except Locked:
        raise SandboxError(
            f"Another process has been starting the sandbox for {START_TIMEOUT_S:.0f} s.",
            next_step=f"Look at {state.log}, then try again.",
        ) from None


def stop() -> bool:
    """End the region and every machine in it. False where none ran. Raises SandboxError where it does not end."""
    state = state_dir()
    if not state.root.is_dir() or not state.daemon_runs():
        return False
    with contextlib.suppress(Locked), locked(state.start_lock, timeout_s=START_TIMEOUT_S):
        pass  # one that is being started is up by now
    _end(state)
    return True


def status() -> dict[str, Any]:
    """What runs and what a client must present, ready to be printed as JSON. It holds the secret: that is its point."""
    from cloudrun.sandbox import not_emulated

    region = current()
    if region is None:
        return {"running": False, "instances": [], "not_emulated": not_emulated("")}
    environment = {
        "AWS_ENDPOINT_URL": region.endpoint_url,
        "AWS_REGION": region.region,
        "AWS_DEFAULT_REGION": region.region,
        "AWS_ACCESS_KEY_ID": region.access_key,
        "AWS_SECRET_ACCESS_KEY": region.secret_key,
    }
    return {
        "running": True,
        "endpoint_url": region.endpoint_url,
        "region": region.region,
        "pid": region.pid,
        "generation": region.generation,
        "driver": region.driver,
        "access_key_id": region.access_key,
        "secret_access_key": region.secret_key,
        "env": environment,
        "instances": _ask(region)["instances"],
        "weaker": list(region.weaker),
        "not_emulated": not_emulated(region.driver),
    }


def interrupt(instance_id: str, in_s: float = INTERRUPTION_NOTICE_S, *, rebalance: bool = False) -> dict[str, str]:
    """Announce to a spot instance that it is taken back in `in_s` seconds, and do it then; with `rebalance` only say
    that this may happen soon. Returns what its metadata says from now on.

    Raises SandboxError where no sandbox runs, or the instance is not a running one of the spot market; UsageError where
    there is no such instance.
    """
    region = current()
    if region is None:
        raise SandboxError("no sandbox runs", next_step="cloudrun sandbox start")
    wish = {"instance_id": instance_id, "in_s": in_s, "rebalance": rebalance}
    said = _ask(region, "/interrupt", json.dumps(wish).encode())
    if said.get("code", "").startswith("InvalidInstanceID"):
        alive = [each["instance_id"] for each in _ask(region)["instances"] if each["state"] != "terminated"]
        there = f"alive are {', '.join(alive)}" if alive else "no machine is alive in it"
        raise UsageError(f"the sandbox has no instance {instance_id!r}: {there}", next_step="cloudrun sandbox status")
    if "error" in said:
        raise SandboxError(said["error"], next_step=said["next_step"])
    return said


def shortage(instance_type: str, zone: str, most: int | None) -> dict[str, Any]:
    """From now on the sandbox has `most` machines of that type in that zone ("": in each), and of any type where the
    type is ""; None ends it. Returns what holds now. Raises SandboxError where no sandbox runs."""
    region = current()
    if region is None:
        raise SandboxError("no sandbox runs", next_step="cloudrun sandbox start")
    return _ask(region, "/shortage", json.dumps({"instance_type": instance_type, "zone": zone, "most": most}).encode())


def _refuse_other_machines(machines: Literal["nspawn"] | None) -> None:
    region = current()
    if region is not None and machines is not None and region.driver != machines:
        raise SandboxError(
            f"A sandbox runs already, and its machines are of another kind ({region.driver}).",
            next_step=f"cloudrun sandbox stop, then cloudrun sandbox start --machines {machines}",
        )


def _end(state: StateDir) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):  # its machines die with it, whichever way
        if (pid := state.daemon_pid()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if _ended(state, STOP_TIMEOUT_S):
            state.region.unlink(missing_ok=True)
            return
    raise SandboxError("The sandbox does not stop.", next_step=f"Look at {state.log}.")


def _is_anothers(state: StateDir, region: Region | None) -> bool:
    """Whether a region runs that machines of this cloudrun cannot be started in: another version's, which would start
    them from files that are ours by now, or one whose Python has been removed."""
    if region is None:
        return state.region.exists() and state.daemon_runs()  # what it says is in another form
    return region.version != __version__ or not Path(region.python).exists()


def _replace(state: StateDir, region: Region | None) -> None:
    """End a region of another installation. Raises SandboxError where it has machines, or does not say."""
    live = region is None or any(instance["state"] != "terminated" for instance in _ask(region)["instances"])
    if live:
        raise SandboxError(
            f"The sandbox that runs is of cloudrun {region.version if region else '(another version)'} and may have "
            f"machines; this is cloudrun {__version__}.",
            next_step="Wait until its runs are home, or end it with them: `cloudrun sandbox stop --force`.",
        )
    _end(state)


def _current(state: StateDir) -> Region | None:
    region = state.read_region()
    return region if region is not None and state.daemon_runs() else None


def _start(state: StateDir, image: Path | None, say: Callable[[str], None]) -> Region:
    """Spawn the daemon and wait for its word on a pipe; a daemon that dies closes the pipe without one."""
    # Python compiles all of moto that it imports, once.
    say("starting the sandbox" if state.log.exists() else "starting the sandbox (the first time: some 20 s)")
    reading, writing = os.pipe()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MOTO_"))}
    environment["CLOUDRUN_SANDBOX_DIR"] = str(state.root)
    # -P: a `random.py` beside the user's script must not become the daemon's
    command = [sys.executable, "-P", "-m", "cloudrun.sandbox", "--ready-fd", str(writing)]
    if image is not None:
        command += ["--image", str(image)]
    try:
        with state.log.open("wb") as log:
            launcher = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=state.root,
                env=environment,
                pass_fds=(writing,),
                start_new_session=True,
            )
        os.close(writing)
        told = _read_until_closed(reading, START_TIMEOUT_S)
    finally:
        os.close(reading)
    try:
        launcher.wait(timeout=1.0)  # it forks the daemon at once and exits
    except subprocess.TimeoutExpired:
        launcher.kill()
        launcher.wait()
    region = _current(state)
    if told != b"ready" or region is None:
        reason = told.decode("utf-8", "replace").removeprefix("ready")
        raise SandboxError(
            f"The sandbox did not start{': ' + reason if reason else ''}. The end of {state.log}:\n{_tail(state)}",
            next_step="Run `cloudrun sandbox start` again once the cause is gone.",
        )
    return region


def _read_until_closed(descriptor: int, timeout_s: float) -> bytes:
    told = b""  # "ready", or why not
    give_up = time.monotonic() + timeout_s
    while (left := give_up - time.monotonic()) > 0 and select.select([descriptor], [], [], left)[0]:
        piece = os.read(descriptor, 64)
        if not piece:
            break
        told += piece
    return told


def _tail(state: StateDir) -> str:
    try:
        lines = state.log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "(no log)"
    return "\n".join(lines[-20:]) or "(empty)"


def _ended(state: StateDir, timeout_s: float) -> bool:
    try:
        with locked(state.daemon_lock, timeout_s=timeout_s, shared=True):
            return True
    except Locked:
        return False


def _ask(region: Region, path: str = "/status", body: bytes | None = None) -> dict[str, Any]:
    """Ask the daemon itself (a body makes it a POST), through the same gate as every other request."""
    import urllib.request  # a tenth of what most commands need in all, which ask nothing

    from cloudrun.sandbox.sigv4 import Credentials, sign

    host = urlsplit(region.endpoint_url).netloc
    credentials = Credentials(region.access_key, region.secret_key, region.region)
    method = "GET" if body is None else "POST"
    headers = sign(method, path, "", host, "sandbox", body or b"", credentials, datetime.now(UTC))
    address = region.endpoint_url + path
    request = urllib.request.Request(address, data=body, headers=headers, method=method)  # noqa: S310 (http, loopback)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of our loopback
    try:
        with opener.open(request, timeout=ASK_TIMEOUT_S) as answer:
            document: dict[str, Any] = json.load(answer)
            return document
    except (OSError, ValueError) as error:
        raise SandboxError(
            f"The sandbox at {region.endpoint_url} does not answer: {error}.",
            next_step="Run `cloudrun sandbox stop --force`, then `cloudrun sandbox start`.",
        ) from error
