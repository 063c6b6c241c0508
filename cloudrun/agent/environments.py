"""An environment as it travels from unit to unit: its seal, which lists all of it, and then the files' contents.

It is sealed as soon as it is built, before any job can have changed it. The seal's digest is what the receiving side is
told to expect by the client, so what arrives is, bit for bit, what was built; what jobs have added since (byte code) is
not in it, and a file that they have changed breaks the copy off.

The seal is a JSON object: `machine`; `home`; `needs`, the Python of the system that it is linked to, or ""; `links`,
[path, target]; and `trees`, [{place, entries}], the environment last and before it the Python that uv has installed for
it, if any. `place` and a link's path are relative to the home, which is the same on both units. An entry is
[path, "d" | "f" | "l", mode, mtime in ns, size, sha256 of a file or target of a link]. On the wire eight bytes say how
long the seal is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import stat
import struct
from pathlib import Path
from typing import Any, BinaryIO, Iterator

from cloudrun.agent import durable
from cloudrun.agent.errors import AgentError
from cloudrun.core import rundir
from cloudrun.core.rundir import LIST_MAX_BYTES, safe_relative
from cloudrun.core.wire import Readable

CHUNK = 1024 * 1024
_LENGTH = struct.Struct(">Q")
_FINGERPRINT = re.compile(r"[0-9a-z]{1,64}")
_PERMISSIONS = 0o755  # nothing that arrives is for others to write, or takes somebody's rights along


def checked(fingerprint: Any) -> str:
    if not isinstance(fingerprint, str) or not _FINGERPRINT.fullmatch(fingerprint):
        raise AgentError("usage", f"{fingerprint!r} is not the name of an environment")
    return fingerprint


def seal_path(fingerprint: str) -> Path:
    return Path(rundir.env_dir(fingerprint) + ".seal")


# -- on the unit that has it -------------------------------------------------------------------------------------------


def seal(fingerprint: str) -> dict[str, Any]:
    """Write down all that is in it; returns the seal's `digest`, and of what it lists `files` and `bytes`.

    Raises AgentError where it is not ready, or is of a kind that cannot travel.
    """
    folder = rundir.env_dir(fingerprint)
    if os.path.islink(folder) or not os.path.exists(rundir.env_ready(fingerprint)):
        raise AgentError("usage", f"the environment {fingerprint} is not one that was built on this unit")
    home = os.getcwd()
    needs, place, links = _interpreter(folder, home)
    trees = [{"place": each, "entries": list(_listed(each))} for each in [*place, folder]]
    found = {"machine": platform.machine(), "home": home, "needs": needs, "links": links, "trees": trees}
    text = json.dumps(found, separators=(",", ":")).encode("ascii")
    _write(seal_path(fingerprint), text)
    sizes = [entry[4] for tree in trees for entry in tree["entries"]]
    return {"digest": hashlib.sha256(text).hexdigest(), "files": len(sizes), "bytes": sum(sizes)}


def _interpreter(folder: str, home: str) -> tuple[str, list[str], list[list[str]]]:
    """The Python that the environment is linked to: the path of the system's, or where below the home uv has put one,
    with the link that leads there by its minor version."""
    within = os.path.join(home, folder) + os.sep
    target = os.path.join(within, "bin", "python")
    while target.startswith(within):  # from name to name, and then out of it
        target = os.path.normpath(os.path.join(os.path.dirname(target), os.readlink(target)))
    prefix = os.path.dirname(os.path.dirname(target))
    real = os.path.realpath(prefix)
    if not real.startswith(home + os.sep):
        return target, [], []
    place = os.path.relpath(real, home)
    if prefix == real:
        return "", [place], []
    name = os.path.relpath(prefix, home)
    if not (safe_relative(name) and os.path.islink(prefix)):
        raise AgentError("usage", f"the environment's Python, {target}, is not where it can be copied from")
    return "", [place], [[name, os.readlink(prefix)]]


def _listed(place: str) -> Iterator[list[Any]]:
    """Everything below, folders before what is in them."""
    for here, folders, names in os.walk(place):
        folders.sort()
        for name in sorted([*names, *folders]):
            whole = os.path.join(here, name)
            info = os.lstat(whole)
            path, mode, time = os.path.relpath(whole, place), info.st_mode & _PERMISSIONS, info.st_mtime_ns
            if not safe_relative(path):
                raise AgentError("usage", f"{whole!r} has a name that cannot travel")
            if stat.S_ISREG(info.st_mode):
                yield [path, "f", mode, time, info.st_size, _digest_of(whole, info.st_size)]
            elif stat.S_ISLNK(info.st_mode):
                yield [path, "l", 0, time, 0, os.readlink(whole)]
            elif stat.S_ISDIR(info.st_mode):
                yield [path, "d", mode | stat.S_IRWXU, time, 0, ""]
            else:
                raise AgentError("usage", f"{whole} is no file, folder or link")


def _digest_of(path: str, size: int) -> str:
    digest = hashlib.sha256()
    for data in _contents(path, size):
        digest.update(data)
    return digest.hexdigest()


def _contents(path: str, size: int) -> Iterator[bytes]:
    """Exactly `size` bytes. Raises OSError where the file has another size by now, or is none any more."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb", buffering=0) as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode) or info.st_size != size:
            raise OSError(f"{path} was changed")
        left = size
        while left:
            data = file.read(min(left, CHUNK))
            if not data:
                raise OSError(f"{path} was changed")
            left -= len(data)
            yield data


