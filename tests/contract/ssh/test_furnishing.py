"""Who one is to a private index, on the unit for as long as somebody needs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cloudrun.core.records import Environment
from cloudrun.core.rundir import INDEX_LOGINS
from cloudrun.runs.furnishing import furnished
from cloudrun.ssh.session import Session
from tests.waiting import until

from .conftest import Host

LOGINS = "machine packages.example.com login me password hunter2\n"
ENVIRONMENT = Environment("3.11", "x86_64", (), "nothing", "f", logins=LOGINS)
# a client that brings them, says so, and is never told to end
CLIENT = """
import sys, time
from pathlib import Path
from cloudrun.core.records import Environment, SshTarget
from cloudrun.runs.furnishing import furnished
from cloudrun.ssh.session import Session
host, port, user, key, host_key, logins = sys.argv[1:]
with Session.open(SshTarget(host, int(port), user, Path(key), host_key), timeout_s=60) as session:
    with furnished(session, Environment("3.11", "x86_64", (), "nothing", "f", logins=logins)):
        print("there", flush=True)
        time.sleep(600)
"""


def read(session: Session) -> str:
    """What the file says; "" where there is none."""
    return session.run(f"cat {INDEX_LOGINS} 2>/dev/null", timeout_s=60).stdout


@contextmanager
def a_client(host: Host) -> Iterator[subprocess.Popen[str]]:
    target = host.target
    words = [target.host, str(target.port), target.user, str(target.key_path), target.host_key, LOGINS]
    with subprocess.Popen([sys.executable, "-c", CLIENT, *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_credentials_are_on_the_unit_for_the_length_of_the_block_and_for_its_user_alone(session: Session) -> None:
    with furnished(session, ENVIRONMENT):
        assert read(session) == LOGINS
        assert session.run(f"stat -c %a {INDEX_LOGINS}", timeout_s=60).stdout == "600\n"
    assert read(session) == ""


def test_credentials_go_with_the_client_that_is_killed(host: Host, session: Session) -> None:
    with a_client(host) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "there\n"
        assert read(session) == LOGINS
        client.kill()
        until(lambda: read(session) == "")
