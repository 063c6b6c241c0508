"""Single files and folders over SFTP: for a user who wants this file there, not for a run's project or outputs."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import paramiko

from cloudrun.core.errors import ConnectionLost, TransferError, UsageError

SILENCE_S = 30.0  # between two answers of the server


def put(client: paramiko.SSHClient, local: Path, remote: str) -> None:
    """Copy `local` to `remote`; into it where that is a folder, as `cp` does. Links are followed."""
    if not local.exists():
        raise UsageError(f"{local} does not exist", next_step="check the path")
    with _sftp(client, remote) as sftp:
        target = _below_home(remote)
        if _is_folder(sftp, target) or remote.endswith("/"):
            _make_folder(sftp, target)
            target = f"{target.rstrip('/')}/{local.resolve().name}"
        if not local.is_dir():
            _put_file(sftp, local, target)
            return
        for folder, _, names in os.walk(local):
            relative = os.path.relpath(folder, local)
            there = target if relative == "." else f"{target}/{relative}"
            _make_folder(sftp, there)
            for name in names:
                path = Path(folder, name)
                if path.is_file():
                    _put_file(sftp, path, f"{there}/{name}")


def get(client: paramiko.SSHClient, remote: str, local: Path) -> None:
    """Copy `remote` to `local`; into it where that is a folder. Only folders and regular files come."""
    with _sftp(client, remote) as sftp:
        source = _below_home(remote)
        info = sftp.stat(source)
        target = local / source.rstrip("/").rpartition("/")[2] if local.is_dir() else local
        if stat.S_ISDIR(info.st_mode or 0):
            _get_folder(sftp, source.rstrip("/"), target)
        else:
            _get_file(sftp, source, target, info)


@contextlib.contextmanager
def _sftp(client: paramiko.SSHClient, remote: str) -> Iterator[paramiko.SFTPClient]:
    """An SFTP channel, its errors made ours. OSErrors of the local side say their own path."""
    try:
        with client.open_sftp() as sftp:
            channel = sftp.get_channel()
            if channel is not None:
                channel.settimeout(SILENCE_S)
            yield sftp
    except (EOFError, TimeoutError, paramiko.SSHException) as error:
        raise ConnectionLost(f"the connection broke while copying {remote}: {error}") from error
    except OSError as error:
        where = error.filename or remote
        raise TransferError(
            f"could not copy {where}: {error.strerror or error}",
            next_step="check both paths and the room on both disks",
        ) from error


def _below_home(remote: str) -> str:
    """SFTP knows no `~`, but takes relative paths from the home."""
    return remote[2:] or "." if remote.startswith("~/") else "." if remote == "~" else remote


def _is_folder(sftp: paramiko.SFTPClient, path: str) -> bool:
    try:
        return stat.S_ISDIR(sftp.stat(path).st_mode or 0)
    except FileNotFoundError:
        return False


def _make_folder(sftp: paramiko.SFTPClient, path: str) -> None:
    """Like `mkdir -p`."""
    if not path or _is_folder(sftp, path):
        return
    _make_folder(sftp, path.rstrip("/").rpartition("/")[0])
    sftp.mkdir(path)


def _put_file(sftp: paramiko.SFTPClient, local: Path, remote: str) -> None:
    sftp.put(str(local), remote)  # it compares the sizes afterwards
    sftp.chmod(remote, stat.S_IMODE(local.stat().st_mode))


def _get_folder(sftp: paramiko.SFTPClient, remote: str, local: Path) -> None:
    local.mkdir(parents=True, exist_ok=True)
    for item in sftp.listdir_attr(remote):
        if item.filename in (".", "..") or "/" in item.filename:
            raise TransferError(f"{remote} lists a file named {item.filename!r}, which is refused")
        if stat.S_ISDIR(item.st_mode or 0):
            _get_folder(sftp, f"{remote}/{item.filename}", local / item.filename)
        elif stat.S_ISREG(item.st_mode or 0):
            _get_file(sftp, f"{remote}/{item.filename}", local / item.filename, item)


def _get_file(sftp: paramiko.SFTPClient, remote: str, local: Path, info: paramiko.SFTPAttributes) -> None:
    """Whole or not at all: a temporary file in the same folder, then its name."""
    local.parent.mkdir(parents=True, exist_ok=True)
    temporary = local.with_name(f".{local.name}.{os.getpid()}.part")
    try:
        sftp.get(remote, str(temporary), max_concurrent_prefetch_requests=512)
        temporary.chmod(stat.S_IMODE(info.st_mode or 0o644))
        temporary.replace(local)
    finally:
        temporary.unlink(missing_ok=True)