def send(fingerprint: str, out: BinaryIO) -> None:
    """Write the seal and what it lists to `out`. Raises OSError where something is not as it was sealed."""
    text = seal_path(fingerprint).read_bytes()
    out.write(_LENGTH.pack(len(text)) + text)
    for tree in json.loads(text)["trees"]:
        for path, kind, _, _, size, _ in tree["entries"]:
            if kind == "f":
                out.writelines(_contents(os.path.join(tree["place"], path), size))
    out.flush()


# -- on the unit that gets it ------------------------------------------------------------------------------------------


def receive(fingerprint: str, digest: str, stream: Readable, part: str) -> dict[str, Any]:
    """Unpack into the folder `part`, and give it its name when it is there, whole; returns `files` and `bytes`.

    Raises AgentError where what comes is not what `digest` stands for, or is of no use on this unit; OSError.
    """
    (length,) = _LENGTH.unpack(_read(stream, _LENGTH.size))
    if length > LIST_MAX_BYTES:
        raise AgentError("transfer", "what comes is not a sealed environment")
    text = _read(stream, length)
    if hashlib.sha256(text).hexdigest() != digest:
        raise AgentError("transfer", "the environment is not the one that was sealed")
    found = json.loads(text)
    _fits(found, fingerprint)
    trees = found["trees"]
    for number, tree in enumerate(trees):
        _unpack(os.path.join(part, str(number)), tree["entries"], stream)
    for number, tree in enumerate(trees[:-1]):
        _place(os.path.join(part, str(number)), tree["place"])
    for path, target in found["links"]:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.symlink(target, path)
    _runs(os.path.join(part, str(len(trees) - 1), "bin", "python"))
    if not os.path.exists(rundir.env_ready(fingerprint)):
        durable.remove_tree(trees[-1]["place"])  # whatever it is, it is not whole
    _write(seal_path(fingerprint), text)
    _place(os.path.join(part, str(len(trees) - 1)), trees[-1]["place"])
    sizes = [entry[4] for tree in trees for entry in tree["entries"]]
    return {"files": len(sizes), "bytes": sum(sizes)}


def _fits(found: dict[str, Any], fingerprint: str) -> None:
    """Raises AgentError where it is for another machine, or would be put where nothing of ours belongs."""
    here = (platform.machine(), os.getcwd())
    if (found["machine"], found["home"]) != here:
        raise AgentError("transfer", f"the environment is for {found['machine']} and {found['home']}")
    places = [tree["place"] for tree in found["trees"]]
    names = [*places, *(path for path, _ in found["links"])]
    if places[-1] != rundir.env_dir(fingerprint) or not all(map(safe_relative, names)):
        raise AgentError("transfer", f"the environment would be put elsewhere: {', '.join(names)}")
    for tree in found["trees"]:
        for path, *_ in tree["entries"]:
            if not safe_relative(path):
                raise AgentError("transfer", f"refused to write {path!r}: not a plain relative path")

    if found["needs"]:
        _runs(found["needs"])


def _runs(python: str) -> None:
    if not os.access(python, os.X_OK):
        raise AgentError("transfer", f"this unit has no {os.path.realpath(python)}, which the environment needs")


def _unpack(folder: str, entries: list[list[Any]], stream: Readable) -> None:
    """Fill the new `folder`. Links come last, so that nothing is ever written through one."""
    os.mkdir(folder)
    os.chmod(folder, _PERMISSIONS)
    links = []
    for path, kind, mode, time, size, content in entries:
        whole = os.path.join(folder, path)
        if kind == "d":
            os.mkdir(whole)
            os.chmod(whole, mode & _PERMISSIONS)
        elif kind == "l":
            links.append((content, whole))
        else:
            _receive_file(whole, mode & _PERMISSIONS, size, content, stream)
            os.utime(whole, ns=(time, time))  # byte code is good for a source of this time
    for target, whole in links:
        os.symlink(target, whole)


def _receive_file(path: str, mode: int, size: int, digest: str, stream: Readable) -> None:
    found = hashlib.sha256()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o600), "wb") as file:
        left = size
        while left:
            data = _read(stream, min(left, CHUNK))
            found.update(data)
            file.write(data)
            left -= len(data)
        os.fchmod(file.fileno(), mode)
    if found.hexdigest() != digest:
        raise AgentError("transfer", f"{os.path.basename(path)} is not what was sealed: it was changed on its unit")


def _read(stream: Readable, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise AgentError("transfer", "the environment broke off")
    return data


def _place(folder: str, place: str) -> None:
    """Give a folder its name. One that is there already is as good."""
    os.makedirs(os.path.dirname(place), exist_ok=True)
    try:
        os.rename(folder, place)
    except OSError:
        if not os.path.isdir(place):
            raise


def _write(path: Path, text: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def unfinished(fingerprint: str) -> Iterator[str]:
    """A new folder beside the environment's place, for what is on its way there; in the end it is gone."""
    part = rundir.env_dir(fingerprint) + ".copying"
    durable.remove_tree(part)  # of one that was killed
    os.makedirs(part, mode=0o755)
    try:
        yield part
    finally:
        durable.remove_tree(part)
