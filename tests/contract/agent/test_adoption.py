"""Jobs whose supervisor, warden, or both are killed: they go on, are watched again, and their end is told truly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from cloudrun.agent import adoption, processes
from cloudrun.core import rundir
from cloudrun.core.rundir import RunDir, read_object, write_json
from tests.waiting import DAEMON, WAIT, until

from .conftest import Unit, kill, kill_together


def test_a_job_whose_supervisor_is_killed_goes_on_and_its_exit_code_is_known(unit: Unit) -> None:
    run = unit.start(f"import sys{WAIT}\nprint('end')\nsys.exit(7)")
    kill(run.supervisor())
    assert run.now()["state"] == "running"
    until(lambda: run.supervisor() == unit.warden())
    run.go_on()
    ended = run.follow()
    assert (ended["exit_code"], ended["reason"], ended.get("error", "")) == (7, "", "")
    assert ended["pid"] == run.pid
    assert ended["started_at"] == run.status["started_at"]
    assert run.dir.stdout.read_bytes() == b"end\n"


def test_a_signal_that_ends_an_adopted_job_is_known(unit: Unit) -> None:
    run = unit.start(WAIT)
    kill(run.supervisor())
    assert run.now()["state"] == "running"
    os.kill(run.pid, signal.SIGABRT)
    assert run.follow()["signal"] == signal.SIGABRT


def test_a_job_that_ended_together_with_its_supervisor_is_known_too(unit: Unit) -> None:
    run = unit.start(WAIT)
    supervisor = run.supervisor()
    os.kill(supervisor, signal.SIGSTOP)
    os.kill(run.pid, signal.SIGTERM)
    kill(supervisor)
    assert run.follow()["signal"] == signal.SIGTERM


def test_an_adopted_job_can_be_cancelled(unit: Unit) -> None:
    run = unit.start(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready')\ntime.sleep(60)"
    )
    run.says(b"ready")
    kill(run.supervisor())
    ended = run.cancel(grace_s=0.2)
    assert (ended["reason"], ended["signal"]) == ("cancelled", signal.SIGKILL)


def test_an_adopted_job_keeps_its_limits_and_its_heartbeat(unit: Unit) -> None:
    beating = unit.start(WAIT, "beating")
    run = unit.start("import time; time.sleep(60)", wall_time_s=4.0)
    for each in (run, beating):
        kill(each.supervisor())
    ended = run.follow()
    until(beating.dir.heartbeat.exists)
    before = beating.dir.heartbeat.stat().st_mtime_ns
    until(lambda: beating.dir.heartbeat.stat().st_mtime_ns > before)
    assert (ended["reason"], ended["signal"]) == ("wall_time", signal.SIGTERM)


def test_a_daemon_of_an_adopted_job_ends_with_it(unit: Unit) -> None:
    run = unit.start(DAEMON + WAIT)
    note = run.dir.work / "daemon.pid"
    until(note.exists)
    kill(run.supervisor())
    run.go_on()
    assert run.follow()["exit_code"] == 0
    assert int(note.read_text()) not in processes.below(str(run.dir.root))


def test_a_supervisor_starts_the_warden_that_it_misses(unit: Unit) -> None:
    run = unit.start(f"{WAIT}\nimport sys; sys.exit(3)")
    first = unit.warden()
    supervisor = run.supervisor()
    unit.hang_up()
    kill(first)
    until(lambda: unit.warden() != first)
    until(lambda: processes.children(supervisor) == [run.pid])  # the warden would be ended with the job
    run.go_on()
    until(lambda: (read_object(run.dir.status) or {}).get("state") == "exited")
    assert (read_object(run.dir.status) or {})["exit_code"] == 3
    assert processes.look(unit.warden()) is not None


def test_the_next_warden_keeps_watch_over_what_it_finds(unit: Unit) -> None:
    run = unit.start(WAIT)
    first, supervisor = unit.warden(), run.supervisor()
    kill(first)
    until(lambda: unit.warden() != first)
    kill(supervisor)
    assert run.now()["state"] == "running"
    assert run.cancel(grace_s=5)["reason"] == "cancelled"


def test_where_supervisor_and_warden_were_killed_nobody_sees_how_it_ends(unit: Unit) -> None:
    run = unit.start(WAIT)
    supervisor = run.supervisor()
    kill_together(unit.warden(), supervisor)
    kill(run.pid)
    until(lambda: processes.look(run.pid) is None)
    ended = run.follow()
    assert ended["state"] == "exited"
    assert ended["error"] == adoption.NOBODY_SAW
    assert ended.keys().isdisjoint({"exit_code", "signal"})


def test_a_forked_job_tells_its_exit_code_itself(unit: Unit) -> None:
    code = f"{WAIT}\nopen('../ended.json', 'w').write('{{\"pid\": %d, \"exit_code\": 3}}' % os.getpid())"
    run = unit.start(code)
    supervisor = run.supervisor()
    kill_together(unit.warden(), supervisor)
    assert run.now()["state"] == "running"
    run.go_on()
    assert run.follow()["exit_code"] == 3


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"pid_started": "1"}, adoption.NOBODY_SAW),
        ({"boot_id": "another boot"}, adoption.REBOOTED),
        ({"pid": None}, adoption.NOBODY_SAW),
    ],
)
def test_another_process_with_the_pid_of_a_job_is_left_alone(unit: Unit, changed: dict[str, Any], error: str) -> None:
    command = [sys.executable, "-S", "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as other:
        run = RunDir(unit.home / rundir.run_dir("run", 1))
        run.work.mkdir(parents=True)
        write_json(run.spec, rundir.spec("run", 1, ["true"], ".", {}, 1000, 10, 1.0))
        recorded = {
            "state": "running",
            "started_at": time.time(),
            "pid": other.pid,
            "pid_started": processes.start_time(other.pid),
            "boot_id": processes.boot_id(),
        }
        write_json(run.status, {**recorded, **changed})
        ended = unit.ask("follow", run_dir=rundir.run_dir("run", 1), offsets={})["status"]
        assert (ended["state"], ended["error"]) == ("exited", error)
        assert other.poll() is None
        other.communicate(b"\n", timeout=120)


def test_a_job_that_was_to_be_started_when_its_starter_was_killed_is_started(unit: Unit) -> None:
    run = RunDir(unit.home / rundir.run_dir("run", 1))
    run.work.mkdir(parents=True)
    argv = [sys.executable, "-S", "-c", "open('ran', 'a').write('x')"]
    write_json(run.spec, rundir.spec("run", 1, argv, ".", {}, 1000, 10, 1.0))
    write_json(run.status, {"state": "starting"})
    ended = unit.ask("follow", run_dir=rundir.run_dir("run", 1), offsets={})["status"]
    assert ended["exit_code"] == 0
    assert (run.work / "ran").read_text() == "x"


def test_a_job_starts_without_a_warden_where_there_can_be_none(unit: Unit) -> None:
    """Its lock is taken, and nobody listens."""
    import fcntl

    with (unit.home / rundir.WARDEN_LOCK).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = unit.start("print('hello')")
        assert run.follow()["exit_code"] == 0
        run = unit.start(f"import sys{WAIT}", "another")
        kill(run.supervisor())
        assert run.now()["state"] == "running"
        run.go_on()
        assert run.follow()["state"] == "exited"


def test_a_warden_of_another_version_makes_room(unit: Unit) -> None:
    run = unit.start(WAIT)
    first = unit.warden()
    unit.hang_up()
    unit.bring(".cloudrun/agent/another.pyz")
    assert unit.start("print('hello')", "another").follow()["exit_code"] == 0
    assert unit.warden() != first
    run.go_on()
    assert run.follow()["exit_code"] == 0


def test_a_warden_ends_when_its_home_vanishes(unit: Unit) -> None:
    unit.orders()
    warden = unit.warden()
    unit.hang_up()
    (unit.home / ".cloudrun").rename(unit.home / "gone")
    until(lambda: (found := processes.look(warden)) is None or found.state == "Z")


def test_an_old_python_does_it_all_as_well(old_unit: Unit) -> None:
    run = old_unit.start(f"{WAIT}\nimport sys; sys.exit(7)", memory_bytes=1 << 40, disk_bytes=1 << 40)
    kill(run.supervisor())
    assert run.now()["state"] == "running"
    run.go_on()
    assert run.follow()["exit_code"] == 7
    killed = old_unit.start(WAIT, "another")
    first = old_unit.warden()
    kill(first)
    until(lambda: old_unit.warden() != first)
    kill(killed.supervisor())
    assert killed.cancel(grace_s=5)["reason"] == "cancelled"
    old_unit.orders(deadline=time.time() - 1)
    until(old_unit.powered_off)
