"""Telling processes apart, and finding what descends from one."""

from __future__ import annotations

import os
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
    child.wait(30)
    assert processes.start_time(child.pid) == ""


def test_a_program_may_be_called_anything(tmp_path: Path) -> None:
    odd = tmp_path / "a) R 1 (b"
    odd.write_text("#!/bin/sh\nread line\n")
    odd.chmod(0o755)
    with subprocess.Popen([str(odd)], stdin=subprocess.PIPE) as child:
        assert child.pid in processes.children(os.getpid())
        assert processes.start_time(child.pid).isdigit()
        child.communicate(b"\n", timeout=30)


def test_every_descendant_is_ended_however_it_hides() -> None:
    """In a process of its own, since it ends all it can find: a daemon of a daemon, in another session."""
    code = (
        "import os, time\n"
        "from cloudrun.agent import processes\n"
        "assert processes.adopt_orphans()\n"
        "reader, writer = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        os.write(writer, str(os.getpid()).encode())\n"
        "        time.sleep(60)\n"
        "    time.sleep(60)\n"
        "hidden = int(os.read(reader, 20))\n"
        "assert processes.end_descendants(30)\n"
        "assert processes.start_time(hidden) == ''\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
