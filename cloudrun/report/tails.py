"""The ends of runs' logs, as much as fits into a file that is sent by mail."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import IO

from cloudrun.core.errors import LedgerError
from cloudrun.core.records import RunRecord
from cloudrun.ledger.artifacts import ArtifactStore

LINES = 40  # of each stream
TAIL_CHARACTERS = 6_000  # of each stream, so that a log of one long line is short too
ALL_CHARACTERS = 4_000_000  # of the whole report
STREAMS = ("stdout", "stderr")

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def log_tails(store: ArtifactStore, runs: Iterable[RunRecord], room: int = ALL_CHARACTERS) -> dict[str, dict[str, str]]:
    """Tails by run and stream, the first runs first until there is no more `room` (characters in all)."""
    tails: dict[str, dict[str, str]] = {}
    for run in runs:
        if room <= 0:
            break
        tails[run.run_id] = _tails_of(store, run)
        room -= sum(map(len, tails[run.run_id].values()))
    return tails


def _tails_of(store: ArtifactStore, run: RunRecord) -> dict[str, str]:
    digests = {log.path.removesuffix(".log"): log.sha256 for log in run.artifacts if log.kind == "log"}
    return {name: _read(store, digests[name]) for name in STREAMS if name in digests}


def _read(store: ArtifactStore, sha256: str) -> str:
    """The tail of a stored log; one that is damaged or gone is no reason not to see all the others."""
    try:
        with store.open(sha256) as file:
            return tail(_last_bytes(file, 8 * TAIL_CHARACTERS))
    except LedgerError as error:
        return f"({error})"


def _last_bytes(file: IO[bytes], count: int) -> bytes:
    file.seek(-min(count, file.seek(0, os.SEEK_END)), os.SEEK_END)
    return file.read()


def tail(log: bytes, lines: int = LINES, characters: int = TAIL_CHARACTERS) -> str:
    """The last lines of a log as a terminal would have left them: without colours, and of a line that was written
    over and over only its last state.
    """
    text = _COLOUR.sub("", log.decode("utf-8", "replace")).replace("\r\n", "\n")
    last = [line.rstrip("\r").rpartition("\r")[2] for line in text.rstrip("\n").split("\n")[-lines:]]
    kept = "\n".join(last)
    return kept if len(kept) <= characters else "…" + kept[-characters:]


def shown(log: str) -> str:
    """A tail without a character that is not seen: every line's, as `visible` writes them."""
    return "\n".join(visible(line.expandtabs()) for line in log.split("\n"))


def visible(text: str) -> str:
    """The text on one line: control characters, marks of direction and everything else unseen as escapes."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
