"""What a model was made with: read from the job's environment, or asked of its Python where it has none of ours."""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any, Union

TIMEOUT_S = 20.0
PACKAGES = ("numpy", "scipy", "scikit-learn", "joblib")
_QUESTION = """
import json, platform, sys
from importlib import metadata
versions = {}
for name in sys.argv[1:]:
    try:
        versions[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps({"versions": versions, "python": platform.python_version(), "platform": platform.platform()}))
"""
_VERSION = re.compile(r"^version(?:_info)?\s*=\s*(\d+\.\d+\.\d+\w*)", re.MULTILINE)
Passport = dict[str, Any]
Asked = Union[Passport, "subprocess.Popen[bytes]", None]

# the machine's, once: looking it up opens files, and whoever is forked from us has it already
this_platform = functools.lru_cache(maxsize=None)(platform.platform)


def begin(program: str) -> Asked:
    """Read it, or start asking; None where the job's program is not a Python.

    A Python that is asked is isolated: nothing of work/ is imported.
    """
    if not Path(program).name.startswith("python"):
        return None
    found = read(program)
    if found is not None:
        return found
    try:
        return subprocess.Popen(
            [program, "-I", "-c", _QUESTION, *PACKAGES],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return None


def finish(asked: Asked) -> Passport:
    """The answer, or an empty one: a passport that says nothing must not lose a job's outputs."""
    nothing: Passport = {"versions": {}, "python": "", "platform": ""}
    if asked is None or isinstance(asked, dict):
        return asked or nothing
    try:
        answer, _ = asked.communicate(timeout=TIMEOUT_S)
        return dict(nothing, **json.loads(answer))
    except subprocess.TimeoutExpired:
        asked.kill()
        asked.communicate()
        return nothing
    except (ValueError, TypeError):
        return nothing


def read(program: str) -> Passport | None:
    """The passport of a virtual environment that sees no packages but its own, by the names of its folders.

    None for any other Python, and for one that is laid out as nobody knows.
    """
    home = os.path.dirname(os.path.dirname(program))
    try:
        with open(os.path.join(home, "pyvenv.cfg"), encoding="utf-8") as stream:
            settings = stream.read()
        version = _VERSION.search(settings)
        if not home or version is None or re.search(r"(?im)^include-system-site-packages\s*=\s*true", settings):
            return None
        short = ".".join(version[1].split(".")[:2])
        names = os.listdir(os.path.join(home, "lib", f"python{short}", "site-packages"))
    except (OSError, ValueError):
        return None
    versions = {}
    for name in names:
        if name.endswith(".dist-info"):
            package, _, release = name[: -len(".dist-info")].partition("-")
            package = re.sub(r"[-_.]+", "-", package).lower()
            if package in PACKAGES:
                versions[package] = release
    return {"versions": versions, "python": version[1], "platform": this_platform()}
