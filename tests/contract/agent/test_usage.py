"""What a job is said to have written, where the kernel tells nobody but root what a process that has ended wrote."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WRITTEN = 8_000_000
REAPS = f"""
import ctypes, os
from cloudrun.agent import processes
from cloudrun.agent.limits import Meter

open("own", "wb").write(os.urandom(1_000_000))
if processes.storage_bytes(os.getpid())[1] == 0:
    raise SystemExit("this file system is no storage")
if os.getuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE, as after an exec: it may look at itself
meter = Meter({{}}, list)
pid = os.fork()
if pid == 0:
    if (grandchild := os.fork()) == 0:
        open("a", "wb").write(os.urandom({WRITTEN // 2}))
        os._exit(0)
    os.waitpid(grandchild, 0)
    open("b", "wb").write(os.urandom({WRITTEN // 2}))
    os._exit(7)
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
assert os.waitstatus_to_exitcode(meter.reap(pid)) == 7
print(meter.usage()["written_bytes"])
"""


def test_what_a_job_wrote_until_its_end_counts_also_for_a_supervisor_that_is_not_root(tmp_path: Path) -> None:
    if not Path("/proc/self/io").exists():
        pytest.skip("this kernel does not count what processes write")
    tmp_path.chmod(0o777)
    done = subprocess.run(
        [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r})\n{REAPS}"],
        cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if "no storage" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert WRITTEN <= int(done.stdout) < 2 * WRITTEN
