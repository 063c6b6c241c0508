"""What cloudrun needs of this computer, looked at without changing anything."""

from __future__ import annotations

import locale
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from cloudrun.core.errors import LedgerError
from cloudrun.core.settings import LEAST_FREE_BYTES
from cloudrun.ledger import Ledger
from cloudrun.ledger.database import sqlite_version
from cloudrun.ledger.home import DATABASE
from cloudrun.plan.quantities import size_text
from cloudrun.prices import cache_folder
from cloudrun.setup.checks import Check, Look
from cloudrun.setup.versions import ssh_version

LEAST_SQLITE = (3, 35)  # the ledger writes `ON CONFLICT DO UPDATE` without naming the conflict
COMFORTABLE_BYTES = 2_000_000_000  # an environment with scikit-learn has 250 MB, and the sandbox keeps several
_UV_TIMEOUT_S = 20


def looks(project: Path) -> list[tuple[str, Look]]:
    """What there is to look at, by name. `project` is the folder of the ledger."""
    every: list[tuple[str, Callable[[], Check]]] = [
        ("python", python),
        ("ssh client", ssh_client),
        ("git", git),
        ("uv", uv),
        ("sqlite", sqlite),
        ("disk", lambda: disk(project)),
        ("home", home),
        ("ledger", lambda: ledger(project)),
        ("locale", encoding),
    ]
    return [*every]


def python() -> Check:
    return Check("python", "ok", f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})")


def ssh_client() -> Check:
    found = ssh_version()
    if found:
        return Check("ssh client", "ok", found)
    return Check("ssh client", "problem", "none: Ansible needs one", _install("openssh-client", "openssh"))


def git() -> Check:
    if shutil.which("git"):
        return Check("git", "ok", "there: what it tracks, or would track, is what is shipped")
    return Check("git", "warning", "none: all files that are not hidden are shipped", _install("git", "git"))


def uv() -> Check:
    from uv import find_uv_bin

    try:
        done = subprocess.run(
            [find_uv_bin(), "--version"], capture_output=True, text=True, timeout=_UV_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Check("uv", "problem", f"it does not run: {error}", "pip install --force-reinstall uv")
    return Check("uv", "ok", done.stdout.strip())


def sqlite() -> Check:
    found = sqlite_version()
    parts = tuple(int(part) for part in found.split(".") if part.isdecimal())
    least = ".".join(map(str, LEAST_SQLITE))
    if parts < LEAST_SQLITE:
        return Check(
            "sqlite", "problem", f"{found}: the ledger needs {least}", "use a newer Python, which brings its own"
        )
    return Check("sqlite", "ok", f"{found} (the ledger needs {least})")


def disk(project: Path) -> Check:
    free = shutil.disk_usage(project).free
    where = f"{size_text(free)} free below {project}"
    if free < LEAST_FREE_BYTES:
        return Check("disk", "problem", f"{where}: nothing is launched below {size_text(LEAST_FREE_BYTES)}", "df -h .")
    if free < COMFORTABLE_BYTES:
        return Check("disk", "warning", f"{where}: results and environments may not fit", "df -h .")
    return Check("disk", "ok", where)


def home() -> Check:
    """What of the user's own is written: caches, and the sandbox."""
    wanted = {"CLOUDRUN_CACHE_DIR": cache_folder()}
    if not os.environ.get("CLOUDRUN_SANDBOX_DIR"):
        state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111 - no error
        wanted["CLOUDRUN_SANDBOX_DIR"] = Path(state) / "cloudrun"
    closed = {variable: folder for variable, folder in wanted.items() if not _writable(folder)}
    if closed:
        words = f"{' and '.join(map(str, closed.values()))} cannot be written"
        step = f"export HOME=/a/folder/of/yours, or {' and '.join(f'{variable}=...' for variable in closed)}"
        return Check("home", "problem", words, step)
    return Check("home", "ok", f"{Path(os.path.expanduser('~'))} can be written")  # noqa: PTH111 - as above


def ledger(project: Path) -> Check:
    """Whether the ledger can be used; one that is there is opened, as every command does."""
    with closing(Ledger(project)) as opened:
        if not (opened.home / DATABASE).exists():
            if _writable(opened.home):
                return Check("ledger", "ok", f"none yet: the first run makes {opened.home}")
            return Check(
                "ledger", "problem", f"{opened.home} cannot be made", f"make {project} writable, or cd elsewhere"
            )
        try:
            _ = opened.ledger_id
        except LedgerError as error:
            return Check("ledger", "problem", str(error), error.next_step)
        if not _writable(opened.home):
            return Check("ledger", "problem", f"{opened.home} cannot be written", f"chmod -R u+rwX {opened.home}")
        return Check("ledger", "ok", f"{opened.home} ({opened.ledger_id})")


def encoding() -> Check:
    name = (sys.stdout.encoding or locale.getpreferredencoding(False)).lower()
    if name.replace("-", "") == "utf8":
        return Check("locale", "ok", "UTF-8")
    return Check("locale", "warning", f"{name}: letters it lacks are shown as escapes", "export LC_ALL=C.UTF-8")


def _writable(folder: Path) -> bool:
    """Whether something can be written in a folder, or in the one where it would be made."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            return True
    except OSError:
        return False


def _install(debian: str, brew: str) -> str:
    return f"brew install {brew}" if sys.platform == "darwin" else f"sudo apt install {debian}"
