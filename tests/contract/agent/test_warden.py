"""The warden of a unit: the orders of its owner, its deadline, idleness, and what is home and removed."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cloudrun.agent import processes
from cloudrun.core import rundir
from cloudrun.core.rundir import read_object, write_json
from tests.waiting import WAIT, until

from .conftest import FOREVER, SAVE, Run, Unit, kill, powers_off


def status(run: Run) -> dict[str, Any]:
    """As its directory has it, without asking the unit: that would be a client."""
    return read_object(run.dir.status) or {}


# -- orders ----------------------------------------------------------------------------------------------------------


def test_orders_are_kept_and_answered_with_news(unit: Unit) -> None:
    given = {"deadline": time.time() + 3600, "idle_s": None, "spot": False, "power_off_when_done": False}
    assert unit.orders(given)["orders"] == given
    assert unit.ask("orders", orders=None)["orders"] == given
    warden = unit.warden()
    until(lambda: unit.ask("orders", orders=None)["news"].get("warden_pid") == warden)
    news = unit.ask("orders", orders=None)["news"]
    assert news["heartbeat_at"] <= time.time()
    assert (news["interruption_at"], news["rebalance_at"], news["power_off_at"], news["why"]) == (None, None, None, "")


def test_the_unit_has_one_warden_however_many_ask_for_it(unit: Unit) -> None:
    threads = [threading.Thread(target=lambda: Unit.ask(_another(unit), "orders", orders=None)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: wardens(unit) == [unit.warden()])  # and none that is about to find that there is one
    for other in OTHERS:
        other.hang_up()
    OTHERS.clear()


def wardens(unit: Unit) -> list[int]:
    found = []
    for pid in processes.below(str(unit.home)):
        with contextlib.suppress(OSError):
            if b"warden" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


OTHERS: list[Unit] = []


def _another(unit: Unit) -> Unit:
    """Another client of the same unit."""
    other = object.__new__(Unit)
    other.__dict__.update(unit.__dict__, _serve=None)
    OTHERS.append(other)
    return other


def test_without_orders_nothing_powers_off(unit: Unit) -> None:
    run = unit.start("pass")
    run.follow()
    unit.ask("home", run_dir=run.name)
    unit.hang_up()
    beats = until(lambda: unit.news().get("heartbeat_at"))
    until(lambda: unit.news()["heartbeat_at"] > beats)
    assert unit.powered_off() == []
    assert unit.news()["power_off_at"] is None


# -- the deadline ----------------------------------------------------------------------------------------------------


def test_jobs_end_before_the_deadline_and_the_unit_goes_at_it(unit: Unit) -> None:
    run = unit.start(SAVE, grace_s=30.0)
    run.says(b"ready")
    deadline = time.time() + 12
    unit.orders(deadline=deadline)
    unit.hang_up()
    assert powers_off(unit) == "deadline"
    assert unit.news()["power_off_at"] >= deadline
    ended = status(run)
    assert (ended["reason"], ended["exit_code"]) == ("deadline", 0)
    assert deadline - 1.5 < ended["ended_at"] < deadline
    assert (run.dir.work / "partial").read_text() == "half"


def test_a_job_that_does_not_want_to_end_does_not_keep_a_unit_beyond_its_deadline(unit: Unit) -> None:
    run = unit.start("import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(1)\ntime.sleep(60)")
    run.says(b"1")
    unit.orders(deadline=time.time() + 5)
    assert powers_off(unit) == "deadline"
    until(lambda: status(run)["state"] == "exited")
    assert status(run)["reason"] == "deadline"


def test_the_deadline_holds_for_a_unit_whose_supervisors_and_warden_were_killed(unit: Unit) -> None:
    run = unit.start(FOREVER)
    supervisor = run.supervisor()
    unit.orders(deadline=time.time() + 12)
    unit.hang_up()
    kill(unit.warden())
    until(lambda: unit.warden() and (unit.news().get("warden_pid") == unit.warden()))
    kill(supervisor)
    assert powers_off(unit) == "deadline"
    until(lambda: status(run)["state"] == "exited")
    assert status(run)["reason"] == "deadline"


def test_a_deadline_that_was_moved_holds(unit: Unit) -> None:
    run = unit.start(WAIT)
    deadline = time.time() + 6
    unit.orders(deadline=deadline)
    unit.orders()
    until(lambda: time.time() > deadline + 0.5)
    assert run.now()["state"] == "running"
    assert unit.powered_off() == []
    run.go_on()
    assert run.follow()["reason"] == ""


def test_a_machine_that_was_started_again_after_its_deadline_leaves_time_to_move_it(unit: Unit) -> None:
    past = {"deadline": time.time() - 100, "idle_s": None, "spot": False, "power_off_when_done": False}
    write_json(unit.home / rundir.ORDERS, past)
    write_json(unit.home / rundir.NEWS, {"boot_id": "another boot", "interruption_at": time.time() - 200})
    unit.ask("orders", orders=None)
    until(lambda: unit.news().get("warden_pid") == unit.warden())
    run = unit.start("pass")
    assert run.follow()["reason"] == ""
    assert unit.news()["interruption_at"] is None
    assert unit.powered_off() == []
    unit.orders(past)
    assert powers_off(unit) == "deadline"


def test_a_unit_whose_runs_are_all_home_goes_as_soon_as_its_jobs_have_to_end(unit: Unit) -> None:
    run = unit.start("pass")
    run.follow()
    unit.ask("home", run_dir=run.name)
    until(lambda: unit.news().get("boot_id"))
    kill(unit.warden())  # the next one finds orders that were given long ago: 15 s are left to save
    deadline = time.time() + 17
    orders = {"deadline": deadline, "idle_s": None, "spot": False, "power_off_when_done": False}
    write_json(unit.home / rundir.ORDERS, orders)
    os.utime(unit.home / rundir.ORDERS, times=(deadline - 1000, deadline - 1000))
    unit.ask("orders", orders=None)
    unit.hang_up()
    assert powers_off(unit) == "deadline, and everything is saved"
    assert unit.news()["power_off_at"] < deadline


def test_where_one_command_does_not_power_off_another_is_tried(unit: Unit) -> None:
    unit.tool("systemctl", "exit 1")
    unit.orders(deadline=time.time() - 1)
    until(unit.powered_off)
    assert unit.powered_off() == ["shutdown -h now"]


# -- idleness --------------------------------------------------------------------------------------------------------


def test_an_idle_unit_goes(unit: Unit) -> None:
    run = unit.start("pass")
    run.follow()
    unit.ask("home", run_dir=run.name)
    unit.orders(idle_s=1.0)
    unit.hang_up()
    assert powers_off(unit) == "idle"


def test_a_unit_that_is_done_goes_where_it_was_told_so(unit: Unit) -> None:
    unit.orders(power_off_when_done=True)
    unit.hang_up()
    assert powers_off(unit) == "done"


@pytest.mark.parametrize("kept_by", ["a client", "a run", "outputs"])
def test_a_unit_that_somebody_needs_is_not_idle(unit: Unit, kept_by: str) -> None:
    run = unit.start(WAIT if kept_by == "a run" else "open('made', 'w')")
    if kept_by != "a run":
        run.follow()
    if kept_by == "a client":
        unit.ask("home", run_dir=run.name)
    unit.orders(idle_s=0.2, power_off_when_done=True)
    if kept_by != "a client":
        unit.hang_up()
    beats = until(lambda: unit.news().get("heartbeat_at"))
    until(lambda: unit.news()["heartbeat_at"] > beats)
    assert unit.powered_off() == []
    run.go_on()
    if kept_by == "a client":
        unit.hang_up()
    until(lambda: status(run).get("state") == "exited")
    run.dir.home.touch()
    powers_off(unit)


# -- what is home ----------------------------------------------------------------------------------------------------


def test_runs_that_are_home_are_removed_but_for_the_newest(unit: Unit) -> None:
    kept = unit.start("open('made', 'w')", "kept")
    kept.follow()
    runs = []
    for name in ("a", "b", "c"):
        run = unit.start("import os\nos.mkdir('shut')\nopen('shut/x', 'w')\nos.chmod('shut', 0)", name)
        run.follow()
        unit.ask("home", run_dir=run.name)
        runs.append(run)
    until(lambda: not runs[0].dir.root.exists() and not runs[1].dir.root.exists())
    assert runs[2].dir.root.exists()
    until(lambda: sorted(path.name for path in (unit.home / rundir.RUNS).iterdir()) == ["c.1", "kept.1"])
    listed = unit.ask("runs")["runs"]
    assert [(run["run_dir"], run["home"], run["stored"]) for run in listed] == [
        (runs[2].name, True, False),
        (kept.name, False, False),
    ]
    assert listed[1]["status"]["exit_code"] == 0
    assert runs[0].unit.ask("status", run_dir=runs[0].name)["status"] is None


def test_an_idle_warden_rests(unit: Unit) -> None:
    unit.orders()
    path = Path(f"/proc/{unit.warden()}/stat")
    beats = until(lambda: unit.news().get("heartbeat_at"))

    def ticks() -> int:
        fields = path.read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    until(lambda: unit.news()["heartbeat_at"] > beats)
    assert ticks() - before <= 10  # of a thousand


def test_whoever_only_looks_keeps_no_unit_awake(unit: Unit) -> None:
    unit.orders(idle_s=1.0)
    unit.hang_up()

    def looked_at_all_the_time() -> bool:
        unit.ask("runs")
        unit.hang_up()
        return unit.powered_off() != []

    until(looked_at_all_the_time)
