"""A kept machine that the command line names is logged into while the rest of the line is still being understood.

Understanding it takes a tenth of a second of this computer's time; logging in is mostly waiting for the other side.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloudrun.units.connection import EarlyLogin

FLAG = "--instance-id"


class _Begun:
    """Nothing waits for it that does not ask for it; what nobody takes ends with the process."""

    def __init__(self, instance_id: str) -> None:
        self.instance_id = instance_id
        self._login: EarlyLogin | None = None
        self._thread = threading.Thread(target=self._begin, name="cloudrun-early", daemon=True)
        self._thread.start()

    def login(self) -> EarlyLogin | None:
        self._thread.join()
        return self._login

    def _begin(self) -> None:
        with suppress(Exception):  # whatever is wrong is said where it is due
            from cloudrun.ledger import Ledger
            from cloudrun.units.connection import early_login

            with closing(Ledger()) as ledger:
                self._login = early_login(ledger, self.instance_id)


_begun: list[_Begun] = []


def begin(arguments: Sequence[str]) -> None:
    """Where `arguments` are a submission to a kept machine."""
    words = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    if any(word.startswith("--dry-run") for word in words):  # --dry-run=true too
        return
    for place, word in enumerate(words):
        if word == FLAG and place + 1 < len(words):
            _begun.append(_Begun(words[place + 1]))
        elif word.startswith(f"{FLAG}="):
            _begun.append(_Begun(word.partition("=")[2]))


def taken(instance_id: str | None) -> EarlyLogin | None:
    """The login to this machine, once; None where none was begun, or it cannot be."""
    found = next((each for each in _begun if each.instance_id == instance_id), None)
    if found is None:
        return None
    _begun.remove(found)
    return found.login()
