"""What machines of a region that has ended have left on this computer's disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from cloudrun.sandbox.state import Locked, locked, state_dir

START_S = 1.0  # to wait for somebody who starts a region


def find(size_of: Callable[[Path], int | None]) -> Iterator[tuple[Path, int]]:
    """Folders of machines, with what `size_of` says of each (None: it is left alone). Nothing while a region runs."""
    state = state_dir()
    if not state.units.is_dir() or state.daemon_runs():
        return
    for folder in sorted(state.units.glob("i-*")):
        if folder.is_dir() and not folder.is_symlink() and (size := size_of(folder)) is not None:
            yield folder, size


def free(folder: Path) -> bool:
    """Delete one of them, unless a region runs or is being started: false then."""
    from cloudrun.sandbox import machine

    state = state_dir()
    try:
        with locked(state.start_lock, timeout_s=START_S):
            if state.daemon_runs() or folder.parent != state.units:
                return False
            machine.remove(folder)
    except (Locked, OSError):
        return False
    return not folder.exists()
