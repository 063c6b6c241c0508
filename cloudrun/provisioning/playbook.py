"""Runs the playbook that gives a unit its environment, with the pinned host key and no settings of the user's."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloudrun.core.errors import Cancelled, HostKeyMismatch, ProvisionError, UsageError
from cloudrun.core.records import Environment, SshTarget
from cloudrun.core.rundir import env_dir
from cloudrun.provisioning.resources import inventory_dir, playbook_dir

_POLL_S = 0.1
_STOP_TIMEOUT_S = 6.0  # the driver gives Ansible 2 s, and is slow to notice by its poll interval
_CHECK_TIMEOUT_S = 60.0
# Enough to start Python and ssh. Not PYTHONDONTWRITEBYTECODE: it has Ansible compiled at each start, which takes 0.5 s.
_KEPT_VARIABLES = (
    *("HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "PYTHONPATH", "PYTHONHOME", "PYTHONPYCACHEPREFIX"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV"),
)


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
    book = _existing(playbook or playbook_dir() / "unit.yml")
    private_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    private_dir = private_dir.resolve()
    log_path = private_dir / "provision.log"
    job = {
        "private_data_dir": str(private_dir),
        "playbook": str(book),
        "inventory": [str(inventory_dir()), str(_write_inventory(target, environment, private_dir))],
        "cmdline": "-v" if verbose else "",
        "ident": "provision",
    }
    outcome = _Outcome()
    with log_path.open("w", encoding="utf-8") as log, _driver(job, private_dir) as process:
        deadline = time.monotonic() + timeout_s
        for line in _lines(process, deadline, cancelled):
            text = outcome.take(line)
            if text is not None:
                log.write(text + "\n")
                if on_line is not None:
                    on_line(text)
        if not outcome.status and cancelled is not None and cancelled.is_set():
            raise Cancelled("provisioning was cancelled")
        if not outcome.status and time.monotonic() >= deadline:
            raise ProvisionError(
                f"provisioning took longer than {timeout_s:.0f} s", log_path=log_path, next_step=f"less {log_path}"
            )
    outcome.require_success(target, log_path)
    return log_path


def check_playbook(playbook: Path | None = None, *, cache_dir: Path | None = None) -> None:
    """Refuse a playbook that Ansible cannot read, before anything is launched for it.

    Ansible takes 0.7 s to say so; with `cache_dir`, the digest of a good one is remembered there. Raises
    ProvisionError with Ansible's message, UsageError where there is no such file or no ssh client.
    """
    require_ssh_client()
    book = _existing(playbook or playbook_dir() / "unit.yml")
    remembered = None
    if cache_dir is not None:
        remembered = cache_dir / "playbooks" / _folder_digest(book)
        if remembered.exists():
            return
    command = [_ansible_playbook(), "--syntax-check", "-i", str(inventory_dir()), str(book)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
            env=_ansible_environment(None),
            timeout=_CHECK_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProvisionError(f"ansible-playbook could not check {book}: {error}") from error
    if done.returncode != 0:
        reason = done.stderr.strip() or done.stdout.strip()
        raise ProvisionError(f"Ansible cannot read the playbook {book}:\n{reason}", next_step=f"correct {book}")
    if remembered is not None:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        remembered.touch()


def require_ssh_client() -> None:
    """Raises UsageError where there is no `ssh`, which Ansible needs."""
    if shutil.which("ssh") is None:
        raise UsageError("there is no ssh client here, and Ansible needs one", next_step="apt install openssh-client")


# -- what Ansible is told --------------------------------------------------------------------------------------------


def _write_inventory(target: SshTarget, environment: Environment, private_dir: Path) -> Path:
    """What the unit is to have, and how to reach it: with its pinned key, without the user's ssh settings and agent."""
    known_hosts = private_dir / "known_hosts"
    name = target.host if target.port == 22 else f"[{target.host}]:{target.port}"
    key_type, key = target.host_key.split()[:2]
    known_hosts.write_text(f"{name} {key_type} {key}\n", encoding="ascii")
    options = {
        "UserKnownHostsFile": _ssh_quoted(known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "HostKeyAlgorithms": key_type,
        "UpdateHostKeys": "no",
        "IdentityFile": _ssh_quoted(target.key_path.resolve()),
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "PreferredAuthentications": "publickey",
    }
    arguments = ["-F", "/dev/null"]
    for option, value in options.items():
        arguments += ["-o", f"{option}={value}"]
    host = {
        "ansible_host": target.host,
        "ansible_port": target.port,
        "ansible_user": target.user,
        "ansible_ssh_common_args": shlex.join(arguments),
        "python": environment.python,
        "requirements": list(environment.requirements),
        "environment_dir": env_dir(environment.fingerprint),
    }
    path = private_dir / "hosts.json"
    path.write_text(json.dumps({"all": {"hosts": {"unit": host}}}, indent=2), encoding="utf-8")
    return path


def _ssh_quoted(path: Path) -> str:
    """A path as ssh_config wants it: in quotes for spaces, % doubled."""
    return '"' + str(path).replace("%", "%%") + '"'


def _ansible_environment(private_dir: Path | None) -> dict[str, str]:
    """What Ansible may know of the caller's environment: not its ANSIBLE_* variables, and no keys, since ansible-runner
    writes the whole of it to a file."""
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    environment["PATH"] = os.pathsep.join([*_script_folders(), os.environ.get("PATH", os.defpath)])
    environment["ANSIBLE_CONFIG"] = str(playbook_dir() / "ansible.cfg")
    environment["ANSIBLE_HOST_KEY_CHECKING"] = "True"  # ansible-runner says False where nobody says anything
    # Ansible refuses to start in another encoding, and its messages are read.
    environment["LC_ALL"] = "en_US.UTF-8" if sys.platform == "darwin" else "C.UTF-8"
    environment["OBJC_DISABLE_INITIALIZE_FORK_SAFETY"] = "YES"  # macOS ends forked Python workers otherwise
    if private_dir is not None:
        environment["ANSIBLE_HOME"] = str(private_dir / "ansible")
    return environment


def _script_folders() -> list[str]:
    """Where ansible-playbook may be: the environment that cloudrun runs in need not be activated."""
    user_scheme = sysconfig.get_preferred_scheme("user")
    folders = [
        sysconfig.get_path("scripts"),
        str(Path(sys.executable).parent),
        sysconfig.get_path("scripts", user_scheme),
    ]
    return list(dict.fromkeys(folders))


def _ansible_playbook() -> str:
    found = shutil.which("ansible-playbook", path=_ansible_environment(None)["PATH"])
    if found is None:
        raise ProvisionError(
            "ansible-playbook is missing from this installation", next_step="pip install --force-reinstall ansible-core"
        )
    return found


def _existing(playbook: Path) -> Path:
    if not playbook.is_file():
        raise UsageError(f"there is no playbook {playbook}")
    return playbook.resolve()


def _folder_digest(book: Path) -> str:
    """Over the playbook, what lies beside it and the inventory, since it may include them."""
    digest = hashlib.sha256()
    for folder in (book.parent, inventory_dir()):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(f"{path} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


# -- the driver ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _driver(job: Mapping[str, Any], private_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The driver's process, at work on `job`; it and Ansible have ended when the block is left, however that is."""
    _ansible_playbook()
    process = subprocess.Popen(
        # -P: a file named like a module of ours, in whatever folder this is, is not imported
        [sys.executable, "-P", "-m", "cloudrun.provisioning.driver"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=private_dir,
        env=_ansible_environment(private_dir),
        start_new_session=True,  # a Ctrl-C at the terminal is ours to handle
    )
    assert process.stdin is not None  # noqa: S101  # mypy: it is a pipe
    try:
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
        yield process
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(b"stop\n")  # said aloud: a forked child of ours may hold the pipe open
            process.stdin.close()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


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
    for key in ("stderr", "msg", "stdout"):
        text = str(result.get(key, "")).strip()
        if text and not (key == "msg" and text == "non-zero return code" and result.get("stdout")):
            return text
    return "no reason given"
