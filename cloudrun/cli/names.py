"""What a shell's completion asks: names and ids of runs, grids and machines. It imports next to nothing, for somebody
waits for it with a finger on the key."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def print_names(kinds: Sequence[str]) -> None:
    """ "name<TAB>what it is", by name where there is one that a shell takes as it is, then by id. Never raises."""
    try:
        from cloudrun.ledger.home import find_project
        from cloudrun.ledger.ids import KINDS, names

        project = find_project(None)
        found: dict[str, str] = {}
        for kind in " ".join(kinds).split():  # zsh hands several over as one word
            if kind in KINDS:
                listed = names(project, kind)
                if kind != "unit":
                    found |= {name: kind for _, name in listed if _is_plain(name)}
                found |= {own_id: what for own_id, what in listed if _is_plain(own_id)}
        sys.stdout.write("".join(f"{name}\t{what}\n" for name, what in found.items() if what.isprintable()))
        sys.stdout.flush()
    except Exception:  # noqa: BLE001, S110 - a shell would show it in the middle of what is being typed
        pass


def _is_plain(word: str) -> bool:
    """Whether a shell takes it as it is."""
    return bool(word) and word.isascii() and all(letter.isalnum() or letter in "._-" for letter in word)
