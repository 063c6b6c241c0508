"""Runs on a unit: calls a function that was submitted to a pool, and leaves what it returned or raised.

Usage: python called.py FUNCTION CALLS VERSION: two pickles, by cloudpickle of that version. The `outcome` of
`name.calls` is `name.outcome`. A copy of that cloudpickle is in `lib` beside this file, for an environment that has
another one, or none. No module is imported that cloudpickle does not import as well: it may be there already.
"""

from __future__ import annotations

import os
import sys
from typing import Any

HERE = os.path.abspath(__file__)


def pickler(version: str) -> Any:
    try:
        import cloudpickle

        if cloudpickle.__version__ == version:
            return cloudpickle
        for name in [name for name in sys.modules if name.partition(".")[0] == "cloudpickle"]:
            del sys.modules[name]
    except ImportError:
        pass
    sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))
    import cloudpickle

    del sys.path[0]
    return cloudpickle


def main(function: str, calls: str, version: str) -> int:
    """The exit code: 1 where the function raised, or returned what cannot be pickled."""
    cloudpickle = pickler(version)
    stem = os.path.abspath(calls).removesuffix(".calls")  # wherever the function may go
    code = 0
    with open(f"{stem}.part", "wb") as part:
        try:
            call = cloudpickle.loads(read(function))
            values = [call(*arguments, **keywords) for arguments, keywords in cloudpickle.loads(read(calls))]
            cloudpickle.dump(("returned", values), part)
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is raised again at home
            code = 1
            part.seek(0)
            part.truncate()
            part.write(raised(error, cloudpickle))
    os.rename(f"{stem}.part", f"{stem}.outcome")
    return code


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def raised(error: BaseException, cloudpickle: Any) -> bytes:
    """The exception, pickled by itself since it may not be one that can be made again; its type and words; its
    traceback."""
    import traceback

    while error.__traceback__ is not None and error.__traceback__.tb_frame.f_code.co_filename in (__file__, HERE):
        error.__traceback__ = error.__traceback__.tb_next  # without our own frames
    text = "".join(traceback.format_exception(error))
    sys.stderr.write(text)
    words = "".join(traceback.format_exception_only(type(error), error)).strip()
    try:
        content: bytes = cloudpickle.dumps(error)
        cloudpickle.loads(content)
    except Exception:  # noqa: BLE001  # a class may raise anything here
        content = b""
    outcome: bytes = cloudpickle.dumps(("raised", content, words, text))
    return outcome


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
