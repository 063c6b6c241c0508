"""Digests that say whether two environments, programs or parameter sets are the same one.

Each is SHA-256 over a text with one fact a line, whose first line names the form and its version, so that a digest can
be made again by hand and a new form never equals an old one. `print(environment_text(...))` shows what differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cloudrun.core.errors import UsageError
from cloudrun.core.records import DataSet, System

# 128 bits are plenty against accidents, and the fingerprint is a folder's name in the first line of installed scripts,
# which old kernels cut at 127 characters.
_FINGERPRINT_LENGTH = 32


_NO_SYSTEM = System()


def environment_text(python: str, architecture: str, requirements: Iterable[str], system: System = _NO_SYSTEM) -> str:
    """The form of an environment: its Python's minor version, the machine's architecture, its exact requirements, and
    what the machine has beside them."""
    lines = ["cloudrun environment 1", f"python {python}", f"architecture {architecture}", *sorted(requirements)]
    lines += [f"apt {name}" for name in system.apt]
    lines += [f"playbook {system.playbook_digest}"] if system.playbook_digest else []
    return "\n".join(lines) + "\n"


def environment_fingerprint(
    python: str, architecture: str, requirements: Iterable[str], system: System = _NO_SYSTEM
) -> str:
    """32 hexadecimal characters."""
    return _sha256(environment_text(python, architecture, requirements, system))[:_FINGERPRINT_LENGTH]


def code_digest(files: Mapping[str, bytes]) -> str:
    """64 hexadecimal characters over the script and its local modules, by path relative to the project root.

    Line ends count as they are; modes and times do not count.
    """
    lines = [f"{hashlib.sha256(content).hexdigest()} {json.dumps(path)}" for path, content in sorted(files.items())]
    return _sha256("\n".join(["cloudrun code 1", *lines]) + "\n")


def data_digest(data: Iterable[DataSet]) -> str:
    """64 hexadecimal characters over data sets by where a job finds them; "" where there are none."""
    lines = sorted(f"{each.key} {json.dumps(each.link)}" for each in data)
    return _sha256("\n".join(["cloudrun data 1", *lines]) + "\n") if lines else ""


def params_digest(params: Mapping[str, Any]) -> str:
    """64 hexadecimal characters over parameters, whatever order they are in.

    1 and 1.0 and true differ, a tuple and a list do not; NaN equals NaN. Raises UsageError, naming the parameter, for
    a value that JSON cannot say.
    """
    lines = [f"{json.dumps(name)} {canonical_json(params[name], name)}" for name in sorted(params)]
    return _sha256("\n".join(["cloudrun parameters 1", *lines]) + "\n")


def cell_key(
    code_digest: str,
    params: Mapping[str, Any],
    data_digest: str,
    environment_digest: str,
    arguments: Sequence[str],
    cwd: str = ".",
) -> str:
    """64 hexadecimal characters over all that decides what a run computes: two runs of one key are the same work.

    Parameters count in whatever order they are, arguments in theirs; `cwd`, where it starts below the project's root,
    since a relative name is another file elsewhere. Raises UsageError as `params_digest` does.
    """
    lines = [
        f"code {code_digest}",
        f"parameters {params_digest(params)}",
        f"data {data_digest}",
        f"environment {environment_digest}",
        f"arguments {json.dumps(list(arguments))}",
        *([f"cwd {json.dumps(cwd)}"] if cwd != "." else []),
    ]
    return _sha256("\n".join(["cloudrun cell 1", *lines]) + "\n")


def canonical_json(value: Any, name: str) -> str:
    """The parameter's value as JSON, equal for equal values only. Raises UsageError for what JSON cannot say."""
    try:
        _require_text_keys(value)
        return json.dumps(value, sort_keys=True, separators=(",", ":"))  # floats by their shortest repr; NaN as NaN
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"parameter {name!r} cannot be written as JSON: {error}",
            next_step="use strings, numbers, true or false, null, lists and tables of them",
        ) from error


def _require_text_keys(value: Any) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):  # json.dumps would turn 1 into "1", and two parameters into one
                raise TypeError(f"the key {key!r} is not a string")
            _require_text_keys(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            _require_text_keys(item)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
