"""The libraries of this computer that a unit's PID 1 and sshd are made of: where they are, and their byte code."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
from pathlib import Path

NAMES = ("asyncssh", "cryptography", "cffi", "_cffi_backend", "typing_extensions", "yaml")

_LOAD = "import sys; sys.path[:] = sys.argv[1:]; from cloudrun.sandbox.guest import sshd; sshd.load(); import yaml"


@functools.cache
def folders() -> tuple[str, ...]:
    """What a unit has on its import path: not cloudrun's own folder, which often is the user's project."""
    found = set()
    for name in NAMES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            origin = Path(spec.origin)
            found.add(str(origin.parent.parent if origin.name == "__init__.py" else origin.parent))
    return tuple(sorted(found))


def leave_byte_code() -> None:
    """Where an installer made none, as `pip install --no-compile`: a unit may only read, and would compile all of it at
    each boot, which takes most of a second."""
    spec = importlib.util.find_spec("asyncssh")
    if sys.dont_write_bytecode or spec is None or spec.cached is None or Path(spec.cached).exists():
        return
    subprocess.run([sys.executable, "-I", "-c", _LOAD, *sys.path], stdin=subprocess.DEVNULL, check=False)
