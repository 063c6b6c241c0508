"""Runs on a unit: calls a function that was submitted to a pool, and leaves what it returned or raised.

Usage: python called.py FUNCTION CALLS VERSION: two pickles, by cloudpickle of that version. The `outcome` of
`name.calls` is `name.outcome`. A copy of that cloudpickle is in `lib` beside this file, for an environment that has
another one, or none.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any


def pickler(version: str) -> Any:
    try:
        import cloudpickle

        if cloudpickle.__version__ == version:
            return cloudpickle
        for name in [name for name in sys.modules if name.partition(".")[0] == "cloudpickle"]:
            del sys.modules[name]
    except ImportError:
        pass
    sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
    import cloudpickle

    del sys.path[0]
    return cloudpickle


def main(function: Path, calls: Path, version: str) -> int:
    """The exit code: 1 where the function raised, or returned what cannot be pickled."""
    cloudpickle = pickler(version)
    part = calls.with_suffix(".part")
    code = 0
    try:
        call = cloudpickle.loads(function.read_bytes())
        values = [call(*arguments, **keywords) for arguments, keywords in cloudpickle.loads(calls.read_bytes())]
        with part.open("wb") as file:
            cloudpickle.dump(("returned", values, ""), file)
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is raised again at home
        code = 1
        part.write_bytes(raised(error, cloudpickle))
    part.rename(calls.with_suffix(".outcome"))
    return code


def raised(error: BaseException, cloudpickle: Any) -> bytes:
    """The exception and its traceback; one that cannot be made again at home is told in words."""
    own = Path(__file__).resolve()
    while error.__traceback__ is not None and Path(error.__traceback__.tb_frame.f_code.co_filename).resolve() == own:
        error.__traceback__ = error.__traceback__.tb_next  # without our own frames
    text = "".join(traceback.format_exception(error))
    sys.stderr.write(text)
    try:
        outcome: bytes = cloudpickle.dumps(("raised", error, text))
        cloudpickle.loads(outcome)
    except Exception:  # noqa: BLE001  # a class may raise anything here
        outcome = cloudpickle.dumps(("raised", RuntimeError(f"{type(error).__name__}: {error}"), text))
    return outcome


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
