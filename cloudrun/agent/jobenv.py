"""What a job's process starts with, the same for a fresh one and for a fork: program, environment, folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Mapping

from cloudrun.core.rundir import RunDir

UMASK = 0o022  # what a login has; the agent's own files are for its user alone


def program(spec: Mapping[str, Any]) -> str:
    """A program given by a path is meant from the home, where the agent was started; a bare name is found on PATH."""
    name: str = spec["argv"][0]
    return str(Path.cwd() / name) if "/" in name else name


def environment(run: RunDir, spec: Mapping[str, Any], base: Mapping[str, str]) -> dict[str, str]:
    """The job's environment variables; `base` are the warden's."""
    variables = {name: value for name, value in base.items() if not name.startswith("SSH_")}
    variables.update(PYTHONUNBUFFERED="1", TMPDIR=str(run.tmp))
    home = Path(program(spec)).parent.parent
    if (home / "pyvenv.cfg").exists():  # what `activate` does, so that the job's own subprocesses find the same Python
        variables["VIRTUAL_ENV"] = str(home)
        variables["PATH"] = os.pathsep.join([str(home / "bin"), variables.get("PATH", os.defpath)])
    variables.update(spec["env"])
    return variables


def folder(run: RunDir, spec: Mapping[str, Any]) -> str:
    """The job's working directory, made where no file of it was shipped, and its TMPDIR."""
    os.makedirs(run.tmp, mode=0o700, exist_ok=True)
    path = os.path.join(run.work, spec["cwd"])
    os.makedirs(path, exist_ok=True)
    return path
