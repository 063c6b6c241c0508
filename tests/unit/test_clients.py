"""Whether a client still lives, asked of real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from cloudrun.units.clients import SILENCE, is_alive, this_client

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_this_process_lives() -> None:
    assert is_alive(this_client(NOW), NOW)


def test_nobody_does_not() -> None:
    assert not is_alive(None, NOW)


def test_a_killed_process_is_dead_also_before_its_parent_reaps_it() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    script = "from cloudrun.units.clients import _started; import sys; print(_started(int(sys.argv[1])))"
    started = subprocess.run([sys.executable, "-c", script, str(child.pid)], capture_output=True, text=True, check=True)
    client = replace(this_client(NOW), pid=child.pid, pid_started=started.stdout.strip())
    assert is_alive(client, NOW)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(client, NOW)
    child.communicate()
    assert not is_alive(client, NOW)


def test_a_pid_that_was_given_to_another_process_does_not_count() -> None:
    assert not is_alive(replace(this_client(NOW), pid_started="1"), NOW)


def test_one_in_a_container_lives_as_long_as_it_is_heard() -> None:
    boot = this_client(NOW).boot_id.partition(" ")[0]
    client = replace(this_client(NOW), boot_id=f"{boot} pid:[1]", pid_started="1")
    assert is_alive(client, NOW + SILENCE - timedelta(seconds=1))
    assert not is_alive(client, NOW + SILENCE)


def test_nor_does_one_from_before_a_reboot() -> None:
    assert not is_alive(replace(this_client(NOW), boot_id="another"), NOW)


def test_a_client_on_another_computer_lives_as_long_as_it_is_heard() -> None:
    client = replace(this_client(NOW), host="another.example", pid_started="1")
    assert is_alive(client, NOW + SILENCE - timedelta(seconds=1))
    assert not is_alive(client, NOW + SILENCE)
