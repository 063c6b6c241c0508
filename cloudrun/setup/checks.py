"""One thing that `cloudrun doctor` looked at: what it found, and the command that mends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from cloudrun.core.errors import CloudrunError, CredentialsError

# "warning": it works, but not as well as it could. "unknown": nobody can tell, and nothing need be done.
Verdict = Literal["ok", "warning", "problem", "unknown"]


@dataclass(frozen=True)
class Check:
    """`next_step` is "" where all is well. `is_refused`: AWS does not know who asks, or does not let them."""

    name: str
    verdict: Verdict
    found: str
    next_step: str = ""
    is_refused: bool = False


Look = Callable[[], "Check | list[Check]"]


def from_error(name: str, error: CloudrunError, verdict: Verdict = "problem") -> Check:
    return Check(name, verdict, str(error), error.next_step, isinstance(error, CredentialsError))


def side_by_side(looks: Sequence[tuple[str, Look]]) -> list[Check]:
    """What all of them find, in their order; they look at the same time. One that raises has found a problem."""
    with ThreadPoolExecutor(max(1, len(looks)), thread_name_prefix="cloudrun-doctor") as threads:
        waiting = [(name, threads.submit(look)) for name, look in looks]
        checks: list[Check] = []
        for name, future in waiting:
            try:
                found = future.result()
            except CloudrunError as error:
                found = from_error(name, error)
            except OSError as error:
                found = Check(name, "problem", str(error), "see that the files named here can be read and written")
            checks += found if isinstance(found, list) else [found]
    return checks
