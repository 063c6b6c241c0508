"""Runs that wait on a unit for their turn: whatever becomes of wardens, clients and the machine, each begins once."""

from __future__ import annotations

import os
import signal
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from cloudrun.agent import compiled, locks, processes
from cloudrun.core import rundir, wire
from cloudrun.core.rundir import read_object, write_json
from tests.waiting import until

from .conftest import Run, Unit, kill, kill_together

# Says that it is there, then works until it may end.
JOB = """
import os, time
open(os.path.join(os.environ["TOLD"], os.environ["NAME"]), "a").write(f"{time.time()}\\n")
while not os.path.exists("go-on"): time.sleep(0.01)
"""


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """Each job writes a line into a file of its own name when it begins."""
    (tmp_path / "told").mkdir()
    return tmp_path / "told"


def queued(unit: Unit, told: Path, name: str, number: int, code: str = JOB, **limits: Any) -> Run:
    run = Run(unit, rundir.run_dir(name, 1))
    argv = [sys.executable, "-S", "-c", code]
    env = {"TOLD": str(told), "NAME": name}
    tree = limits.pop("tree", None)
    spec = rundir.spec(name, 1, argv, ".", env, 10**9, 1000, limits.pop("grace_s", 1.0))
    run.status = unit.ask("queue", run_dir=run.name, spec=dict(spec, **limits), number=number, tree=tree)["status"]
    return run


def begun(told: Path) -> list[str]:
    """Who has begun, in that order."""
    return [path.name for path in sorted(told.iterdir(), key=lambda path: path.read_text())]


def starts(told: Path) -> list[int]:
    """How often each has begun."""
    return [len(path.read_text().splitlines()) for path in told.iterdir()]


def state(run: Run) -> str:
    """Without asking the unit: that would be a client."""
    known = read_object(run.dir.status) or {}
    return str(known.get("state", ""))


def test_five_runs_take_their_turns_in_two_slots(unit: Unit, told: Path) -> None:
    runs = [queued(unit, told, f"run-{number}", number) for number in (4, 2, 3, 0, 1)]
    assert {run.status["state"] for run in runs} == {"queued"}
    runs.sort(key=lambda run: run.name)
    assert begun(told) == [], "nobody has said how many may go on at a time"
    unit.orders(slots=2)
    until(lambda: len(begun(told)) == 2)
    assert set(begun(told)) == {"run-0", "run-1"}
    assert [run.now()["state"] for run in runs[2:]] == ["queued"] * 3
    states = dict(zip([run.name for run in runs], ["running"] * 2 + ["queued"] * 3, strict=True))
    until(lambda: {each["run_dir"]: each["status"]["state"] for each in unit.ask("runs")["runs"]} == states)
    runs[1].go_on()
    until(lambda: len(begun(told)) == 3)
    assert set(begun(told)) == {"run-0", "run-1", "run-2"}
    for run in (runs[0], *runs[2:]):
        (run.dir.work).mkdir(parents=True, exist_ok=True)
        run.go_on()
    assert [run.follow()["exit_code"] for run in runs] == [0] * 5, "whoever follows one that waits, waits with it"
    assert starts(told) == [1] * 5


def test_a_warden_that_is_killed_in_the_middle_starts_none_twice_and_the_next_goes_on(unit: Unit, told: Path) -> None:
    unit.orders(slots=2)
    runs = [queued(unit, told, f"run-{number}", number) for number in range(5)]
    unit.hang_up()
    for number, run in enumerate(runs):
        until(lambda number=number: f"run-{number}" in begun(told))  # type: ignore[misc]
        kill(unit.warden())
        run.go_on()
    until(lambda: all(state(run) == "exited" for run in runs))
    assert starts(told) == [1] * 5
    assert [(read_object(run.dir.status) or {}).get("exit_code") for run in runs] == [0] * 5


def test_a_run_that_was_about_to_begin_when_the_warden_was_killed_begins_all_the_same(unit: Unit, told: Path) -> None:
    unit.orders(slots=0)
    run = queued(unit, told, "run-0", 0)
    until(lambda: locks.is_held(str(unit.home / rundir.KEEPER_LOCK)))
    unit.hang_up()
    warden = unit.warden()
    os.kill(warden, signal.SIGSTOP)
    write_json(run.dir.status, {"state": "starting"})  # what a warden writes last before there is a supervisor
    os.kill(warden, signal.SIGKILL)
    until(lambda: begun(told) == ["run-0"])
    run.go_on()
    until(lambda: state(run) == "exited")
    assert starts(told) == [1]


def test_a_warden_has_a_successor_though_nothing_runs_and_nobody_is_there(unit: Unit, told: Path) -> None:
    """Of its own version, or where a client of another one has come, of that."""
    unit.orders(slots=0)
    run = queued(unit, told, "run-0", 0)
    until(lambda: locks.is_held(str(unit.home / rundir.KEEPER_LOCK)))
    unit.hang_up()
    first = unit.warden()
    kill(first)
    until(lambda: unit.warden() != first)
    unit.bring(".cloudrun/agent/another.pyz")
    unit.orders(slots=1)
    until(lambda: begun(told) == ["run-0"])
    assert (read_object(unit.home / rundir.WARDEN_LOCK) or {})["agent"] == version_of_wardens(unit)
    run.go_on()
    assert run.follow()["exit_code"] == 0


