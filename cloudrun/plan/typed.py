"""Commands for people to copy: words as a shell takes them, whatever somebody has called a file or a run."""

from __future__ import annotations

import shlex
from pathlib import Path


def quoted(word: str) -> str:
    """One word on one line. Where letters cannot be shown it is $'...', which bash and zsh know; bytes of file names
    that are no UTF-8 come back as they were."""
    if word.isprintable():
        return shlex.quote(word)
    shown = (each if each.isprintable() and each not in "\\'" else _escaped(each) for each in word)
    return f"$'{''.join(shown)}'"


def _escaped(letter: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape"))


def command(name: str, *operands: str) -> str:
    """`cloudrun NAME OPERAND...`; `name` may have options behind it. What would be taken for an option comes behind --
    with all the others."""
    end = ["--"] if any(each.startswith("-") for each in operands) else []
    return " ".join(["cloudrun", name, *end, *map(quoted, operands)])


def path_typed(path: str | Path) -> str:
    """A path of this computer's, for any command: never taken for an option."""
    return quoted(f"./{path}" if str(path).startswith("-") else str(path))
