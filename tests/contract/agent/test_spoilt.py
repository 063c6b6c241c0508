"""Jobs that spoil what the agent relies on: they may lose their own run, and nothing else, the deadline above all."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import time
from pathlib import Path

import pytest

from cloudrun.agent import processes
from cloudrun.core import rundir
from cloudrun.core.rundir import read_object, write_json
from tests.waiting import WAIT, until

from .conftest import Unit, kill

FOREVER = "import time; time.sleep(60)"
# what a job does to the agent's files, from its working directory
SPOILING = {
    "its lock is a pipe": "os.unlink('../supervisor.lock'); os.mkfifo('../supervisor.lock')",
    "its lock is a folder": "os.unlink('../supervisor.lock'); os.makedirs('../supervisor.lock/x')",
    "its status is a pipe": "os.unlink('../status.json'); os.mkfifo('../status.json'); os.open('../status.json', 2)",
    "its status is endless": "os.unlink('../status.json'); os.symlink('/dev/zero', '../status.json')",
    "its status is huge": "open('../status.json', 'w').truncate(1 << 40)",
    "news are a pipe": "os.mkfifo('../../../news.json.tmp')",
    "news are a folder": "os.unlink('../../../news.json'); os.mkdir('../../../news.json')",
    "the socket is a folder": (
        "os.unlink('../../../warden.sock'); os.makedirs('../../../warden.sock/x')\n"
        "os.kill(json.load(open('../../../warden.lock'))['pid'], 9)"
    ),
    "the warden's lock is a pipe": "os.unlink('../../../warden.lock'); os.mkfifo('../../../warden.lock')",
    "orders make no sense": "open('../../../orders.json', 'w').write('{\"deadline\": NaN, \"idle_s\": \"soon\"}')",
    "the warden is stopped": "os.kill(json.load(open('../../../warden.lock'))['pid'], 19)",
    "nobody says anything": (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (2000, 2000)); held = []\n"
        "for _ in range(1500):\n"
        "    held.append(socket.socket(socket.AF_UNIX)); held[-1].settimeout(1)\n"
        "    held[-1].connect('../../../warden.sock')\n"
    ),
}


@pytest.mark.parametrize("what", SPOILING)
def test_the_deadline_is_kept_whatever_a_job_spoils(unit: Unit, what: str) -> None:
    unit.orders(deadline=time.time() + 3)
    until(lambda: unit.news().get("heartbeat_at"))
    code = "import os, json, socket, time\n"
    unit.start(f"{code}{SPOILING[what]}\nopen('spoilt', 'w')\ntime.sleep(60)")
    until(unit.powered_off)
    assert set(unit.powered_off()) == {"systemctl poweroff"}


def test_a_spoilt_run_takes_no_descriptors_from_the_warden(unit: Unit) -> None:
    run = unit.start(f"import os\nos.unlink('../status.json'); os.mkdir('../status.json'); print('ok'){WAIT}")
    run.says(b"ok")
    warden = unit.warden()
    unit.ask("orders", orders=None)

    def held() -> int:
        return len(list(Path(f"/proc/{warden}/fd").iterdir()))

    before = held()
    for _ in range(20):
        unit.ask("orders", orders=None)
    until(lambda: held() <= before + 1)  # it may be looking at something just now


def test_a_warden_without_descriptors_forgets_no_run(unit: Unit) -> None:
    run = unit.start(WAIT)
    unit.orders(power_off_when_done=True)
    unit.hang_up()
    warden = unit.warden()
    # as if a system's table were full: what it has open stays so, and nothing more can be opened
    resource.prlimit(warden, resource.RLIMIT_NOFILE, (3, resource.prlimit(warden, resource.RLIMIT_NOFILE)[1]))
    until(run.dir.heartbeat.exists)
    beats = run.dir.heartbeat.stat().st_mtime_ns
    until(lambda: run.dir.heartbeat.stat().st_mtime_ns > beats + 7 * 10**9)
    assert unit.powered_off() == []
    run.go_on()
    until(lambda: (read_object(run.dir.status) or {}).get("state") == "exited")


def test_a_supervisor_that_its_job_has_stopped_goes_on(unit: Unit) -> None:
    run = unit.start("import os, signal, sys\nos.kill(os.getppid(), signal.SIGSTOP)\nsys.exit(5)")
    assert run.follow()["exit_code"] == 5


def test_a_job_that_would_not_be_cancelled_is(unit: Unit) -> None:
    code = "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nos.makedirs('../cancel.json/x')"
    run = unit.start(f"{code}\nprint('ok')\ntime.sleep(60)")
    run.says(b"ok")
    assert run.cancel(grace_s=0.1)["signal"] == signal.SIGKILL


def test_a_log_that_is_none_any_more_keeps_nobody_from_the_end(unit: Unit) -> None:
    run = unit.start(
        "import os, sys\nos.unlink('../stdout.log')\nos.symlink('stdout.log', '../stdout.log')\nsys.exit(3)"
    )
    assert run.follow()["exit_code"] == 3
    run = unit.start("import os, sys\nos.unlink('../stdout.log')\nos.mkdir('../stdout.log')\nsys.exit(4)", "another")
    assert run.follow()["exit_code"] == 4
    assert [log["path"] for log in read_object(run.dir.outputs)["logs"]] == ["stderr.log"]  # type: ignore[index]


def test_folders_deeper_than_anybody_can_walk_are_left_out_and_removed(unit: Unit) -> None:
    code = (
        "import os, sys\n"
        "for top in ('.', os.environ['TMPDIR']):\n"
        "    os.chdir(top)\n"
        "    for _ in range(3000): os.mkdir('d'); os.chdir('d')\n"
        "    if top == '.': open('made', 'w').close()\n"
        "sys.exit(6)"
    )
    run = unit.start(code)
    ended = run.follow()
    assert (ended["exit_code"], ended.get("error", "")) == (6, "")
    made = read_object(run.dir.outputs)
    assert made is not None
    assert [reason for _, reason in made["left_out"]] == ["File name too long"]
    assert not run.dir.tmp.exists()
    unit.ask("home", run_dir=run.name)
    last = unit.start("pass", "last")
    last.follow()
    unit.ask("home", run_dir=last.name)
    until(lambda: [path.name for path in (unit.home / rundir.RUNS).iterdir()] == ["last.1"])


@pytest.mark.parametrize("spoilt", ['{"code.py": 1}', '{"made": {"sha256": 1, "stat": [1]}}', "[" * 100_000])
def test_the_end_of_a_job_that_spoils_what_was_shipped_is_told(unit: Unit, spoilt: str) -> None:
    run = unit.start(f"import sys\nopen('made', 'w')\nopen('../shipped.json', 'w').write({spoilt!r})\nsys.exit(6)")
    ended = run.follow()
    assert (ended["exit_code"], ended.get("error", "")) == (6, "")
    made = read_object(run.dir.outputs)
    assert made is not None
    assert [entry["path"] for entry in made["entries"]] == ["made"]


def test_a_lock_that_a_job_keeps_shuts_no_client_out(unit: Unit) -> None:
    code = "import fcntl\nheld = open('../../../clients.lock')\nfcntl.flock(held, fcntl.LOCK_EX)\nprint('ok')"
    run = unit.start(f"{code}{WAIT}")
    unit.hang_up()
    run.says(b"ok")
    run.go_on()
    assert run.follow()["exit_code"] == 0


# -- whoever is killed -----------------------------------------------------------------------------------------------


def test_the_end_of_a_job_is_known_whose_supervisor_was_killed_while_it_digested(unit: Unit) -> None:
    code = f"import sys\nopen('large', 'w').truncate(10**11){WAIT}\nsys.exit(7)"
    run = unit.start(code, output_max_bytes=10**12)
    supervisor = run.supervisor()
    unit.hang_up()
    run.go_on()
    until(lambda: (read_object(run.dir.ended) or {}).get("exit_code") is not None)
    kill(supervisor)
    os.truncate(run.dir.work / "large", 1)  # whoever digests it now has less to do
    assert (read_object(run.dir.status) or {})["state"] == "running"
    ended = run.follow()
    assert (ended["exit_code"], ended["reason"]) == (7, "")
    assert ended["usage"]["peak_memory_bytes"] > 0


def test_orders_find_a_warden_of_their_own_version(unit: Unit) -> None:
    unit.orders()
    first = unit.warden()
    unit.hang_up()
    unit.bring(".cloudrun/agent/another.pyz")
    unit.orders()
    until(lambda: (process := processes.look(first)) is None or process.state == "Z")
    assert (read_object(unit.home / rundir.WARDEN_LOCK) or {})["agent"].endswith("another")


def test_an_image_with_old_orders_and_no_news_leaves_time_to_move_the_deadline(unit: Unit) -> None:
    past = {"deadline": time.time() - 100, "idle_s": None, "spot": False, "power_off_when_done": False}
    write_json(unit.home / rundir.ORDERS, past)
    os.utime(unit.home / rundir.ORDERS, (1, 1))
    unit.ask("orders", orders=None)
    until(lambda: unit.news().get("warden_pid") == unit.warden())
    assert unit.start("pass").follow()["reason"] == ""
    assert unit.powered_off() == []


def test_a_supervisor_that_comes_too_late_is_told_so() -> None:
    from cloudrun.agent import summon, supervisor

    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not summon.is_taken(ours, 0)
        with pytest.raises(BrokenPipeError):
            os.write(theirs.fileno(), supervisor.TAKEN)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        os.write(theirs.fileno(), supervisor.TAKEN)
        ours.shutdown(socket.SHUT_RD)
        assert summon.is_taken(ours, 0)


def test_a_document_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with contextlib.suppress(OSError):
        write_json(tmp_path / "taken", {})
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
