"""The part of cloud-init that cloudrun writes: bootcmd, write_files, ssh keys, runcmd; or a plain script.

In cloud-init's order: `bootcmd` first and at every boot; then, once in a unit's life, files and keys; then sshd starts;
last, once, `runcmd` or the script. A part that is not emulated is named in the log.
"""

from __future__ import annotations

import base64
import contextlib
import glob
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cloudrun.sandbox.guest import systemd

_ONCE = "/var/lib/cloud/instance"
_LOG = "/var/log/cloud-init-output.log"
_KNOWN = frozenset({
    "bootcmd", "write_files", "ssh_keys", "ssh_deletekeys", "ssh_authorized_keys", "ssh_pwauth", "disable_root",
    "runcmd",
})  # fmt: skip
_COMMAND_TIMEOUT_S = 3600.0


def apply_early(config: Mapping[str, Any]) -> int:
    """All that comes before sshd. Returns an exit code; a failing command does not keep the machine from booting."""
    with _logging(config):
        document = _document(config["user_data"])
        for name in sorted(document.keys() - _KNOWN):
            print(f"cloud-init: {name}: not emulated in the sandbox", flush=True)
        if config["roots_tasks"]:
            for command in document.get("bootcmd") or []:
                _run(command)
        else:
            _arm_deadline(config["prefix"], document)
        _once(config, "files", lambda: _files_and_keys(config, document))
    return 0


def apply_late(config: Mapping[str, Any]) -> int:
    """All that comes after sshd has started."""
    with _logging(config):
        if config["roots_tasks"]:
            _once(config, "commands", lambda: _commands(config["user_data"]))
    return 0


@contextlib.contextmanager
def _logging(config: Mapping[str, Any]) -> Iterator[None]:
    """Everything printed, by us and by commands, goes to the log as cloud-init does it."""
    handle = os.open(config["prefix"] + _LOG, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o640)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    yield


def _once(config: Mapping[str, Any], name: str, work: Callable[[], None]) -> None:
    marker = f"{config['prefix']}{_ONCE}/{name}"
    if not os.path.exists(marker):
        work()
        with open(marker, "wb"):
            pass


def _arm_deadline(prefix: str, document: Mapping[str, Any]) -> None:
    """Where commands for root are not run, the one thing in them that must not be lost: the date of the power-off."""
    print("cloud-init: bootcmd, write_files and runcmd are left out: this machine has no root", flush=True)
    if found := re.search(r"OnCalendar=(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC)", str(document.get("bootcmd"))):
        units = prefix + systemd.UNITS
        for name, text in (
            ("deadline.service", "[Service]\nType=oneshot\nExecStart=systemctl poweroff\n"),
            ("deadline.timer", f"[Timer]\nOnCalendar={found[1]}\nPersistent=true\n"),
        ):
            with open(f"{units}/{name}", "w", encoding="ascii") as stream:
                stream.write(text)
        _run(["systemctl", "start", "deadline.timer"])


def _document(user_data: str) -> dict[str, Any]:
    if not user_data.startswith("#cloud-config"):
        if user_data.strip() and not user_data.startswith("#!"):
            print("cloud-init: user-data of this kind is not emulated in the sandbox", flush=True)
        return {}
    import yaml  # here, so that PID 1 does not carry it

    try:
        document = yaml.safe_load(user_data)
    except yaml.YAMLError as error:
        print(f"cloud-init: user-data is not YAML: {error}", flush=True)
        return {}
    return document if isinstance(document, dict) else {}


def _files_and_keys(config: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    prefix = config["prefix"]
    if config["roots_tasks"]:
        for entry in document.get("write_files") or []:
            _write_file(entry)
    if document.get("ssh_deletekeys", True):
        for path in glob.glob(f"{prefix}/etc/ssh/ssh_host_*key*"):
            os.unlink(path)
    for name, text in (document.get("ssh_keys") or {}).items():
        kind, _, half = str(name).rpartition("_")
        path = f"{prefix}/etc/ssh/ssh_host_{kind}_key" + (".pub" if half == "public" else "")
        _write(path, str(text).encode(), 0o644 if half == "public" else 0o600)
    if keys := document.get("ssh_authorized_keys"):
        with open(f"{prefix}/home/{config['user']}/.ssh/authorized_keys", "a", encoding="utf-8") as stream:
            stream.writelines(f"{key}\n" for key in keys)


def _write_file(entry: Mapping[str, Any]) -> None:
    content = entry.get("content", "")
    data = content if isinstance(content, bytes) else str(content).encode()
    encoding = str(entry.get("encoding", "text/plain"))
    if encoding in ("b64", "base64"):
        data = base64.b64decode(data)
    elif encoding != "text/plain":
        print(f"cloud-init: write_files: encoding {encoding}: not emulated in the sandbox", flush=True)
        return
    path = str(entry["path"])
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        _write(path, data, int(str(entry.get("permissions", "0644")), 8), append=bool(entry.get("append", False)))
    except OSError as error:
        print(f"cloud-init: write_files: {error}", flush=True)


def _write(path: str, data: bytes, mode: int, *, append: bool = False) -> None:
    flags = os.O_CREAT | os.O_WRONLY | (os.O_APPEND if append else os.O_TRUNC)
    with os.fdopen(os.open(path, flags, mode), "wb") as stream:
        os.fchmod(stream.fileno(), mode)
        stream.write(data)


def _commands(user_data: str) -> None:
    if user_data.startswith("#!"):
        script = f"{_ONCE}/user-data.sh"
        _write(script, user_data.encode(), 0o700)
        _run([script])
    for command in _document(user_data).get("runcmd") or []:
        _run(command)


def _run(command: str | list[Any]) -> None:
    """One command, as cloud-init runs it: a string by the shell, a list as it is. Its failure is logged, no more."""
    words = ["/bin/sh", "-c", command] if isinstance(command, str) else [str(word) for word in command]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, timeout=_COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"cloud-init: {words}: {error}", flush=True)
        return
    if done.returncode != 0:
        print(f"cloud-init: {words} ended with {done.returncode}", flush=True)
