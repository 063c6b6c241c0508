"""What machines of the ledger have cost, and which part of that was for which run."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cloudrun.core.records import LaunchRecord, LaunchRequest, Place, RunRecord, Timings, UnitRecord
from cloudrun.core.states import EndReason, LaunchState, RunState, UnitState
from cloudrun.ledger import Ledger
from cloudrun.plan.pricing import usd_per_hour
from cloudrun.units.costs import bill, bill_of_run, price_of, settle


def now() -> datetime:
    """Not that of the import: many tests may have run since."""
    return datetime.now(UTC)


AWS = Place("aws", "eu-west-1", "111122223333")


def launched(
    ledger: Ledger, name: str = "i-1", *, place: Place = AWS, minutes: float = 30, **request: object
) -> UnitRecord:
    """A machine that was launched so many minutes ago, and is ready."""
    asked = LaunchRequest(name, 1, "m7i.large", "ami-1", "/dev/sda1", 20, "key", "sg-1", "", {})
    asked = replace(asked, **request)  # type: ignore[arg-type]
    began = now() - timedelta(minutes=minutes)
    launch = LaunchRecord(
        f"l-{name}", place, LaunchState.INTENDED, asked, "ubuntu", "c-1", now(), "terminate", "key", began
    )
    ledger.intend(launch)
    ledger.move_launch(launch.launch_id, LaunchState.REQUESTED)
    unit = UnitRecord(
        name, launch.launch_id, place, UnitState.BOOTING, asked.instance_type, "ubuntu", None, 22, "key", now(),
        "terminate", "c-1", began,
    )  # fmt: skip
    ledger.resolve_launch(launch.launch_id, [unit])
    ledger.move_unit(name, UnitState.READY)
    return ledger.unit(name)


def ran(ledger: Ledger, run_id: str, *, on: str = "i-1", minutes_ago: float = 20, took_s: float = 60.0) -> None:
    began = now() - timedelta(minutes=minutes_ago)
    ledger.begin_run(RunRecord(run_id, "n", "t.py", RunState.QUEUED, began), on, began)
    ledger.move_run(run_id, RunState.RUNNING)
    ledger.finish_run(
        run_id, RunState.FAILED, reason=EndReason.EXITED, exit_code=1, detail="", scores={}, metric=None,
        minimize=False, artifacts=(), passport=None, timings=Timings(run_s=took_s), at=now() - timedelta(minutes=1),
    )  # fmt: skip


def hourly() -> float:
    price = usd_per_hour("m7i.large", AWS.region)
    assert price is not None
    return price.usd_per_hour


def test_runs_pay_for_the_time_they_took_and_the_machine_for_its_whole_life(ledger: Ledger) -> None:
    unit = launched(ledger)
    ran(ledger, "r-1", took_s=60.0)
    ran(ledger, "r-2", took_s=180.0)
    settle(ledger, ["i-1"])
    minute = hourly() / 60
    assert [ledger.run(name).cost_usd for name in ("r-1", "r-2")] == [pytest.approx(minute), pytest.approx(3 * minute)]
    whole = bill(ledger, [unit])
    assert whole.usd == pytest.approx(30 * minute, rel=0.05)
    assert whole.runs_usd == pytest.approx(4 * minute)
    assert (whole.is_over, whole.is_charged) == (False, True)
    assert bill_of_run(ledger, "r-1").usd == pytest.approx(whole.usd, rel=0.01)


def test_a_run_that_was_on_two_machines_pays_for_both(ledger: Ledger) -> None:
    for name in ("i-1", "i-2"):
        launched(ledger, name)
    began = now() - timedelta(minutes=20)
    ledger.begin_run(RunRecord("r-1", "n", "t.py", RunState.QUEUED, began), "i-1", began)
    ledger.requeue_run("r-1", reason=EndReason.INTERRUPTED, detail="")
    ledger.begin_attempt("r-1", "i-2", began)
    settle(ledger, ["i-2"])
    assert ledger.run("r-1").cost_usd == pytest.approx(2 * 20 * hourly() / 60, rel=0.05)
    assert bill_of_run(ledger, "r-1").machines == 2


def test_a_machine_that_is_stopped_costs_nothing_meanwhile(ledger: Ledger) -> None:
    launched(ledger, minutes=0)
    for state in (UnitState.STOPPING, UnitState.STOPPED):
        ledger.move_unit("i-1", state)
    stopped = ledger.unit("i-1")
    assert stopped.stopped_at is not None
    ledger.move_unit("i-1", UnitState.BOOTING)
    again = ledger.unit("i-1")
    assert again.stopped_at is None
    assert again.stopped_s >= 0
    later = replace(stopped, created_at=now() - timedelta(hours=10), stopped_at=now() - timedelta(hours=9))
    assert bill(ledger, [later]).usd == pytest.approx(hourly(), rel=0.01)


def test_what_nobody_knows_the_price_of_has_none(ledger: Ledger) -> None:
    unit = launched(ledger, instance_type="x99.huge")
    ran(ledger, "r-1")
    settle(ledger, ["i-1"])
    assert ledger.run("r-1").cost_usd is None
    assert str(bill(ledger, [unit])) == "no list price is known for x99.huge"


def test_a_spot_machine_costs_what_was_offered_for_it_at_most(ledger: Ledger) -> None:
    assert price_of(ledger, launched(ledger, spot=True, max_price=0.01)) == 0.01
    assert price_of(ledger, launched(ledger, "i-2", spot=True)) == hourly()
    sandbox = launched(ledger, "i-3", place=Place("sandbox", "us-east-1", "g"))
    assert "sandbox: what EC2 would have charged" in str(bill(ledger, [sandbox]))
