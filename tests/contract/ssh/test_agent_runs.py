"""Jobs on a real SSH host: started, followed, cancelled, and still told truly when they spoil what they can."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from cloudrun.core import rundir
from cloudrun.core.errors import CloudrunError, ConnectionLost
from cloudrun.core.rundir import RunDir, read_json
from cloudrun.ssh.agent import Agent
from tests.waiting import DAEMON, PATIENCE_S, WAIT, until

from .jobs import Printed, spec


def pid_in(path: Path) -> int:
    until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _parent(pid: int) -> int:
    return int(subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, check=True).stdout)


def test_a_job_prints_and_ends(agent: Agent, run_dir: str) -> None:
    printed = Printed()
    started = agent.start(run_dir, spec("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"))
    ended = agent.follow(run_dir, printed)
    assert started.state in ("running", "exited")
    assert (ended.state, ended.exit_code, ended.signal, ended.reason) == ("exited", 7, None, "")
    assert (printed.stdout, printed.stderr) == (b"out\n", b"err\n")
    assert started.pid == ended.pid
    assert ended.started_at is not None
    assert ended.ended_at is not None
    assert ended.started_at <= ended.ended_at


def test_a_job_that_is_killed_says_by_which_signal(agent: Agent, run_dir: str) -> None:
    agent.start(run_dir, spec("import os; os.kill(os.getpid(), 9)"))
    ended = agent.follow(run_dir, Printed())
    assert (ended.exit_code, ended.signal, ended.reason) == (None, signal.SIGKILL, "")


def test_a_job_that_cannot_start_says_why(agent: Agent, run_dir: str) -> None:
    agent.start(run_dir, spec("", argv=["no-such-program"]))
    ended = agent.follow(run_dir, Printed())
    assert ended.state == "exited"
    assert ended.exit_code is None
    assert "no-such-program" in ended.error


def test_a_job_gets_its_environment_its_folder_and_no_input(agent: Agent, run_dir: str) -> None:
    code = (
        "import os, sys; print(os.environ['ANSWER'], os.environ['PYTHONUNBUFFERED'], os.getcwd() + ' ' + "
        "os.environ['TMPDIR'], os.path.isdir(os.environ['TMPDIR']), repr(sys.stdin.read()), 'SSH_CONNECTION' in "
        "os.environ, os.getsid(0) == os.getpgid(0) == os.getpid())"
    )
    printed = Printed()
    agent.start(run_dir, spec(code, env={"ANSWER": "42"}, cwd="deep/inside"))
    agent.follow(run_dir, printed)
    words = printed.stdout.decode().split()
    assert words[:2] == ["42", "1"]
    assert words[2].endswith(f"{run_dir}/work/deep/inside")
    assert words[3].endswith(f"{run_dir}/tmp")
    assert words[4:] == ["True", "''", "False", "True"]


def test_a_program_below_the_home_is_meant_from_there(agent: Agent, run_dir: str, host: Any) -> None:
    environment = host.home / "venv"
    (environment / "bin").mkdir(parents=True, exist_ok=True)
    (environment / "pyvenv.cfg").touch()
    (environment / "bin" / "greet").write_text("#!/bin/sh\necho hello from $VIRTUAL_ENV\ncommand -v greet\n")
    (environment / "bin" / "greet").chmod(0o755)
    printed = Printed()
    agent.start(run_dir, spec("", argv=["venv/bin/greet"]))
    agent.follow(run_dir, printed)
    assert printed.stdout.decode().splitlines() == [f"hello from {environment}", f"{environment}/bin/greet"]


def test_output_comes_while_the_job_runs(agent: Agent, run_dir: str, host: Any) -> None:
    go_on = host.home / run_dir / "work" / "go-on"
    code = f"print('first')\n{WAIT}print('second')"
    printed = Printed()

    def sink(stream: str, data: bytes) -> None:
        printed(stream, data)
        go_on.touch()  # only what was printed before can bring the job to its end

    agent.start(run_dir, spec(code))
    assert agent.follow(run_dir, sink).exit_code == 0
    assert printed.stdout == b"first\nsecond\n"


def test_output_comes_byte_for_byte(agent: Agent, run_dir: str, host: Any) -> None:
    printed = Printed()
    agent.start(
        run_dir, spec("import os\nfor _ in range(60): os.write(1, os.urandom(50_000)); os.write(2, b'\\xff\\x1b[')")
    )
    agent.follow(run_dir, printed)
    run = RunDir(host.home / run_dir)
    assert printed.stdout == run.stdout.read_bytes()
    assert len(printed.stdout) == 3_000_000
    assert printed.stderr == b"\xff\x1b[" * 60


def test_a_follower_may_begin_in_the_middle(agent: Agent, run_dir: str) -> None:
    printed = Printed()
    agent.start(run_dir, spec("print('0123456789')"))
    agent.follow(run_dir, Printed())
    agent.follow(run_dir, printed, offsets={"stdout": 4})
    assert printed.stdout == b"456789\n"


def test_a_job_asked_to_start_twice_runs_once(agent: Agent, run_dir: str, host: Any) -> None:
    job = spec("open('count', 'a').write('x'); import time; time.sleep(0.2)")
    threads = [threading.Thread(target=agent.start, args=(run_dir, job)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    agent.follow(run_dir, Printed())
    agent.start(run_dir, job)
    assert (host.home / run_dir / "work" / "count").read_text() == "x"


def test_the_status_of_what_was_never_started_is_none(agent: Agent, run_dir: str, host: Any) -> None:
    assert agent.status(run_dir) is None
    assert not (host.home / run_dir).exists()
    with pytest.raises(CloudrunError, match="never started"):
        agent.follow(run_dir, Printed())


def test_a_cancelled_job_may_save_what_it_has(agent: Agent, run_dir: str) -> None:
    code = (
        "import signal, sys, time\n"
        "def save(*_):\n    open('partial', 'w').write('half'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\nprint('ready')\ntime.sleep(60)"
    )
    agent.start(run_dir, spec(code))
    ended = _cancel_when_ready(agent, run_dir, grace_s=20)
    assert (ended.reason, ended.exit_code, ended.signal) == ("cancelled", 0, None)
    assert [entry.path for entry in agent.outputs(run_dir).entries] == ["partial"]


def test_a_job_that_ignores_a_cancellation_is_killed(agent: Agent, run_dir: str) -> None:
    code = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready')\ntime.sleep(60)"
    agent.start(run_dir, spec(code))
    ended = _cancel_when_ready(agent, run_dir, grace_s=0.2)
    assert (ended.reason, ended.signal) == ("cancelled", signal.SIGKILL)


def test_a_job_cancelled_before_its_start_never_starts(agent: Agent, run_dir: str, host: Any) -> None:
    assert agent.cancel(run_dir, grace_s=1).reason == "cancelled"
    assert agent.start(run_dir, spec("open('ran', 'w')")).state == "exited"
    assert not (host.home / run_dir / "work" / "ran").exists()


def test_cancelling_what_has_ended_changes_nothing(agent: Agent, run_dir: str) -> None:
    agent.start(run_dir, spec("pass"))
    ended = agent.follow(run_dir, Printed())
    assert agent.cancel(run_dir, grace_s=1) == ended


def test_no_daemon_outlives_its_job(agent: Agent, run_dir: str, host: Any) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("orphans can only be found where there is /proc")
    agent.start(run_dir, spec(DAEMON))
    assert agent.follow(run_dir, Printed()).exit_code == 0
    daemon = int((host.home / run_dir / "work" / "daemon.pid").read_text())
    until(lambda: not alive(daemon))  # whoever inherited it may take a moment to look


def test_a_killed_supervisor_is_noticed_and_its_job_goes_on(agent: Agent, run_dir: str, host: Any) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("the kernel tells who a pid is only where there is /proc")
    code = f"import os, sys\nopen('parent', 'w').write(f'{{os.getppid()}}\\n')\n{WAIT}\nprint('end')\nsys.exit(7)"
    agent.start(run_dir, spec(code))
    work = host.home / run_dir / "work"
    os.kill(pid_in(work / "parent"), signal.SIGKILL)
    status = agent.status(run_dir)
    assert status is not None
    assert status.state == "running"
    (work / "go-on").touch()
    printed = Printed()
    ended = agent.follow(run_dir, printed)
    assert (ended.exit_code, ended.signal, ended.reason, ended.error) == (7, None, "", "")
    assert printed.stdout == b"end\n"
    assert [entry.path for entry in agent.outputs(run_dir).entries] == ["go-on", "parent"]


def test_several_jobs_run_and_are_followed_at_once(agent: Agent, run_dir: str) -> None:
    printed = {number: Printed() for number in range(3)}

    def work(number: int) -> None:
        name = f"{run_dir}{number}"
        agent.start(name, spec(f"import time; time.sleep(0.2); print({number})"))
        agent.follow(name, printed[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in printed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: sink.stdout for number, sink in printed.items()} == {0: b"0\n", 1: b"1\n", 2: b"2\n"}


def test_a_heartbeat_is_there_while_the_job_lives(agent: Agent, run_dir: str, host: Any) -> None:
    agent.start(run_dir, spec("import time; time.sleep(60)"))
    until((host.home / run_dir / "heartbeat").exists)
    agent.cancel(run_dir, grace_s=5)


def test_a_job_that_removes_its_own_folder_still_ends(agent: Agent, run_dir: str) -> None:
    agent.start(run_dir, spec("import os, shutil; shutil.rmtree(os.getcwd())"))
    assert agent.follow(run_dir, Printed()).exit_code == 0
    assert agent.outputs(run_dir).entries == ()


@pytest.mark.parametrize("name", ["status.json", "shipped.json", "cancel.json", "outputs.json"])
@pytest.mark.parametrize("spoil", ["os.mkfifo(path)", "open(path, 'w').write('[1')", "open(path, 'w').write('[]')"])
def test_a_job_that_spoils_the_agents_documents_still_ends(agent: Agent, run_dir: str, name: str, spoil: str) -> None:
    code = f"""
