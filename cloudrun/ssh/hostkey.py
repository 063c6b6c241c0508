"""A host key that only its unit has ever had: made there, installed there; its public half comes back to be pinned."""

from __future__ import annotations

import re

from cloudrun.core.errors import CloudrunError
from cloudrun.ssh.session import Session

TIMEOUT_S = 60.0
_PUBLIC = re.compile(r"^ssh-ed25519 [A-Za-z0-9+/=]+", re.MULTILINE)
# `install` replaces a file with the owner and mode it shall have. Debian and Ubuntu call the service ssh, others sshd.
_SCRIPT = """
set -e
umask 077
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
ssh-keygen -q -t ed25519 -N '' -C '' -f "$folder/key"
sudo -n install -m 600 "$folder/key" /etc/ssh/ssh_host_ed25519_key
sudo -n install -m 644 "$folder/key.pub" /etc/ssh/ssh_host_ed25519_key.pub
sudo -n systemctl reload ssh || sudo -n systemctl reload sshd || sudo -n service ssh reload
cat "$folder/key.pub"
"""


def make_host_key(session: Session) -> str:
    """The new key's public line, "ssh-ed25519 AAAA...". New connections are answered with it; open ones stay open."""
    result = session.run("sh -s", stdin=_SCRIPT.encode("ascii"), timeout_s=TIMEOUT_S)
    line = _PUBLIC.search(result.stdout)
    if result.exit_code != 0 or line is None:
        raise CloudrunError(
            f"the unit could not make a host key of its own: {result.stderr.strip() or result.stdout.strip()}",
            next_step="use an image with ssh-keygen whose login user may use sudo",
        )
    return line.group()
