"""A connection through a jump host: one end of a socket pair, whose other end an OpenSSH client has.

Not a channel of paramiko's inside another: every byte would be encrypted twice in Python, and what users have set up
for their bastion (agent, hardware keys, ProxyJump, certificates) is OpenSSH's to know. The unit's own key is pinned as
ever, and Ansible takes the same way.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
from contextlib import suppress

from cloudrun.core.errors import JumpRefused, UsageError
from cloudrun.core.records import SshTarget
from cloudrun.plan.jumping import jump_command, login_command

_END_S = 5.0
_LAST_WORDS_S = 0.5
_CHECK_S = 30.0
# what will not get better by trying again
_HOPELESS = ("host key verification failed", "permission denied", "bad configuration")
_PORT_THERE = 22
# said once the login itself has succeeded
_LOGGED_IN = ("open failed", "stdio forwarding failed", "administratively prohibited")


class Tunnel:
    """To be closed by whoever opened it. `socket` is a connection to the target."""

    def __init__(self, target: SshTarget) -> None:
        self._jump = target.jump
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        self.socket, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    jump_command(target.jump, target.host, target.port),
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=self._said.fileno(),
                    start_new_session=True,  # a Ctrl-C at the terminal is ours to handle
                )
            except BaseException:
                self.socket.close()
                self._said.close()
                raise

    def why(self) -> str:
        """After a connection through it has failed: what OpenSSH said, "" where it said nothing. Raises JumpRefused
        where the jump host lets nobody through."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_WORDS_S)
        self._said.seek(0)
        words = " ".join(self._said.read().decode("utf-8", "replace").split())
        if any(each in words.lower() for each in _HOPELESS):
            raise JumpRefused(_refusal(self._jump, words), next_step=_next_step(self._jump))
        return words

    def close(self) -> None:
        self.socket.close()
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()


def check_way(jump: str) -> None:
    """Log in to the jump host once, before anything is launched behind it. Raises UsageError with OpenSSH's words."""
    # To its own SSH port, which is as good as any; the answer tells only that the login worked.
    command = jump_command(jump, "localhost", _PORT_THERE)
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_CHECK_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(_refusal(jump, str(error)), next_step=_next_step(jump)) from error
    words = done.stderr.decode("utf-8", "replace")
    if done.returncode != 0 and not any(each in words.lower() for each in _LOGGED_IN):
        raise UsageError(_refusal(jump, words), next_step=_next_step(jump))


def _refusal(jump: str, words: str) -> str:
    return f"there is no way through the jump host {jump}: {' '.join(words.split()) or 'ssh said nothing'}"


def _next_step(jump: str) -> str:
    return f"{' '.join(login_command(jump))}  # once by hand, to accept its key; its login must need no typing"
