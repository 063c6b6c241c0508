"""Telling processes apart, and finding what descends from one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cloudrun.agent import processes

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the kernel has no /proc")


def test_a_process_is_itself() -> None:
    assert processes.is_same(os.getpid(), processes.start_time(os.getpid()), processes.boot_id())


def test_another_start_or_another_boot_is_another_process() -> None:
    started = processes.start_time(os.getpid())
    assert not processes.is_same(os.getpid(), started + "0", processes.boot_id())
    assert not processes.is_same(os.getpid(), started, "another boot")


def test_what_the_kernel_never_said_is_nobody() -> None:
    assert not processes.is_same(os.getpid(), "", processes.boot_id())


def test_a_process_that_is_gone_has_no_start_time() -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait(120)
    assert processes.start_time(child.pid) == ""


def test_a_program_may_be_called_anything(tmp_path: Path) -> None:
    odd = tmp_path / "a) R 1 (b"
    odd.write_text("#!/bin/sh\nread line\n")
    odd.chmod(0o755)
    with subprocess.Popen([str(odd)], stdin=subprocess.PIPE) as child:
        assert child.pid in processes.children(os.getpid())
        assert processes.start_time(child.pid).isdigit()
        child.communicate(b"\n", timeout=120)


def test_a_tree_is_a_process_and_all_below_it(tmp_path: Path) -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-S", "-c", script], stdin=subprocess.PIPE) as child:
        while len(processes.tree([child.pid])) < 2:
            assert child.poll() is None
        assert {process.parent for process in processes.tree([child.pid])} == {os.getpid(), child.pid}
        assert os.getpid() not in {process.pid for process in processes.tree([child.pid])}
        child.communicate(b"\n", timeout=120)
    assert processes.tree([child.pid]) == []


def test_a_handler_of_its_own_is_seen() -> None:
    code = "import signal\nsignal.signal(signal.SIGUSR1, lambda *_: None)\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert processes.catches(child.pid, signal.SIGUSR1)
        assert not processes.catches(child.pid, signal.SIGUSR2)
        child.communicate(b"\n", timeout=120)


def test_processes_are_found_by_where_they_work(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "ab").mkdir()
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], cwd=tmp_path / "a", stdin=subprocess.PIPE) as child:
        assert processes.below(str(tmp_path)) == [child.pid]
        assert processes.below(str(tmp_path / "ab")) == []
        child.communicate(b"\n", timeout=120)


def test_nobody_is_a_subreaper_unless_it_says_so() -> None:
    """In a process of its own, since it would be one from then on."""
    code = (
        "from cloudrun.agent import processes\n"
        "assert not processes.adopts_orphans()\n"
        "assert processes.adopt_orphans() and processes.adopts_orphans()\n"
        "assert processes.adopt_orphans(False) and not processes.adopts_orphans()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("number", [-1, 0, 1])
def test_no_number_stands_for_everybody(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """What a job has written down as its pid. To the kernel, `killpg(1)` is `kill(-1)`: nothing may be sent here."""
    sent: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda group, _: sent.append(group))
    monkeypatch.setattr(os, "kill", lambda pid, _: sent.append(pid))
    processes.signal_group(number, signal.SIGTERM)
    processes.signal_one(number, signal.SIGTERM)
    assert sent == []
