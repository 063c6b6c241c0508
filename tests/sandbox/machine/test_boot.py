"""What a machine does with user-data, and the ways in which it ends."""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloudrun.plan import userdata
from cloudrun.sandbox import machine

BOTH = pytest.mark.parametrize("driver", ["namespaces", "plain"])
WAIT_S = 90


def test_user_data_runs_in_the_order_of_cloud_init(new_unit, eventually):
    unit = new_unit().start(
        bootcmd=["echo boot >> /root/order; ls /etc/motd-of-ours >> /root/order 2>&1 || true"],
        write_files=[
            {"path": "/etc/motd-of-ours", "content": "hello\n", "permissions": "0600"},
            {"path": "/opt/a/b", "content": "aGk=", "encoding": "b64"},
        ],
        ssh_deletekeys=True,
        runcmd=[["sh", "-c", "cat /etc/motd-of-ours >> /root/order"], "false", "echo last >> /root/order"],
    )
    eventually(lambda: "last" in unit.out("cat /root/order"))
    lines = unit.out("cat /root/order").splitlines()
    assert lines[0] == "boot"
    assert "No such file" in lines[1]
    assert lines[2:] == ["hello", "last"]
    assert unit.out("stat -c %a /etc/motd-of-ours; cat /opt/a/b") == "600\nhi"
    assert "ended with 1" in unit.out("cat /var/log/cloud-init-output.log")


def test_a_script_as_user_data_runs_once_sshd_is_up(new_unit, eventually):
    unit = new_unit()
    unit.spec = dataclasses.replace(unit.spec, user_data="#!/bin/sh\nid -u > /root/ran\n")
    unit.start()
    unit.host_key = unit.out_of_band_host_key()
    assert eventually(lambda: unit.ssh("cat /root/ran").stdout) == b"0\n"


def test_what_is_not_emulated_is_named(new_unit, eventually):
    unit = new_unit().start(packages=["htop"], power_state={"mode": "off"})
    eventually(lambda: "packages: not emulated" in unit.out("cat /var/log/cloud-init-output.log"))
    refused = unit.ssh("systemctl start nginx@1.socket")
    assert refused.returncode == 1
    assert b"not emulated" in refused.stderr
    assert unit.ssh("systemctl start no-such-thing").returncode == 5


def test_a_stopped_machine_keeps_its_disk_but_not_what_is_temporary(new_unit, eventually):
    unit = new_unit().start(bootcmd=["echo boot >> /root/boots"], runcmd=["echo first >> /root/boots"])
    unit.out("sudo touch /etc/kept /opt/kept; touch kept /tmp/gone /run/gone; mkdir -m 0 locked; sync")
    eventually(lambda: "first" in unit.out("cat /root/boots"))
    unit.running.kill()
    unit.start()
    assert unit.out("ls /etc/kept /opt/kept kept; ls /tmp/gone /run/gone 2>/dev/null || true").split() == [
        "/etc/kept",
        "/opt/kept",
        "kept",
    ]
    assert unit.out("cat /root/boots").split() == ["boot", "first", "boot"]


def test_cloudruns_own_user_data_powers_the_machine_off_at_its_deadline(new_unit):
    deadline = in_seconds(8)  # a machine that is up only after it is left alone for a while
    ends = with_deadline(new_unit(), deadline)
    ends.machine = machine.start(ends.spec, ends.driver)
    unit = armed(new_unit(), in_seconds(7200))
    assert "cloudrun-deadline.timer" in unit.out("systemctl list-timers")
    assert unit.out("systemctl is-active cloudrun-deadline.timer") == "active"
    assert ends.running.wait(WAIT_S) == "powered_off"
    assert datetime.now(UTC) >= deadline


def with_deadline(unit, deadline):
    text = userdata.user_data(
        deadline=deadline,
        host_private_key=(unit.folder / "host").read_text(),
        host_public_key=unit.host_key.strip(),
        overdue_grace_s=300.0,
    )
    unit.spec = dataclasses.replace(unit.spec, user_data=text)
    return unit


def armed(unit, deadline):
    return with_deadline(unit, deadline).start()


def in_seconds(seconds):
    return datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)


def move(unit, deadline):
    """Move the deadline as a client does; returns what the unit's systemd then holds."""
    return userdata.held_deadline(unit.out(f"sudo -n sh -c {shlex.quote(userdata.move_deadline_script(deadline))}"))


def test_a_deadline_that_is_moved_later_is_not_the_old_one_any_more_and_survives_a_reboot(new_unit):
    unit = armed(new_unit(), in_seconds(3600))
    first, later = in_seconds(6), in_seconds(7200)
    assert move(unit, first) == first
    assert move(unit, later) == later
    assert unit.running.wait((first - datetime.now(UTC)).total_seconds() + 1) is None
    unit.running.kill()
    unit.start()
    held = unit.out("systemctl show --property=TimersCalendar cloudrun-deadline.timer")
    assert f"OnCalendar={later:%Y-%m-%d %H:%M:%S} UTC" in held


def test_a_deadline_that_is_moved_earlier_powers_the_machine_off_then(new_unit):
    unit = armed(new_unit(), in_seconds(7200))
    sooner = in_seconds(6)
    assert move(unit, sooner) == sooner
    assert unit.running.wait(WAIT_S) == "powered_off"
    assert datetime.now(UTC) >= sooner


def test_a_deadline_that_is_moved_twice_and_back_still_ends_the_machine(new_unit):
    unit = armed(new_unit(), in_seconds(7200))
    for seconds in (3600, 9000):
        moment = in_seconds(seconds)
        assert move(unit, moment) == moment
    sooner = in_seconds(6)
    assert move(unit, sooner) == sooner
    assert unit.running.wait(WAIT_S) == "powered_off"


