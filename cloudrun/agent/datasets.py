"""Data that the runs of a unit share: brought once, read-only, linked into the work/ of each run that names it."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any, Callable

from cloudrun.agent import durable, reuse, shipping
from cloudrun.agent.call import Call
from cloudrun.agent.errors import AgentError
from cloudrun.agent.locks import folder_lock
from cloudrun.agent.manifest import fingerprint
from cloudrun.core import rundir, wire
from cloudrun.core.rundir import RunDir, read_object, safe_relative, write_json

PROGRESS_S = 0.2  # how often to tell


def is_ready(key: str) -> bool:
    """Whether the set is there as it was brought. One that a job has changed (a job that is root may write anywhere) is
    none: it goes, and is brought again."""
    known = read_object(Path(rundir.data_ready(_checked(key))))
    if known is None:
        return False
    folder = str(Path.cwd() / rundir.data_dir(key))
    if known.get("files") == _fingerprints(folder):
        return True
    with contextlib.suppress(OSError):
        os.unlink(rundir.data_ready(key))
    durable.remove_tree(folder)
    return False


def _fingerprints(folder: str) -> dict[str, list[int]]:
    """Of everything in it, by path; links and their like have one too."""
    found = {}
    for here, folders, names in os.walk(folder):
        for name in (*names, *(each for each in folders if os.path.islink(os.path.join(here, each)))):
            path = os.path.join(here, name)
            with contextlib.suppress(OSError):
                found[os.path.relpath(path, folder)] = fingerprint(os.lstat(path))
    return found


def ship(call: Call) -> dict[str, Any]:
    """The `ship` of area "data": the client's own files. The key stands where a run's directory would."""
    key = _checked(call.arguments["run_dir"])
    inline = bool(call.arguments.get("inline"))
    entries = shipping.read_manifest(call)
    part = Path.cwd() / (rundir.data_dir(key) + ".part")
    with shipping.explained(), folder_lock(str(part), call.alive):
        delivery = shipping.Delivery(call, str(part / "files"), str(part / "incoming"), entries)
        if is_ready(key):
            delivery.pass_over(inline)
        else:
            os.makedirs(part / "files", mode=0o700, exist_ok=True)
            delivery.receive(inline, reuse.sift(str(part / "files"), entries, {}, call.alive))
            call.while_alive(lambda: _complete(part, key))
    durable.remove_tree(str(part))
    return delivery.reply()


def fetch(call: Call) -> dict[str, Any]:
    """`fetch_data`: the unit gets the files itself, from their presigned addresses."""
    from cloudrun.agent import download

    key, files = _checked(call.arguments["key"]), call.arguments["files"]
    if not all(safe_relative(file["path"]) for file in files):
        raise AgentError("usage", f"the data set {key} names a file that is not a plain relative path")
    part = Path.cwd() / (rundir.data_dir(key) + ".part")
    last = [0.0]

    def tell(done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total or now - last[0] >= PROGRESS_S:
            last[0] = now
            call.send(wire.PROGRESS, {"done": done, "total": total})

    with shipping.explained(), folder_lock(str(part), call.alive):
        if not is_ready(key):
            os.makedirs(part / "files", mode=0o700, exist_ok=True)
            call.while_alive(lambda: download.fetch(part / "files", files, tell))
            call.while_alive(lambda: _complete(part, key))
    durable.remove_tree(str(part))
    return {}


def link(run: RunDir, data: dict[str, str], within: Callable[[], Path] = Path.cwd) -> None:
    """Put each data set where the job looks for it: below work/, a link to the shared folder; to the file in it where
    the set is one file of the link's own name. Raises AgentError where it is not there, or something is in its place.
    """
    for name, key in data.items():
        if not safe_relative(name) or not is_ready(key):
            raise AgentError("usage", f"the data set {key} for {name!r} is not on the unit")
        place = os.path.join(run.work, name)
        target = _target(str(within() / rundir.data_dir(key)), os.path.basename(name))
        os.makedirs(os.path.dirname(place), exist_ok=True)
        try:
            os.symlink(target, place)
        except FileExistsError:
            if not os.path.islink(place) or os.readlink(place) != target:
                raise AgentError("transfer", f"{name} is in the project already, and named as data too") from None


def _target(folder: str, name: str) -> str:
    file = os.path.join(folder, name)
    return file if os.listdir(folder) == [name] and os.path.isfile(file) else folder


def _complete(part: Path, key: str) -> None:
    """Make the files read-only, give their folder its name, and say last that they are there."""
    files, folder = str(part / "files"), Path.cwd() / rundir.data_dir(key)
    for here, _, names in os.walk(files):
        for name in names:
            os.chmod(os.path.join(here, name), 0o400)
        if here != files:
            os.chmod(here, 0o500)
    os.sync()  # the marker shall not be on the disk before what it stands for
    durable.remove_tree(str(folder))  # of one that was killed just here: it can be read-only already
    os.rename(files, folder)
    os.chmod(folder, 0o500)  # after the rename: a folder that one may not write cannot be moved
    write_json(Path.cwd() / rundir.data_ready(key), {"key": key, "files": _fingerprints(str(folder))})


def _checked(key: str) -> str:
    if not safe_relative(key) or "/" in key:
        raise AgentError("usage", f"{key!r} is not the key of a data set")
    return key
