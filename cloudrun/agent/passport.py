"""What a model was made with, asked of the job's own Python while the job runs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

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


def begin(program: str) -> subprocess.Popen[bytes] | None:
    """Start asking; None where the job's program is not a Python. It is isolated: nothing of work/ is imported."""
    if not Path(program).name.startswith("python"):
        return None
    try:
        return subprocess.Popen(
            [program, "-I", "-c", _QUESTION, *PACKAGES],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return None


def finish(question: subprocess.Popen[bytes] | None) -> dict[str, Any]:
    """The answer, or an empty one: a passport that says nothing must not lose a job's outputs."""
    nothing: dict[str, Any] = {"versions": {}, "python": "", "platform": ""}
    if question is None:
        return nothing
    try:
        answer, _ = question.communicate(timeout=TIMEOUT_S)
        return dict(nothing, **json.loads(answer))
    except subprocess.TimeoutExpired:
        question.kill()
        question.communicate()
        return nothing
    except (ValueError, TypeError):
        return nothing
