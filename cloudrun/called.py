"""Runs on a unit: calls a function that was submitted to a pool, and leaves what it returned or raised beside it.

Usage: python called.py FOLDER, where the folder has the file `call`; `outcome` is written there.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

try:
    import cloudpickle
except ImportError:  # joblib before 1.6 brings its own
    from joblib.externals import cloudpickle

    sys.modules.update({"cloudpickle": cloudpickle, "cloudpickle.cloudpickle": cloudpickle.cloudpickle})


def main(folder: Path) -> int:
    """The exit code: 1 where the function raised, or returned what cannot be pickled."""
    code = 0
    try:
        function, arguments, keywords = cloudpickle.loads((folder / "call").read_bytes())
        outcome = cloudpickle.dumps(("returned", function(*arguments, **keywords), ""))
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is raised again at home
        outcome, code = raised(error), 1
    part = folder / "outcome.part"
    part.write_bytes(outcome)
    part.rename(folder / "outcome")
    return code


def raised(error: BaseException) -> bytes:
    """The exception and its traceback; one that cannot be made again at home is told in words."""
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next  # without our own frame
    text = "".join(traceback.format_exception(error))
    sys.stderr.write(text)
    try:
        outcome: bytes = cloudpickle.dumps(("raised", error, text))
        cloudpickle.loads(outcome)
    except Exception:  # noqa: BLE001  # a class may raise anything here
        outcome = cloudpickle.dumps(("raised", RuntimeError(f"{type(error).__name__}: {error}"), text))
    return outcome


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
