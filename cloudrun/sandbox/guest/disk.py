"""What a unit's disk holds: its own /etc, /home, /var and so on, and which host paths appear in it read-only.

Everything here works relative to the working directory, which is the unit's root, and never follows a symbolic link:
on a restart the disk is whatever the unit has made of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable, Mapping
from typing import Any

from cloudrun.core.rundir import BASE

# Folders of the host that make it a Linux machine. Where they are links on the host they are links in the unit.
SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix")
# Parts of /etc that are the same for every machine of this distribution; private keys among them stay unreadable.
SHARED_ETC = ("ssl", "ca-certificates", "pki", "crypto-policies", "alternatives", "fonts", "ld.so.conf.d")
_COPIED_ETC = (
    "ld.so.cache", "ld.so.conf", "localtime", "os-release", "debian_version", "lsb-release", "resolv.conf", "services",
    "protocols", "mime.types", "gai.conf", "host.conf", "login.defs", "shells", "inputrc", "profile", "bash.bashrc",
    "ca-certificates.conf",
)  # fmt: skip
_FOLDERS = (
    "etc/ssh", "etc/systemd/system", "etc/uv", "home", "root", "opt", "srv", "media", "mnt", "proc", "sys", "dev",
    "var/lib/cloud/instance", "var/lib/systemd/timers", "var/log", "var/cache", "var/spool", "usr",
)  # fmt: skip
_FRESH = ("run", "tmp", "var/tmp")  # emptied at every boot
DEVICES = ("dev/null", "dev/zero", "dev/full", "dev/random", "dev/urandom", "dev/tty")
LOCAL_BIN = "usr-local-bin"  # where the unit's own /usr/local/bin is kept, since /usr is the host's
HOST_LOCAL_BIN = "/run/cloudrun/host-bin"  # where the host's is mounted


def prepare(config: Mapping[str, Any], host_etc: Mapping[str, bytes]) -> None:
    """Bring the disk to the state a boot starts from. `host_etc` is what `read_host_etc` found."""
    for path in _FRESH:
        _empty(path)
    for path in ("run/lock", "run/systemd/system", "run/cloudrun"):
        folder(path)
    if config["first_boot"]:
        _install(config, host_etc)


def _empty(path: str) -> None:
    """A new, empty folder in place of whatever is there."""
    above, _, name = path.rpartition("/")
    parent = open_folder(above)
    try:
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        except OSError:
            shutil.rmtree(name, dir_fd=parent)  # does not follow links
        os.mkdir(name, dir_fd=parent)
        os.chmod(name, 0o1777 if name == "tmp" else 0o755, dir_fd=parent)
    finally:
        os.close(parent)


def _install(config: Mapping[str, Any], host_etc: Mapping[str, bytes]) -> None:
    """Fill an empty disk; being empty it holds no link that could lead elsewhere."""
    for path in (*_FOLDERS, LOCAL_BIN):
        folder(path)
    for name, content in host_etc.items():
        write(f"etc/{name}", content)
    for link, target in (("var/run", "/run"), ("var/lock", "/run/lock"), ("etc/mtab", "/proc/self/mounts")):
        os.symlink(target, link)
    for name, text in etc_files(config).items():
        write(f"etc/{name}", text.encode())
    home = f"home/{config['user']}"
    folder(f"{home}/.ssh")
    os.chmod(f"{home}/.ssh", 0o700)
    keys = "".join(f"{key.strip()}\n" for key in config["authorized_keys"])
    write(f"{home}/.ssh/authorized_keys", keys.encode(), 0o600)
    os.chmod("root", 0o700)
    for fingerprint, path in config["environments"].items():
        folder(f"{home}/{BASE}/envs")
        os.symlink(path, f"{home}/{BASE}/envs/{fingerprint}")
    commands = {name: f"/usr/local/bin/{name}" for name in os.listdir("/usr/local/bin")} | dict(config["tools"])
    for name, target in commands.items():
        if name.startswith("python"):
            # Not a link: started through one, a Python takes this folder for its home, finds the system's standard
            # library near it and hands both on to the virtual environments that are made with it.
            write(f"{LOCAL_BIN}/{name}", f'#!/bin/sh\nexec {in_unit(target)} "$@"\n'.encode(), 0o755)
        else:
            os.symlink(in_unit(target), f"{LOCAL_BIN}/{name}")


def in_unit(path: str) -> str:
    """Where a program of the host is found in the unit, whose /usr/local/bin is its own."""
    return f"{HOST_LOCAL_BIN}/{path.removeprefix('/usr/local/bin/')}" if path.startswith("/usr/local/bin/") else path


def etc_files(config: Mapping[str, Any]) -> dict[str, str]:
    """The files of /etc that are this unit's own. Both names of user 0 are there; the login user's comes first."""
    user, host, address = config["user"], config["hostname"], config["address"]
    files = {
        "passwd": f"{user}:x:0:0::/home/{user}:{shell()}\nroot:x:0:0:root:/root:{shell()}\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
        "group": f"{user}:x:0:\nroot:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
        "hosts": f"127.0.0.1 localhost\n::1 localhost\n{address} {host}\n",
        "hostname": f"{host}\n",
        "machine-id": config["instance_id"].removeprefix("i-").rjust(32, "0") + "\n",
    }
    if config["index_url"]:
        files["uv/uv.toml"] = f'[[index]]\nurl = "{config["index_url"]}"\ndefault = true\n'
        files["pip.conf"] = f"[global]\nindex-url = {config['index_url']}\n"
    return files


def shell() -> str:
    return "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"


def read_host_etc() -> dict[str, bytes]:
    """The content of those files of the host's /etc that everybody may read, links followed."""
    found: dict[str, bytes] = {}
    for name in _COPIED_ETC:
        try:
            with open(f"/etc/{name}", "rb") as stream:
                status = os.fstat(stream.fileno())
                if stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH:
                    found[name] = stream.read()
        except OSError:
            continue  # not on this distribution
    return found


def folder(path: str) -> None:
    """Make a folder and those above it. A link on the way is refused."""
    os.close(open_folder(path))


def open_folder(path: str) -> int:
    """An O_PATH descriptor of a folder below the working directory, made where it is missing. Links are refused."""
    handle = os.open(".", os.O_PATH | os.O_DIRECTORY)
    for part in filter(None, path.split("/")):
        with contextlib.suppress(FileExistsError):
            os.mkdir(part, 0o755, dir_fd=handle)
        inner = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
        os.close(handle)
        handle = inner
    return handle


def open_file(path: str) -> int:
    """As `open_folder`, for a file to mount another one on."""
    above, _, name = path.rpartition("/")
    handle = open_folder(above)
    try:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o644, dir_fd=handle))
        return os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=handle)
    finally:
        os.close(handle)


def write(path: str, content: bytes, mode: int = 0o644) -> None:
    """A new file. Raises FileExistsError where there is one, link or not."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)


def outermost(paths: Iterable[str]) -> list[str]:
    """Absolute paths without those that lie below another one, or below what every unit sees."""
    kept: list[str] = []
    for path in sorted({form(path) for path in paths for form in (os.path.abspath, os.path.realpath)}):
        above = [*kept, *(f"/{name}" for name in SYSTEM)]
        if not any(path == other or path.startswith(other + "/") for other in above):
            kept.append(path)
    return kept
