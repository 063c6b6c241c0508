"""Other Pythons of this computer: a unit may have any from 3.9 on."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def find_python(version: str) -> str | None:
    """An interpreter of that version that really starts (a version manager's shim may not)."""
    folder = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    managed = sorted(map(str, folder.glob(f"{version}.*/bin/python3")))
    for python in filter(None, [*managed, shutil.which(f"python{version}")]):
        if subprocess.run([python, "-c", ""], capture_output=True, timeout=120, check=False).returncode == 0:
            return python
    return None
