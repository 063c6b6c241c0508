"""User-data is run here as a unit would run it: by a real shell, in a folder that stands in for the root."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.plan.userdata import (
    MAX_BYTES,
    SERVICE,
    TIMER,
    held_deadline,
    move_deadline_script,
    user_data,
)

PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAA=\n-----END OPENSSH PRIVATE KEY-----\n"
PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample cloudrun"
GRACE_S = 660.0
TOMORROW = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)


def _settings(
    deadline: datetime, private: str = PRIVATE, public: str = PUBLIC, grace_s: float = GRACE_S
) -> dict[str, Any]:
    text = user_data(deadline=deadline, host_private_key=private, host_public_key=public, overdue_grace_s=grace_s)
    settings = yaml.safe_load(text)
    assert isinstance(settings, dict)
    return settings


@dataclass
class Machine:
    """A folder with /etc and /var in it, and a `systemctl` that writes down what it is told."""

    root: Path

    @property
    def units(self) -> Path:
        return self.root / "etc/systemd/system"

    def boot(self, deadline: datetime, public: str = PUBLIC, grace_s: float = GRACE_S) -> list[str]:
        """Run the bootcmd and return the calls of systemctl."""
        self.units.mkdir(parents=True, exist_ok=True)
        return self.run(*(command for command in _settings(deadline, public=public, grace_s=grace_s)["bootcmd"]))[0]

    def move(self, deadline: datetime) -> tuple[list[str], str]:
        """Run the script that moves the deadline; return the calls of systemctl and what it printed."""
        return self.run(["sh", "-c", move_deadline_script(deadline)])

    def run(self, *commands: list[str]) -> tuple[list[str], str]:
        calls = self.root / "calls"
        calls.unlink(missing_ok=True)
        systemctl = self.root / "bin/systemctl"
        systemctl.parent.mkdir(exist_ok=True)
        held = f"TimersCalendar={{ $(grep OnCalendar {self.units}/{TIMER}) ; next_elapse=Mon 2026-01-01 00:00:00 UTC }}"
        systemctl.write_text(f'#!/bin/sh\necho "$*" >> {calls}\ntest "$1" != show || echo "{held}"\n')
        systemctl.chmod(0o755)
        printed = ""
        for command in commands:
            words = [
                word.replace("/etc/systemd", f"{self.root}/etc/systemd").replace("/var/lib", f"{self.root}/var/lib")
                for word in command
            ]
            environment = {"PATH": f"{systemctl.parent}:/usr/bin:/bin"}
            done = subprocess.run(words, check=True, env=environment, cwd=self.root, stdout=subprocess.PIPE, text=True)
            printed += done.stdout
        return calls.read_text().splitlines(), printed

    def deadline(self) -> datetime:
        line = next(line for line in (self.units / TIMER).read_text().splitlines() if line.startswith("OnCalendar="))
        return datetime.strptime(line, "OnCalendar=%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_deadline_is_the_first_thing_in_user_data() -> None:
    text = user_data(deadline=TOMORROW, host_private_key=PRIVATE, host_public_key=PUBLIC, overdue_grace_s=0)
    assert text.startswith("#cloud-config\nbootcmd: ")


def test_it_is_small_and_plain() -> None:
    text = user_data(deadline=TOMORROW, host_private_key=PRIVATE, host_public_key=PUBLIC, overdue_grace_s=0)
    assert text.isascii()
    assert len(text) < 4096


def test_more_than_ec2_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="EC2 takes 16384"):
        user_data(deadline=TOMORROW, host_private_key="x" * MAX_BYTES, host_public_key=PUBLIC, overdue_grace_s=0)


def test_a_deadline_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="zone"):
        user_data(deadline=datetime(2030, 1, 1), host_private_key=PRIVATE, host_public_key=PUBLIC, overdue_grace_s=0)  # noqa: DTZ001


def test_nobody_logs_in_by_password_or_as_root() -> None:
    settings = _settings(TOMORROW)
    assert settings["ssh_pwauth"] is False
    assert settings["disable_root"] is True


KEY_TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=126) | st.just("\n"))


@given(private=KEY_TEXTS, public=KEY_TEXTS)
def test_host_keys_survive_the_yaml_whatever_is_in_them(private: str, public: str) -> None:
    settings = _settings(TOMORROW, private, public)
    assert settings["ssh_deletekeys"] is True
    assert settings["ssh_keys"] == {"ed25519_private": private, "ed25519_public": public}


def test_a_booting_unit_arms_its_deadline(machine: Machine) -> None:
    calls = machine.boot(TOMORROW)
    assert calls == ["daemon-reload", f"start {TIMER}"]
    assert machine.deadline() == TOMORROW
    assert "ExecStart=systemctl poweroff" in (machine.units / SERVICE).read_text()


def test_a_deadline_of_another_zone_is_armed_in_utc(machine: Machine) -> None:
    machine.boot(TOMORROW.astimezone(timezone(timedelta(hours=-7))))
    assert machine.deadline() == TOMORROW


def test_a_timer_that_passes_its_deadline_while_it_is_armed_fires_all_the_same(machine: Machine) -> None:
    machine.boot(TOMORROW)
    stamp = machine.root / f"var/lib/systemd/timers/stamp-{TIMER}"
    assert datetime.fromtimestamp(stamp.stat().st_mtime, UTC).year <= 2000


def test_a_deadline_that_its_owner_moved_survives_a_reboot(machine: Machine) -> None:
    machine.boot(TOMORROW)
    moved = TOMORROW + timedelta(hours=3)
    timer = machine.units / TIMER
    timer.write_text(timer.read_text().replace(f"{TOMORROW:%Y-%m-%d %H:%M:%S}", f"{moved:%Y-%m-%d %H:%M:%S}"))
    machine.boot(TOMORROW)
    assert machine.deadline() == moved


def test_a_running_unit_is_told_another_deadline_and_says_what_it_holds(machine: Machine) -> None:
    machine.boot(TOMORROW)
    (machine.root / f"var/lib/systemd/timers/stamp-{TIMER}").touch()
    moved = TOMORROW + timedelta(hours=3)
    calls, printed = machine.move(moved.astimezone(timezone(timedelta(hours=5))))
    assert calls == ["daemon-reload", f"restart {TIMER}", f"show --property=TimersCalendar {TIMER}"]
    assert held_deadline(printed) == moved
    assert machine.deadline() == moved
    stamp = machine.root / f"var/lib/systemd/timers/stamp-{TIMER}"
    assert datetime.fromtimestamp(stamp.stat().st_mtime, UTC).year <= 2000
    machine.boot(TOMORROW)  # the same launch's bootcmd, with the first deadline in it
    assert machine.deadline() == moved


def test_a_machine_without_our_timer_is_not_told_a_deadline(machine: Machine) -> None:
    machine.units.mkdir(parents=True)
    with pytest.raises(subprocess.CalledProcessError):
        machine.move(TOMORROW)
    assert list(machine.units.iterdir()) == []


def test_a_deadline_without_a_zone_moves_nothing() -> None:
    with pytest.raises(ValueError, match="zone"):
        move_deadline_script(datetime(2030, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize(
    "printed", ["", "OnCalendar=tomorrow UTC", "xOnCalendar=2026-01-01 00:00:00 UTC", "TimersCalendar="]
)
def test_what_a_unit_does_not_say_is_no_deadline(printed: str) -> None:
    assert held_deadline(printed) is None


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here to ask")
def test_systemd_repeats_a_deadline_as_it_was_written() -> None:
    text = f"{TOMORROW:%Y-%m-%d %H:%M:%S} UTC"
    asked = subprocess.run(["systemd-analyze", "calendar", text], capture_output=True, text=True, check=True)
    assert text in re.sub(r"\s+", " ", asked.stdout)


def test_a_machine_that_is_started_after_its_deadline_leaves_its_owner_some_minutes(machine: Machine) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    overdue = before - timedelta(days=2)
    machine.boot(overdue)
    assert machine.boot(overdue)[-1] == f"start {TIMER}"
    assert machine.deadline() >= before + timedelta(seconds=GRACE_S)
    assert machine.deadline() < before + timedelta(hours=1)


def test_a_machine_that_boots_for_the_first_time_after_its_deadline_is_wanted_by_nobody(machine: Machine) -> None:
    overdue = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=1)
    assert machine.boot(overdue)[-1] == f"start {TIMER}"
    assert machine.deadline() == overdue, "or it would cost more than its deadline has said"


def test_a_reboot_gives_no_time_to_a_machine_that_nobody_starts_again(machine: Machine) -> None:
    overdue = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=5)
    machine.boot(overdue, grace_s=0.0)
    machine.boot(overdue, grace_s=0.0)
    assert machine.deadline() <= datetime.now(UTC)


def test_a_baked_image_brings_no_deadline_of_its_own(machine: Machine) -> None:
    machine.boot(TOMORROW, public="ssh-ed25519 AAAAbaked")
    machine.boot(TOMORROW + timedelta(days=1), public="ssh-ed25519 AAAAnew")
    assert machine.deadline() == TOMORROW + timedelta(days=1)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here to ask")
def test_systemd_accepts_both_units(machine: Machine) -> None:
    machine.boot(TOMORROW)
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(machine.units / TIMER), str(machine.units / SERVICE)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")
