"""What a unit needs while its environment is built: wheels of this computer, and who one is to a private index.

The latter is on the unit only for that long, in a file that only the login user may read.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cloudrun.core.errors import CloudrunError, ProvisionError
from cloudrun.core.records import Environment
from cloudrun.core.rundir import BASE, INDEX_LOGINS, wheel_path

if TYPE_CHECKING:
    from cloudrun.ssh.session import Session

COMMAND_S = 60.0
WHEEL_S = 1800.0


@contextmanager
def furnished(session: Session, environment: Environment) -> Iterator[None]:
    """Raises ConnectionLost, ProvisionError for a wheel that does not arrive as it was."""
    for wheel in environment.wheels:
        _bring(session, wheel.path, wheel.sha256)
    if not environment.logins:
        yield
        return
    place = shlex.quote(INDEX_LOGINS)
    session.run(
        f"umask 077 && mkdir -p {BASE} && cat > {place}", stdin=environment.logins.encode(), timeout_s=COMMAND_S
    )
    try:
        yield
    finally:
        with suppress(CloudrunError):  # a unit that cannot be reached any more ends, and the file with it
            session.run(f"rm -f {place}", timeout_s=COMMAND_S)


def _bring(session: Session, path: str, sha256: str) -> None:
    """A wheel, where the unit has it not. It has its place only once it is whole."""
    place = wheel_path(sha256, Path(path).name)
    there, folder, part = shlex.quote(place), shlex.quote(str(Path(place).parent)), shlex.quote(f"{place}.part")
    if session.run(f"test -e {there}", timeout_s=COMMAND_S).exit_code == 0:
        return
    expected = shlex.quote(f"{sha256}  {place}.part")
    command = f"mkdir -p {folder} && cat > {part} && echo {expected} | sha256sum --check --quiet && mv {part} {there}"
    done = session.run(command, stdin=Path(path).read_bytes(), timeout_s=WHEEL_S)
    if done.exit_code != 0:
        why = done.stderr.strip() or "it is not what it was when the run was prepared"
        raise ProvisionError(f"{path} did not get to the unit: {why}", next_step="submit again")
