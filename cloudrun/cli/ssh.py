"""`cloudrun ssh`: a shell on a unit, by the system's own ssh."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cloudrun.cli.display import Display
from cloudrun.cli.parser import Json, Profile
from cloudrun.cli.printing import print_json
from cloudrun.core.errors import UsageError
from cloudrun.plan.shell import known_hosts_line, ssh_words

KNOWN_HOSTS = "known_hosts"


def ssh(
    unit: Annotated[
        str,
        Parameter(
            help="A unit by id or its beginning, or a run that is on one, by id or name. Example: i-0123456789ab"
        ),
    ],
    /,
    *command: Annotated[
        str, Parameter(help="After --: run this there instead of a shell. Example: cloudrun ssh baseline -- nproc")
    ],
    profile: Profile = None,
    as_json: Json = False,
) -> int:
    """A shell on a unit, or one command there. Only the host key that the ledger has
    is believed, and only the unit's own key is shown. The exit code is ssh's: the
    command's, or 255.

    With --json nothing is opened: where it is, and the words to type.

    Type, for example:
        cloudrun ssh baseline
        cloudrun ssh i-0123456789abcdef0 -- tail -f /var/log/syslog
    """
    from cloudrun.ledger import Ledger
    from cloudrun.units.shell import meant, way_to

    if shutil.which("ssh") is None:
        raise UsageError("there is no ssh client here", next_step="apt install openssh-client")
    with closing(Ledger()) as ledger, Display() as display:
        found = meant(ledger, unit)
        target = way_to(ledger, found, display, profile)
    name = found.instance_id
    if as_json:
        print_json(
            {
                "instance_id": name,
                "host": target.host,
                "port": target.port,
                "user": target.user,
                "key": str(target.key_path),
                "known_hosts": known_hosts_line(target, name).strip(),
                "command": ssh_words(target, name, Path(KNOWN_HOSTS), command),
            }
        )
        return 0
    with tempfile.TemporaryDirectory(prefix="cloudrun-ssh-") as folder, left_to_ssh():
        known_hosts = Path(folder) / KNOWN_HOSTS
        known_hosts.write_text(known_hosts_line(target, name), encoding="ascii")
        code = subprocess.run(ssh_words(target, name, known_hosts, command), check=False).returncode
    return code if code >= 0 else 128 - code


@contextmanager
def left_to_ssh() -> Iterator[None]:
    """Ctrl-C is for what runs there: ssh gets it from the terminal, as we do. A handler, since what is ignored stays
    ignored in a program that is started, and ssh would not end."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
