"""What a job may take, and what it is said to have taken: measured on real processes."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from cloudrun.core.rundir import read_object
from tests.waiting import WAIT, until

from .conftest import Unit, kill

MB = 1024 * 1024
HOLD = "held = bytearray(os.urandom(1 << 20) * {mb})\n"


def test_a_job_ends_at_its_wall_time_and_may_save(unit: Unit) -> None:
    code = (
        "import signal, sys, time\n"
        "def save(*_):\n    open('partial', 'w').write('half'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\ntime.sleep(60)"
    )
    ended = unit.start(code, wall_time_s=3.0).follow()
    assert (ended["reason"], ended["exit_code"]) == ("wall_time", 0)
    assert ended["ended_at"] - ended["started_at"] >= 3.0


def test_a_job_that_ignores_its_limit_is_killed(unit: Unit) -> None:
    code = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"
    ended = unit.start(code, wall_time_s=3.0, grace_s=0.3).follow()
    assert (ended["reason"], ended["signal"]) == ("wall_time", signal.SIGKILL)


def test_the_memory_of_all_its_processes_counts(unit: Unit) -> None:
    code = f"import os, time\nfor _ in range(3): os.fork()\n{HOLD.format(mb=20)}time.sleep(60)"
    ended = unit.start(code, memory_bytes=100 * MB).follow()
    assert (ended["reason"], ended["signal"]) == ("memory", signal.SIGTERM)
    assert ended["usage"]["peak_memory_bytes"] > 100 * MB


def test_what_its_processes_share_counts_once(unit: Unit) -> None:
    code = f"import os, time\n{HOLD.format(mb=60)}for _ in range(3): os.fork()\ntime.sleep(1.0)\nos._exit(0)"
    ended = unit.start(code, memory_bytes=200 * MB).follow()
    assert (ended["reason"], ended["exit_code"]) == ("", 0)
    assert 60 * MB < ended["usage"]["peak_memory_bytes"] < 200 * MB


def test_what_its_supervisor_takes_is_no_usage_of_a_small_job(unit: Unit) -> None:
    small = unit.start("", argv=["sleep", "0.3"])
    assert 0 < small.follow()["usage"]["peak_memory_bytes"] < 6 * MB


def test_what_all_its_processes_wrote_counts_also_of_those_that_have_ended(unit: Unit) -> None:
    code = f"""
import os, time
for number in range(4):
    if os.fork() == 0:
        open(str(number), "wb").write(os.urandom({MB} * 2))
        os._exit(0)
    os.wait()
time.sleep(60)
"""
    ended = unit.start(code, disk_bytes=7 * MB).follow()
    if ended["usage"]["written_bytes"] == 0:
        pytest.skip("this file system is no storage")
    assert (ended["reason"], ended["signal"]) == ("disk", signal.SIGTERM)
    assert 7 * MB < ended["usage"]["written_bytes"] < 9 * MB


def test_its_logs_are_written_bytes_too(unit: Unit) -> None:
    code = "while True: print('x' * 10_000)"
    ended = unit.start(code, disk_bytes=3 * MB).follow()
    assert ended["reason"] == "disk"


def test_a_job_within_its_limits_ends_by_itself(unit: Unit) -> None:
    ended = unit.start("print('hello')", wall_time_s=60.0, memory_bytes=1 << 30, disk_bytes=1 << 30).follow()
    assert (ended["reason"], ended["exit_code"]) == ("", 0)


def test_the_first_reason_stays(unit: Unit) -> None:
    code = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready')\ntime.sleep(60)"
    run = unit.start(code, wall_time_s=3.0, grace_s=30.0)
    until(run.dir.cancel.exists)
    ended = run.cancel(grace_s=0.1)
    assert (ended["reason"], ended["signal"]) == ("wall_time", signal.SIGKILL)


def test_the_usage_of_a_job_is_that_of_all_its_processes(unit: Unit) -> None:
    code = f"""
import os, time
def work():
    end = time.process_time() + 0.3
    while time.process_time() < end: pass
{HOLD.format(mb=30)}
if os.fork() == 0:
    work()
    if os.fork() == 0:
        os.setsid()  # an orphan soon, and killed when the job has ended
        work()
        open("worked", "w").close()
        time.sleep(60)
    os._exit(0)
work()
while not os.path.exists("worked"): time.sleep(0.01)
"""
    ended = unit.start(code).follow()
    usage = ended["usage"]
    assert 0.85 <= usage["cpu_user_s"] + usage["cpu_system_s"] < 10
    assert 30 * MB < usage["peak_memory_bytes"] < 1000 * MB
    assert ended["forked"] is False


def test_the_usage_of_an_adopted_job_is_what_its_parent_was_told(unit: Unit) -> None:
    code = f"import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\nprint('ok'){WAIT}"
    run = unit.start(code)
    run.says(b"ok")
    kill(run.supervisor())
    assert run.now()["state"] == "running"
    run.go_on()
    usage = run.follow()["usage"]
    assert usage["cpu_user_s"] + usage["cpu_system_s"] >= 0.25


def test_many_processes_cost_their_supervisor_little(unit: Unit) -> None:
    code = f"import os\nfor _ in range(300):\n    if os.fork() == 0: time.sleep(60)\nprint('ready'){WAIT}"
    run = unit.start("import time\n" + code, memory_bytes=100 << 30, disk_bytes=100 << 30)
    run.says(b"ready")
    until(run.dir.heartbeat.exists)
    supervisor = Path(f"/proc/{run.supervisor()}/stat")

    def ticks() -> int:
        fields = supervisor.read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    beats = run.dir.heartbeat.stat().st_mtime_ns
    until(lambda: run.dir.heartbeat.stat().st_mtime_ns > beats + 2 * 10**9)
    taken = ticks() - before
    run.go_on()
    assert run.follow()["exit_code"] == 0
    assert taken < 100  # of the two hundred and more that have passed


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """The runs of the unit on a file system of 2 MB."""
    folder = tmp_path / "home" / ".cloudrun" / "runs"
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount")
    return folder


@pytest.fixture
def unit_with_small_disk(small_disk: Path, unit: Unit) -> object:
    yield unit
    unit.end()
    subprocess.run(["umount", "--lazy", str(small_disk)], check=True)


FILL = """
import sys
try:
    with open("filler", "wb", buffering=0) as file:
        while True: file.write(b"x" * 4096)
except OSError:
    pass
"""


def test_the_exit_code_of_a_job_that_filled_the_disk_is_told(unit_with_small_disk: Unit) -> None:
    run = unit_with_small_disk.start(FILL + "sys.exit(9)")
    assert run.follow()["exit_code"] == 9


def test_the_exit_code_of_an_adopted_job_that_filled_the_disk_is_told(unit_with_small_disk: Unit) -> None:
    run = unit_with_small_disk.start(WAIT + FILL + "sys.exit(9)")
    kill(run.supervisor())
    assert run.now()["state"] == "running"
    until(lambda: run.dir.ended.exists() and run.supervisor() == unit_with_small_disk.warden())
    assert read_object(run.dir.ended) is None
    run.go_on()
    assert run.follow()["exit_code"] == 9
