"""The command line as a process in a folder of its own, with nothing of the user's around it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

WAIT_S = 120


@dataclass
class Cli:
    """Called with words; `environ` may be changed before."""

    folder: Path
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kept = {name: value for name, value in os.environ.items() if name != "CLOUDRUN_DEBUG"}
        self.environ = {
            **kept,
            "TMPDIR": str(self.folder),
            "XDG_CONFIG_HOME": str(self.folder / "home"),
            **self.environ,
        }

    def __call__(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cloudrun", *words],
            cwd=self.folder,
            env=self.environ,
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
