"""Runs the playbook that gives a unit its environment, with the pinned host key and no settings of the user's."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloudrun.core.errors import Cancelled, HostKeyMismatch, ProvisionError
from cloudrun.core.records import Environment, SshTarget
from cloudrun.plan.typed import path_typed
from cloudrun.provisioning.ansible import (
    ansible_environment,
    ansible_playbook,
    check_playbook,
    playbook_file,
    require_ssh_client,
    write_inventory,
)
from cloudrun.provisioning.resources import inventory_dir, playbook_dir

__all__ = ["check_playbook", "provision", "require_ssh_client"]

_POLL_S = 0.1
_REASON_LINES = 20  # of a failing command's output, in an error; the log has all
_STOP_TIMEOUT_S = 6.0  # the driver gives Ansible 2 s, and is slow to notice by its poll interval


def provision(
    target: SshTarget,
    environment: Environment,
    *,
    private_dir: Path,
    timeout_s: float,
    verbose: bool = False,
    on_line: Callable[[str], None] | None = None,
    cancelled: threading.Event | None = None,
    playbook: Path | None = None,
) -> Path:
    """Give the unit `environment`, and return the path of the log, which is in `private_dir`, a folder for this call.

    `on_line` gets each line of Ansible's output; `verbose` makes them more. Works from any thread and leaves signal
    handlers alone. Raises ProvisionError with the failing task, HostKeyMismatch, UsageError where there is no ssh
    client, Cancelled when the event is set; nothing of Ansible is alive when it returns or raises.
    """
    require_ssh_client()
    book = playbook_file(playbook)
    work = private_dir.resolve() / "ansible"
    log_path = private_dir.resolve() / "provision.log"
    outcome = _Outcome()
    try:
        job = _job(book, target, environment, work, verbose=verbose)
        with _log(log_path) as write, _driver(job, work) as process:
            deadline = time.monotonic() + timeout_s
            for line in _lines(process, deadline, cancelled):
                text = outcome.take(line)
                if text is not None:
                    write(text)
                    if on_line is not None:
                        on_line(text)
            if not outcome.status and cancelled is not None and cancelled.is_set():
                raise Cancelled("provisioning was cancelled")
            if not outcome.status and time.monotonic() >= deadline:
                raise ProvisionError(
                    f"provisioning took longer than {timeout_s:.0f} s",
                    log_path=log_path,
                    next_step=f"less {path_typed(log_path)}",
                )
    finally:
        shutil.rmtree(work, ignore_errors=True)  # the log says it all
    outcome.require_success(target, log_path)
    return log_path


def _job(book: Path, target: SshTarget, environment: Environment, work: Path, *, verbose: bool) -> dict[str, Any]:
    """What the driver is told; `work` is made, with the inventory in it."""
    with _translated(work):
        work.mkdir(mode=0o700, parents=True, exist_ok=True)
        if environment.system.playbook:
            book = _together(book, Path(environment.system.playbook), work)
        inventory = [str(inventory_dir()), str(write_inventory(target, environment, work))]
    return {
        "private_data_dir": str(work),
        "playbook": str(book),
        "inventory": inventory,
        "cmdline": "-v" if verbose else "",
        "ident": "provision",
    }


def _together(book: Path, own: Path, work: Path) -> Path:
    """One playbook of ours, the user's own, and the word that all is done; Ansible starts once for the three."""
    path = work / "all.yml"
    books = (book, own, playbook_file(playbook_dir() / "ready.yml"))
    path.write_text(json.dumps([{"import_playbook": str(each)} for each in books]), encoding="utf-8")  # JSON is YAML
    return path


@contextlib.contextmanager
def _log(path: Path) -> Iterator[Callable[[str], None]]:
    """A function that adds a line to the log."""

    def write(line: str) -> None:
        with _translated(path):
            stream.write(line + "\n")

    with _translated(path):
        stream = path.open("w", encoding="utf-8", buffering=1)  # by lines: who is killed leaves them behind
    try:
        yield write
    finally:
        stream.close()


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ProvisionError(
            f"{path} could not be written: {error.strerror or error}", next_step=f"df -h {path_typed(path.parent)}"
        ) from error


# -- the driver ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _driver(job: Mapping[str, Any], work: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The driver's process, at work on `job`; it and Ansible have ended when the block is left, however that is."""
    ansible_playbook()
    process = subprocess.Popen(
        # -P: a file named like a module of ours, in whatever folder this is, is not imported
        [sys.executable, "-P", "-m", "cloudrun.provisioning.driver"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=work,
        env=ansible_environment(work),
        start_new_session=True,  # a Ctrl-C at the terminal is ours to handle
    )
    try:
        _tell(process, json.dumps(job))
        yield process
    finally:
        _tell(process, "stop")  # said aloud: a forked child of ours may hold the pipe open
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _tell(process: subprocess.Popen[bytes], line: str) -> None:
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):  # a driver that has ended says why on stdout
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()


def _lines(process: subprocess.Popen[bytes], deadline: float, cancelled: threading.Event | None) -> Iterator[str]:
    """What the driver says, until it ends, the time is up or somebody cancels."""
    assert process.stdout is not None  # noqa: S101  # mypy: it is a pipe
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline and not (cancelled is not None and cancelled.is_set()):
            if not selector.select(_POLL_S):
                continue
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                break
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                yield line.decode("utf-8", errors="replace")
    if rest:
        yield rest.decode("utf-8", errors="replace")


@dataclass
class _Outcome:
    """What the driver has told so far."""

    status: str = ""
    failed: list[dict[str, Any]] = field(default_factory=list)
    last_lines: list[str] = field(default_factory=list)

    def take(self, line: str) -> str | None:
        """Take in one line of the driver's; returns the text it has for the log."""
        try:
            document = json.loads(line)
        except ValueError:
            document = {"line": line}  # a traceback of the driver's own
        if not isinstance(document, dict):
            document = {"line": line}
        if "failed" in document:
            self.failed.append(document["failed"])
        self.status = document.get("status", self.status)
        text = document.get("line")
        if text is not None and text.strip():
            self.last_lines = [*self.last_lines[-19:], text]
        return text

    def require_success(self, target: SshTarget, log_path: Path) -> None:
        """Raises ProvisionError, or HostKeyMismatch, where the playbook did not succeed."""
        if self.status == "successful":
            return
        look = f"less {log_path}"
        if self.failed:
            failure = self.failed[-1]
            reason = _reason(failure["result"])
            if "Host key verification failed" in reason or "HOST IDENTIFICATION HAS CHANGED" in reason:
                raise HostKeyMismatch(
                    f"the machine at {target.host}:{target.port} has another host key than it was launched with",
                    next_step=look,
                )
            what = "could not reach the unit" if failure["event"] == "runner_on_unreachable" else "failed"
            raise ProvisionError(
                f"the task “{failure['task']}” {what}: {reason}",
                task=failure["task"],
                log_path=log_path,
                next_step=look,
            )
        words = "\n".join(self.last_lines) or "Ansible said nothing"
        raise ProvisionError(f"the playbook did not run: {words}", log_path=log_path, next_step=look)


def _reason(result: Mapping[str, Any]) -> str:
    """The words of a failing task that explain most: a command's stderr before Ansible's `non-zero return code`."""
    for key in ("stderr", "stdout", "msg"):
        lines = str(result.get(key, "")).strip().splitlines()
        if lines:
            return "\n".join(lines[-_REASON_LINES:])
    return "no reason given"
