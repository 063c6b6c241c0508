"""The agent in a folder that plays a unit's home, with its byte code: from the archive alone, each of the hundreds of
agents that tests start would compile it first."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from cloudrun.agent import compiled
from cloudrun.ssh.archive import archive


def bring_agent(home: Path, path: str = archive().path) -> None:
    """Put it where a client looks for it, or at another `path` below `home`."""
    place = home / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(archive().data)
    byte_code(place).symlink_to(_byte_code_of_the_session())


def byte_code(place: Path) -> Path:
    """Where an agent with its archive at `place` looks for its byte code."""
    return place.with_suffix(compiled.COMPILED)


@functools.cache
def _byte_code_of_the_session() -> Path:
    folder = Path(os.environ["CLOUDRUN_CACHE_DIR"]) / "agent" / str(os.getpid())
    folder.mkdir(parents=True)
    place = folder / Path(archive().path).name
    place.write_bytes(archive().data)
    os.utime(place, (0, 0))  # that of a machine which is kept
    compiled.keep(str(place))
    made = byte_code(place)
    assert made.is_dir()
    return made
