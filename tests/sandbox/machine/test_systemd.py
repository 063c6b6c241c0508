"""The emulated systemd and sudo: what their words mean."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.sandbox.guest import systemd


@given(st.integers(min_value=0, max_value=7_000_000_000))
def test_a_date_in_utc_means_that_instant(seconds):
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    assert systemd.calendar_time(text) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("5min", 300), ("1h 30min", 5400), ("2.5s", 2.5), ("1d", 86400)]
)
def test_a_span_of_time_is_read_as_systemd_does(text, seconds):
    assert systemd.span_s(text) == seconds


@pytest.mark.parametrize("text", ["daily", "Mon *-*-* 00:00:00", "2026-01-01", "", "*:0/5"])
def test_other_calendar_expressions_are_refused(text):
    with pytest.raises(systemd.NotEmulated):
        systemd.calendar_time(text)


@given(st.text())
def test_any_text_is_a_unit_file_or_none_of_its_lines(text):
    systemd.parse(text)


def test_a_unit_files_last_value_counts_and_an_empty_one_clears():
    unit = systemd.parse("""
        # comment
        [Service]
        ExecStart=/bin/a
        ExecStart=/bin/b \\
           c
        Environment=A=1
        Environment=
        Type=simple
        Type=oneshot
    """)
    assert unit.values["Service", "ExecStart"] == ["/bin/a", "/bin/b             c"]
    assert ("Service", "Environment") not in unit.values
    assert unit.last("Service", "Type") == "oneshot"


def test_services_start_end_and_fail_as_systemctl_says(container, eventually):
    unit_file(container, "long.service", "[Service]\nExecStart=sleep 1000\n")
    script = 'ExecStart=sh -c "echo $A > /opt/once; exit 3"'
    unit_file(container, "once.service", f"[Service]\nType=oneshot\nEnvironment=A=b\n{script}\n")
    assert container.ssh("systemctl is-active long").returncode == 3
    container.out("sudo systemctl daemon-reload && sudo systemctl start long")
    assert container.out("systemctl is-active long") == "active"
    container.out("sudo systemctl stop long.service")
    eventually(lambda: container.ssh("systemctl is-active long").returncode == 3)
    failed = container.ssh("systemctl start once")
    assert failed.returncode == 1
    assert b"failed with 3" in failed.stderr
    assert container.out("cat /opt/once") == "b"
    assert container.out("service ssh status") == "active"


def test_timers_are_enabled_and_run_their_service(container, eventually):
    unit_file(container, "soon.timer", "[Timer]\nOnActiveSec=1\nUnit=told.service\n")
    unit_file(container, "told.service", "[Service]\nType=oneshot\nExecStart=touch /opt/told\n")
    container.out("sudo systemctl enable --now soon.timer")
    assert container.out("systemctl is-enabled soon.timer") == "enabled"
    eventually(lambda: container.ssh("test -e /opt/told").returncode == 0)
    container.out("systemctl disable --now soon.timer")
    assert container.ssh("systemctl is-enabled soon.timer").returncode == 1


def test_a_timer_shows_what_it_holds_and_not_what_its_file_says(container):
    unit_file(container, "late.timer", "[Timer]\nOnCalendar=2099-01-01 00:00:00 UTC\nUnit=told.service\n")
    show = "systemctl show --property=TimersCalendar late.timer"
    assert container.out(show) == "TimersCalendar="
    container.out("sudo systemctl start late.timer")
    unit_file(container, "late.timer", "[Timer]\nOnCalendar=2098-01-01 00:00:00 UTC\nUnit=told.service\n")
    assert container.out(show).startswith("TimersCalendar={ OnCalendar=2099-01-01 00:00:00 UTC ; next_elapse=")
    container.out("sudo systemctl restart late.timer")
    assert "OnCalendar=2098-01-01 00:00:00 UTC" in container.out(show)
    assert b"not emulated" in container.ssh("systemctl show late.timer").stderr


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("sudo -n true && echo ok", "ok"),
        ("sudo -H -S -n -u root /bin/sh -c 'echo $HOME $USER'", "/root root"),
        ("sudo -u ubuntu sh -c 'echo $HOME $USER'", "/home/ubuntu ubuntu"),
        ("sudo A=1 B='x y' sh -c 'echo $A $B'", "1 x y"),
        ("sudo -E -- sh -c 'echo $SUDO_USER'", "ubuntu"),
        ("sudo -i pwd", "/root"),
        ("sudo -s 'echo $((1+1))'", "2"),
        ("echo typed | sudo cat", "typed"),
        ("sudo -v && sudo -k && echo ok", "ok"),
        ("sudo -k -n sh -c 'exit 7'; echo $?", "7"),
        ("sudo -u postgres true 2>&1 || echo refused", "sudo: user postgres: not emulated in the sandbox\nrefused"),
    ],
)
def test_sudo_reads_its_command_line(container, command, output):
    assert container.out(command) == output


def unit_file(unit, name: str, text: str) -> None:
    assert unit.ssh(f"sudo tee /etc/systemd/system/{name}", stdin=text.encode()).returncode == 0