def version_of_wardens(unit: Unit) -> str:
    """What wardens of the agent that is used now call their version."""
    return compiled.version_of(str(unit.home / unit.archive))


def test_one_that_waits_is_cancelled_and_never_begins(unit: Unit, told: Path) -> None:
    unit.orders(slots=1)
    first, second, third = (queued(unit, told, f"run-{number}", number) for number in range(3))
    until(lambda: begun(told) == ["run-0"])
    ended = second.cancel(60.0)
    assert (ended["state"], ended["reason"]) == ("exited", "cancelled")
    assert read_object(second.dir.root / "outputs.json") is None
    first.go_on()
    until(lambda: "run-2" in begun(told))
    third.go_on()
    assert third.follow()["exit_code"] == 0
    assert set(begun(told)) == {"run-0", "run-2"}


def test_after_a_reboot_those_that_waited_begin_and_those_that_ran_have_ended(unit: Unit, told: Path) -> None:
    unit.orders(slots=1)
    first, second = (queued(unit, told, f"run-{number}", number) for number in range(2))
    until(lambda: state(first) == "running" and starts(told) == [1])
    supervisor = first_supervisor(first)
    unit.hang_up()
    until(lambda: locks.is_held(str(unit.home / rundir.KEEPER_LOCK)))
    keeper = until(lambda: (read_object(unit.home / rundir.KEEPER_LOCK) or {}).get("pid"))
    kill_together(keeper, supervisor, unit.warden(), int((read_object(first.dir.status) or {})["pid"]))
    write_json(first.dir.status, dict(read_object(first.dir.status) or {}, boot_id="another boot"))
    write_json(unit.home / rundir.NEWS, {"boot_id": "another boot"})
    unit.ask("orders", orders=None)
    assert "rebooted" in first.follow()["error"]
    until(lambda: "run-1" in begun(told))
    second.go_on()
    assert second.follow()["exit_code"] == 0
    assert starts(told) == [1, 1]


def first_supervisor(run: Run) -> int:
    process = processes.look(int((read_object(run.dir.status) or {})["pid"]))
    assert process is not None
    return process.parent


def test_none_begins_that_would_have_to_end_at_once_and_the_unit_goes_without_it(unit: Unit, told: Path) -> None:
    short = queued(unit, told, "short", 0, grace_s=0.5)
    long = queued(unit, told, "long", 1, grace_s=60.0)
    unit.orders(deadline=time.time() + 50, slots=2)
    until(lambda: begun(told) == ["short"])
    short.go_on()
    short.follow()
    unit.ask("home", run_dir=short.name)
    unit.orders(deadline=time.time() + 2, slots=2)
    unit.hang_up()
    until(unit.powered_off)
    assert unit.news()["why"].startswith("deadline")
    assert (begun(told), state(long)) == (["short"], "")


def test_the_project_that_many_share_is_copied_for_each_and_what_a_job_makes_is_its_own(unit: Unit, told: Path) -> None:
    tree = unit.home / rundir.tree_dir("project")
    ship(unit, rundir.tree_dir("project"), {"train.py": b"print('hello')\n", "deep/data.txt": b"1,2,3\n"})
    assert (tree / "work" / "deep" / "data.txt").read_bytes() == b"1,2,3\n"
    code = "import sys\nopen('deep/data.txt', 'a').write(sys.argv[0] or 'x')\nopen('made', 'w').write('y')\n"
    runs = [queued(unit, told, f"run-{number}", number, code, tree="project") for number in range(3)]
    assert not any(run.dir.work.exists() for run in runs), "nothing is copied before it is needed"
    unit.orders(slots=2)
    for run in runs:
        assert run.follow()["exit_code"] == 0
        made = read_object(run.dir.outputs) or {}
        assert {entry["path"] for entry in made["entries"]} == {"deep/data.txt", "made"}
        left = {str(path.relative_to(run.dir.work)) for path in run.dir.work.rglob("*") if path.is_file()}
        assert left == {"deep/data.txt", "made"}, "what it has not changed takes no room while it waits to be fetched"
    assert (tree / "work" / "deep" / "data.txt").read_bytes() == b"1,2,3\n"


def test_a_shared_project_that_a_job_has_spoilt_ends_the_next_and_says_so(unit: Unit, told: Path) -> None:
    ship(unit, rundir.tree_dir("project"), {"train.py": b"print('hello')\n"})
    spoils = f"open({str(unit.home / rundir.tree_dir('project') / 'work' / 'train.py')!r}, 'w').write('bad')"
    first = queued(unit, told, "run-0", 0, spoils, tree="project")
    second = queued(unit, told, "run-1", 1, "pass", tree="project")
    unit.orders(slots=1)
    assert first.follow()["exit_code"] == 0
    assert "train.py of its project has changed" in second.follow()["error"]


def ship(unit: Unit, run_dir: str, files: dict[str, bytes]) -> None:
    entries = [[name, len(content), sha256(content).hexdigest(), 0o644] for name, content in files.items()]
    unit.send(wire.REQUEST, {"verb": "ship", "run_dir": run_dir, "area": "project", "inline": True})
    unit.send(wire.DATA, entries)
    unit.send(wire.FILE_END)
    for content in files.values():
        unit.send(wire.DATA, content)
        unit.send(wire.FILE_END)
    assert unit.reply()["files"] == len(files)
