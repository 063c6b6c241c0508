"""What a unit needs while its environment is built: wheels of this computer, and who one is to a private index.

The latter is on the unit only for that long, in a file that only the login user may read. It goes there with our
connection, or with the build that has taken it, whatever becomes of us.
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
_THERE = b"there\n"
# The file lasts as long as this command's standard input is open: that of a client which was killed is not.
_HOLD = """umask 077; mkdir -p {base}; trap 'rm -f {place}' EXIT; trap exit HUP INT TERM
head -c {size} > {place} && echo there && cat > /dev/null"""


@contextmanager
def furnished(session: Session, environment: Environment) -> Iterator[None]:
    """Raises ConnectionLost, ProvisionError for a wheel that does not arrive as it was."""
    for wheel in environment.wheels:
        _bring(session, wheel.path, wheel.sha256)
    if not environment.logins:
        yield
        return
    logins = environment.logins.encode()
    with session.stream(_HOLD.format(base=BASE, place=INDEX_LOGINS, size=len(logins))) as holding:
        holding.write(logins)
        if holding.reader.read(len(_THERE)) != _THERE:
            why = holding.errors() or "no reason given"
            raise ProvisionError(f"the index's credentials did not get to the unit: {why}", next_step="submit again")
        try:
            yield
        finally:
            with suppress(CloudrunError):  # where the connection is lost it is gone, or will be
                session.run(f"rm -f {INDEX_LOGINS}", timeout_s=COMMAND_S)


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
