"""A command on a terminal of a given width, and what it has drawn there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# so that Ctrl-C typed on it is a signal; then as `python -m cloudrun` is
_OWN_TERMINAL = """
import fcntl, runpy, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
runpy.run_module("cloudrun", run_name="__main__")
"""
_WAIT_S = 120
_COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d|10\d)(?:;\d+)*m")


@dataclass(frozen=True)
class Screen:
    """`raw` is every byte; `lines` are without escapes and the spaces at their ends."""

    code: int
    raw: str

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in _ESCAPE.sub("", self.raw).replace("\r", "").split("\n")]

    @property
    def coloured(self) -> bool:
        return _COLOUR.search(self.raw) is not None


def on_terminal(
    folder: Path, *words: str, columns: int = 80, environ: Mapping[str, str] | None = None, typed: Sequence[str] = ()
) -> Screen:
    """`cloudrun` with these words, on a terminal that is also its stdin: `typed` are answered one by one, each once the
    cursor stands behind a question."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", _OWN_TERMINAL, *words],
        cwd=folder,
        env={**inherited, "TERM": "xterm-256color", "XDG_CONFIG_HOME": str(folder / "home"), **(environ or {})},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    drawn = b""
    waiting = list(typed)
    try:
        while True:
            if not select.select([ours], [], [], _WAIT_S)[0]:
                raise AssertionError(f"nothing more was drawn for {_WAIT_S} s:\n{drawn.decode(errors='replace')}")
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux's way of saying that nobody holds the other end any more
                break
            if not piece:
                break
            drawn += piece
            if waiting and re.search(rb"[?\]] $", drawn):
                os.write(ours, waiting.pop(0).encode())
        return Screen(process.wait(timeout=_WAIT_S), drawn.decode(errors="replace"))
    finally:
        process.kill()
        process.wait()
        os.close(ours)