def test_a_deadline_that_is_moved_into_the_past_ends_the_machine_at_once(new_unit):
    unit = armed(new_unit(), in_seconds(7200))
    script = userdata.move_deadline_script(in_seconds(-60))
    unit.ssh(f"sudo -n sh -c {shlex.quote(script)}")
    assert unit.running.wait(WAIT_S) == "powered_off"


def test_a_machine_that_nobody_armed_is_told_no_deadline(new_unit):
    unit = new_unit().start()
    done = unit.ssh(f"sudo -n sh -c {shlex.quote(userdata.move_deadline_script(in_seconds(7200)))}")
    assert done.returncode != 0
    assert userdata.held_deadline(done.stdout.decode()) is None


def test_a_new_host_key_counts_from_the_reload_on(new_unit, eventually):
    unit = new_unit().start()
    new_key = unit.out(
        "ssh-keygen -q -t ed25519 -N '' -C '' -f new && sudo -n cp new /etc/ssh/ssh_host_ed25519_key && "
        "sudo -n systemctl reload ssh && cat new.pub"
    )
    eventually(lambda: unit.ssh("true").returncode == 255)
    unit.host_key = new_key
    assert unit.ssh("true").returncode == 0


def test_an_sshd_that_is_killed_comes_back(new_unit, eventually):
    unit = new_unit().start()
    unit.ssh("kill -9 $(ps -o ppid= -p $$)")
    eventually(lambda: unit.ssh("true").returncode == 0)


# -- the end ---------------------------------------------------------------------------------------------------------

POWER_OFF = (
    "sudo shutdown -h now",
    "sh -lc 'shutdown now'",
    "/sbin/shutdown -P +0",
    "/usr/sbin/poweroff",
    "/usr/bin/systemctl poweroff -i",
    "sudo systemctl --force --force poweroff",
    "sudo -n halt -p",
    "init 0",
    "python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0x4321fedc)'",
    "python3 -c 'import ctypes; ctypes.CDLL(None).reboot(-839974621)'",
)


@pytest.mark.parametrize("command", POWER_OFF)
def test_every_way_to_power_off_ends_the_unit_alone(new_unit, command):
    path = command.split()[0]
    if path.startswith("/") and not Path(path).exists():
        pytest.skip(f"this computer has no {path}")
    unit = new_unit().start()
    unit.ssh(command)
    assert unit.running.wait(WAIT_S) == "powered_off"


@pytest.mark.parametrize(
    "command", ["sudo reboot", "shutdown -r now", "python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0x1234567)'"]
)
def test_every_way_to_reboot_says_so(new_unit, command):
    unit = new_unit().start()
    unit.ssh(command)
    assert unit.running.wait(WAIT_S) == "rebooted"


@BOTH
def test_shutdown_on_the_path_ends_a_unit_of_either_driver(new_unit, driver):
    unit = new_unit(driver).start()
    assert unit.running.wait(0.0) is None
    unit.ssh("shutdown -h now")
    assert unit.running.wait(WAIT_S) == "powered_off"


@BOTH
def test_kill_leaves_no_process_of_the_unit(new_unit, processes, eventually, driver):
    unit = new_unit(driver).start()
    mark = f"sleep 1{os.getpid()}.{time.monotonic_ns()}"
    unit.out(f"setsid sh -c '{mark} & exec {mark}' >/dev/null 2>&1 </dev/null & nohup {mark} >/dev/null 2>&1 & true")
    unit.out(f"python3 -c 'import os; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0);"
             f"os.closerange(0, 9); os.execlp(\"sleep\", *\"{mark}\".split())'")  # fmt: skip
    eventually(lambda: len(processes(mark.replace(" ", "\0"))) == 4)
    unit.running.kill()
    assert processes(mark.replace(" ", "\0")) == []
    assert unit.running.wait(0.0) == "died"
    unit.running.kill()  # again is fine


@BOTH
def test_a_unit_does_not_outlive_the_process_that_started_it(new_unit, processes, eventually, driver):
    unit = new_unit(driver)
    mark = f"1{os.getpid()}.{time.monotonic_ns()}"
    unit.spec = dataclasses.replace(unit.spec, user_data=unit.user_data(runcmd=[f"setsid sleep {mark} &"]))
    if driver == "plain":
        unit.spec = dataclasses.replace(unit.spec, user_data=unit.user_data())
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(f"""
        import time
        from pathlib import Path, PosixPath
        from cloudrun.sandbox.machine import MachineSpec, start
        started = start({unit.spec!r}, {driver!r})
        print("started", flush=True)
        time.sleep(600)
    """)], stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert parent.stdout.readline() == b"started\n"
        eventually(lambda: unit.ssh("true").returncode == 0)
        if driver == "plain":
            unit.ssh(f"setsid sleep {mark} >/dev/null 2>&1 </dev/null &")
        eventually(lambda: processes(f"sleep\0{mark}"))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        parent.stdout.close()
    eventually(lambda: not processes(f"sleep\0{mark}"))
    eventually(lambda: unit.ssh("true").returncode == 255)


def test_removing_a_unit_removes_what_it_made_unreadable(new_unit):
    unit = new_unit().start()
    unit.out("mkdir -p a/b && touch a/b/c && chmod 0 a/b a; ln -s /etc/passwd l")
    unit.running.kill()
    machine.remove(unit.directory)
    assert not unit.directory.exists()
    assert Path("/etc/passwd").exists()
    machine.remove(unit.directory)
