"""What a machine that takes another's place may cost."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from cloudrun.core.errors import Interrupted, UsageError
from cloudrun.core.events import Event, Note, nobody
from cloudrun.core.records import RunRecord, UnitRecord
from cloudrun.core.settings import Settings
from cloudrun.core.states import EndReason, RunState, UnitState
from cloudrun.ledger import Ledger
from cloudrun.prices import usd_per_hour
from cloudrun.units import opening
from cloudrun.units.purse import Purse
from tests.fakes import HOUR, PLACE, RUN, Ec2, ManualClock, cloud_of, launch_one

HOURS = 3600.0


def price() -> float:
    listed = usd_per_hour("m7i.large", PLACE.region)
    assert listed is not None
    return listed.usd_per_hour


@pytest.fixture
def settings() -> Settings:
    """Of somebody who has just the money for four hours."""
    return Settings(deadline_s=4 * HOURS, budget=price() * 4.1)


def lived(ledger: Ledger, hours: float) -> UnitRecord:
    """A machine that was launched so long ago, and has just been taken back."""
    unit = launch_one(ledger, ManualClock(datetime.now(UTC) - hours * HOUR), Ec2())
    ledger.move_unit(unit.instance_id, UnitState.TERMINATING)
    ledger.move_unit(unit.instance_id, UnitState.TERMINATED)
    return ledger.unit(unit.instance_id)


def test_the_next_machine_has_what_the_first_has_left(ledger: Ledger, settings: Settings) -> None:
    said: list[Event] = []
    purse = Purse(ledger)
    assert purse.allow(settings, PLACE.region, said.append) == settings
    assert not said
    unit = lived(ledger, 3.0)
    purse.pays_for(unit, unit.created_at)
    spent = purse.spent_usd()
    assert spent == pytest.approx(3 * price(), rel=0.01)
    allowed = purse.allow(settings, PLACE.region, said.append)
    assert HOURS < allowed.deadline_s < 1.1 * HOURS
    assert spent + price() * (allowed.deadline_s + 60) / HOURS <= settings.budget  # type: ignore[operator]
    (note,) = said
    assert isinstance(note, Note)
    assert "of the budget are left" in note.text


def test_where_nothing_is_left_no_machine_takes_the_place(ledger: Ledger, settings: Settings) -> None:
    purse = Purse(ledger)
    unit = lived(ledger, 1.0)
    purse.pays_for(unit, unit.created_at)
    with pytest.raises(UsageError, match="the rest pays for no machine"):
        purse.allow(replace(settings, budget=purse.spent_usd() + 0.0001), PLACE.region, nobody)


def test_one_that_has_not_ended_may_cost_until_its_deadline(ledger: Ledger, clock: ManualClock) -> None:
    unit = launch_one(ledger, clock, Ec2())
    purse = Purse(ledger)
    purse.pays_for(unit, unit.created_at)
    assert purse.spent_usd() == pytest.approx(price() * (4 + 60 / HOURS))
    joined = Purse(ledger)
    joined.pays_for(unit, unit.created_at + HOUR)
    assert joined.spent_usd() == pytest.approx(price() * (3 + 60 / HOURS)), "what it cost before was of another budget"


def test_attempts_of_another_process_have_cost_something_too(ledger: Ledger, clock: ManualClock) -> None:
    ec2 = Ec2()
    unit = launch_one(ledger, clock, ec2)
    ledger.add_run(RunRecord(RUN, "train", "train.py", RunState.QUEUED, clock.now()))
    ledger.begin_attempt(RUN, unit.instance_id, clock.now())
    ledger.requeue_run(RUN, reason=EndReason.INTERRUPTED, detail="", outputs=())
    assert Purse(ledger, RUN).spent_usd() == pytest.approx(price() * (4 + 60 / HOURS))
    assert Purse(ledger, RUN).spent_usd(apart_from=unit.instance_id) == 0


def test_a_machine_that_was_taken_back_while_it_booted_has_cost_something(
    ledger: Ledger, clock: ManualClock, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ec2 = Ec2()

    def launch(unit: opening.RentedUnit, *_: object) -> None:
        unit.record = launch_one(ledger, clock, ec2)
        raise Interrupted("taken back")

    monkeypatch.setattr(opening.RentedUnit, "launch", launch)
    monkeypatch.setattr(opening.reaper, "settle", lambda *_: [])
    monkeypatch.setattr(opening, "say_what_differs", lambda *_: None)
    monkeypatch.setattr(opening.launching, "find_image", lambda *_: None)
    monkeypatch.setattr(opening, "say_beforehand", lambda *_: None)
    purse = Purse(ledger)
    with pytest.raises(Interrupted):
        opening.open_unit(cloud_of(ec2), ledger, settings, nobody, clock=clock, purse=purse)
    assert purse.spent_usd() > 0
