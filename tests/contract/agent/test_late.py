"""The first jobs of many that import the same are forks, too: they wait for the parent that does so once."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cloudrun.agent import processes
from cloudrun.agent.late import LateStarts
from cloudrun.core import rundir
from tests.contract.agent.conftest import Run, Unit
from tests.waiting import until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="wardens are for units, which run Linux"),
    pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="no virtual environment"),
]
SCRIPT = "import sys; print('numpy' in sys.modules)"


def begin(unit: Unit, name: str, **words: Any) -> Run:
    run = Run(unit, rundir.run_dir(name, 1))
    work = unit.home / run.name / "work"
    work.mkdir(parents=True)
    (work / "job.py").write_text(SCRIPT)
    spec = rundir.spec(name, 1, [sys.executable, "job.py"], ".", {}, 10**9, 1000, 5.0, **words)
    run.status = unit.ask("start", run_dir=run.name, spec=spec)["status"]
    return run


def test_the_first_of_many_jobs_is_a_fork_of_a_parent_that_was_waited_for(unit: Unit) -> None:
    run = begin(unit, "first", preload=["numpy"], more=True)
    assert run.follow()["exit_code"] == 0
    assert (run.now()["forked"], run.dir.stdout.read_text()) == (True, "True\n")


@pytest.mark.parametrize("words", [{"preload": ["numpy"]}, {"more": True}, {"preload": ["no_such"], "more": True}])
def test_one_that_nothing_follows_or_that_imports_nothing_heavy_waits_for_nobody(
    unit: Unit, words: dict[str, Any]
) -> None:
    run = begin(unit, "only", **words)
    assert run.follow()["exit_code"] == 0
    assert (run.now()["forked"], run.dir.stdout.read_text()) == (False, "False\n")


class Parents:
    """One whose parent never comes, or is gone."""

    coming = True

    def fits(self, _spec: Any) -> bool:
        return False

    def is_coming(self, _spec: Any) -> bool:
        return self.coming


def test_where_no_parent_comes_jobs_begin_freshly(tmp_path: Path) -> None:
    late, parents = LateStarts(), Parents()
    with (tmp_path / "lock").open("wb") as lock:
        assert late.add(parents, Any, {"more": True}, lock.fileno(), lock.fileno())  # type: ignore[arg-type]
        assert not list(late.due(parents))
        parents.coming = False
        assert len(list(late.due(parents))) == 1
        assert len(late) == 0
        assert not late.add(parents, Any, {"more": True}, lock.fileno(), lock.fileno())  # type: ignore[arg-type]
        assert not late.add(None, Any, {"more": True}, lock.fileno(), lock.fileno())  # type: ignore[arg-type]


def test_a_unit_that_knows_what_jobs_come_imports_for_them_before_they_do(unit: Unit) -> None:
    spec = rundir.spec("coming", 1, [sys.executable, "job.py"], ".", {}, 10**9, 1000, 5.0, preload=["numpy"])
    ready = unit.home / rundir.env_ready("e" * 32)
    ready.parent.mkdir(parents=True)
    orders = {"deadline": time.time() + 3600, "idle_s": None, "spot": False}
    told = {"environment": "e" * 32, "spec": spec}
    unit.ask("orders", orders=orders, coming=told)
    assert not parents_of(unit), "what it has is not whole"
    ready.touch()
    unit.ask("orders", orders=orders, coming=told)
    until(lambda: parents_of(unit))
    run = begin(unit, "first", preload=["numpy"], more=True)
    assert run.follow()["exit_code"] == 0
    assert (run.now()["forked"], len(parents_of(unit))) == (True, 1)


def parents_of(unit: Unit) -> list[int]:
    """The processes that the unit's warden has for jobs to be forked from."""
    return [
        pid for pid in processes.children(unit.warden()) if b"numpy" in line_of(pid) or b"preimported" in line_of(pid)
    ]


def line_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