import os, time
path = os.path.join(os.environ["TMPDIR"], "spoilt")
{spoil}
os.replace(path, os.path.join(os.environ["TMPDIR"], "..", {name!r}))
time.sleep(0.3)
print("done")
"""
    agent.start(run_dir, spec(code))
    printed = Printed()
    status = agent.follow(run_dir, printed)
    assert (status.state, status.exit_code, status.error) == ("exited", 0, "")
    assert printed.stdout == b"done\n"
    assert agent.outputs(run_dir).entries == ()


def test_a_log_that_became_a_pipe_stops_nobody(agent: Agent, run_dir: str) -> None:
    code = """
import os
path = os.path.join(os.environ["TMPDIR"], "..", "stdout.log")
os.unlink(path)
os.mkfifo(path)
"""
    agent.start(run_dir, spec(code))
    assert agent.follow(run_dir, Printed()).exit_code == 0


def test_a_cancelled_job_that_never_ends_is_given_up(
    agent: Agent, run_dir: str, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its supervisor, stopped like the warden that would wake it, cannot tell; the agent says that it is there."""
    monkeypatch.setattr("cloudrun.ssh.agent.ENDING_S", 0.5)
    agent.start(run_dir, spec(WAIT))
    run = RunDir(host.home / run_dir)
    supervisor = _parent(agent.status(run_dir).pid)  # type: ignore[union-attr,arg-type]
    stopped = [read_json(host.home / rundir.WARDEN_LOCK)["pid"], supervisor]  # type: ignore[index]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(ConnectionLost, match="does not come to an end"):
            agent.cancel(run_dir, 0.1)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    until(lambda: read_json(run.status)["state"] == "exited")  # type: ignore[index]


def test_the_supervisor_leaves_nothing_but_its_documents(agent: Agent, run_dir: str, host: Any) -> None:
    agent.start(run_dir, spec("import os; open(os.environ['TMPDIR'] + '/scratch', 'w')"))
    agent.follow(run_dir, Printed())
    run = RunDir(host.home / run_dir)
    documents = {run.spec, run.work, run.stdout, run.stderr, run.status, run.heartbeat, run.outputs, run.lock}
    assert set(run.root.iterdir()) - documents == {run.ended}
    status = read_json(run.status)
    assert status is not None
    assert status["state"] == "exited"


def _cancel_when_ready(agent: Agent, run_dir: str, *, grace_s: float) -> Any:
    ready = threading.Event()

    def sink(stream: str, data: bytes) -> None:
        ready.set()

    follower = threading.Thread(target=agent.follow, args=(run_dir, sink))
    follower.start()
    assert ready.wait(PATIENCE_S)
    ended = agent.cancel(run_dir, grace_s)
    follower.join()
    return ended
