"""The agent as one file: the same bytes from the same source, named by their digest."""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

from cloudrun.core import rundir

PACKAGE = Path(__file__).resolve().parent.parent
SHARED = ("core/rundir.py", "core/wire.py")  # what both sides import
# Its byte code, where an earlier one has left it (`agent.compiled`), is taken before the archive's sources.
MAIN = """import os
import sys

compiled = sys.path[0][: -len("pyz")] + str(sys.implementation.cache_tag)
if os.path.isdir(compiled):
    sys.path.insert(0, compiled)

from cloudrun.agent.serve import main

main()
"""
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip file can hold


@dataclass(frozen=True)
class Archive:
    data: bytes
    digest: str

    @property
    def path(self) -> str:
        """Where it lies on a unit, relative to the login user's home."""
        return rundir.agent_path(self.digest)


@functools.cache
def archive() -> Archive:
    """The agent of this version of cloudrun. Stored, not deflated: other zlibs make other bytes of the same source."""
    members = {"__main__.py": MAIN}
    for folder in ("", "core/", "agent/"):
        members[f"cloudrun/{folder}__init__.py"] = ""
    for path in sorted((PACKAGE / "agent").glob("*.py")):
        members.setdefault(f"cloudrun/agent/{path.name}", path.read_text("utf-8"))
    for name in SHARED:
        members[f"cloudrun/{name}"] = (PACKAGE / name).read_text("utf-8")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, LONG_AGO)
            info.create_system = 3  # Unix, whatever the client is
            info.external_attr = 0o600 << 16
            file.writestr(info, members[name])
    data = buffer.getvalue()
    return Archive(data=data, digest=hashlib.sha256(data).hexdigest())
