"""Any sequence of calls against a model of a few dictionaries: only what `core.states` allows happens, all of it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cloudrun.core.errors import LedgerError, UsageError
from cloudrun.core.records import LaunchRecord, LaunchRequest, Place, RunRecord, Timings, UnitRecord
from cloudrun.core.states import LAUNCH, RUN, UNIT, LaunchState, RunState, UnitState, is_terminal
from cloudrun.ledger import Ledger

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
NUMBERS = st.integers(0, 1)  # few, so that sequences get far with each
RUNS = st.integers(0, 2)
# SQLite knows no -0.0
SCORES = st.dictionaries(st.sampled_from("abc"), st.floats().map(lambda score: score + 0.0), max_size=3)


@dataclass
class RunModel:
    state: RunState = RunState.QUEUED
    attempts: list[tuple[str, RunState, bool]] = field(default_factory=list)  # unit, state, over
    scores: dict[str, float] = field(default_factory=dict)

    def move(self, state: RunState) -> None:
        self.state = state
        if self.attempts and not self.attempts[-1][2]:
            requeued = state is RunState.QUEUED
            unit = self.attempts[-1][0]
            self.attempts[-1] = (unit, RunState.LOST if requeued else state, requeued or is_terminal(state))


def launch_record(launch_id: str) -> LaunchRecord:
    request = LaunchRequest(launch_id, 1, "t3.micro", "ami-1", "/dev/sda1", 8, "key", "sg-1", "", {})
    return LaunchRecord(
        launch_id, PLACE, LaunchState.INTENDED, request, "ubuntu", "client-1", NOON, "terminate", "key", NOON
    )


def unit_record(instance_id: str, launch_id: str) -> UnitRecord:
    return UnitRecord(
        instance_id,
        launch_id,
        PLACE,
        UnitState.LAUNCHING,
        "t3.micro",
        "ubuntu",
        None,
        22,
        "key",
        NOON,
        "terminate",
        "client-1",
        NOON,
    )


PLACE = Place("sandbox", "us-east-1", "g")


class LedgerMachine(RuleBasedStateMachine):
    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.ledger = Ledger(self.folder.name)
        self.launches: dict[str, LaunchState] = {}
        self.units: dict[str, UnitState] = {}
        self.runs: dict[str, RunModel] = {}
        self.intend(0)
        self.ledger.move_launch("launch-0", LaunchState.REQUESTED)
        self.launches["launch-0"] = LaunchState.REQUESTED
        self.resolve(0, 1)

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.folder.cleanup()

    def expect(self, allowed: bool, call: Any, *arguments: Any, **keywords: Any) -> bool:
        """The call goes through exactly where it should."""
        if allowed:
            call(*arguments, **keywords)
            return True
        with pytest.raises(LedgerError):
            call(*arguments, **keywords)
        return False

    def next_state(self, data: st.DataObject, table: Any, before: Any, states: Any) -> Any:
        """Mostly one that is allowed, so that lives get long; now and then any."""
        legal = sorted(table.get(before, ()))
        return data.draw(st.sampled_from(legal) | st.sampled_from(states) if legal else st.sampled_from(states))

    @rule()
    def reopen(self) -> None:
        self.ledger.close()
        self.ledger = Ledger(self.folder.name)

    @rule(number=NUMBERS)
    def intend(self, number: int) -> None:
        launch_id = f"launch-{number}"
        if self.expect(launch_id not in self.launches, self.ledger.intend, launch_record(launch_id)):
            self.launches[launch_id] = LaunchState.INTENDED

    @rule(number=NUMBERS, data=st.data())
    def move_launch(self, number: int, data: st.DataObject) -> None:
        launch_id = f"launch-{number}"
        before = self.launches.get(launch_id)
        state = self.next_state(data, LAUNCH, before, LaunchState)
        allowed = before is not None and state in LAUNCH[before] and state is not LaunchState.RESOLVED
        if self.expect(allowed, self.ledger.move_launch, launch_id, state):
            self.launches[launch_id] = state

    @rule(number=NUMBERS, count=st.integers(0, 2))
    def resolve(self, number: int, count: int) -> None:
        launch_id = f"launch-{number}"
        before = self.launches.get(launch_id)
        allowed = before is LaunchState.RESOLVED or (before is not None and LaunchState.RESOLVED in LAUNCH[before])
        units = [unit_record(f"i-{number}-{place}", launch_id) for place in range(count)]
        if self.expect(allowed, self.ledger.resolve_launch, launch_id, units):
            self.launches[launch_id] = LaunchState.RESOLVED
            for unit in units:
                self.units.setdefault(unit.instance_id, UnitState.LAUNCHING)

    @rule(number=NUMBERS, place=st.integers(0, 1), data=st.data())
    def move_unit(self, number: int, place: int, data: st.DataObject) -> None:
        instance_id = f"i-{number}-{place}"
        before = self.units.get(instance_id)
        state = self.next_state(data, UNIT, before, UnitState)
        if self.expect(before is not None and state in UNIT[before], self.ledger.move_unit, instance_id, state):
            self.units[instance_id] = state

    @rule(number=RUNS)
    def add_run(self, number: int) -> None:
        run = RunRecord(f"run-{number}", "job", "job.py", RunState.QUEUED, NOON + timedelta(seconds=number))
        if self.expect(run.run_id not in self.runs, self.ledger.add_run, run):
            self.runs[run.run_id] = RunModel()

    @rule(number=RUNS, launch=NUMBERS, place=st.integers(0, 1))
    def begin_attempt(self, number: int, launch: int, place: int) -> None:
        run_id, instance_id = f"run-{number}", f"i-{launch}-{place}"
        run, unit = self.runs.get(run_id), self.units.get(instance_id)
        usable = unit is not None and unit not in (UnitState.TERMINATING, UnitState.TERMINATED)
        allowed = run is not None and run.state is RunState.QUEUED and usable
        if self.expect(allowed, self.ledger.begin_attempt, run_id, instance_id, NOON) and run is not None:
            run.state = RunState.SHIPPING
            run.attempts.append((instance_id, RunState.SHIPPING, False))

    @rule(number=RUNS, data=st.data())
    def move_run(self, number: int, data: st.DataObject) -> None:
        run = self.runs.get(f"run-{number}")
        lively = {before: after - {RunState.FAILED, RunState.CANCELLED, RunState.LOST} for before, after in RUN.items()}
        state = self.next_state(data, lively, run and run.state, RunState)
        allowed = run is not None and state in RUN[run.state] and state is not RunState.SUCCEEDED
        if self.expect(allowed, self.ledger.move_run, f"run-{number}", state) and run is not None:
            run.move(state)

    @rule(number=RUNS)
    def get_on(self, number: int) -> None:
        """The ordinary way to PULLING, from wherever on it the run is; chance alone seldom gets there."""
        run = self.runs.get(f"run-{number}")
        for before, after in ((RunState.SHIPPING, RunState.RUNNING), (RunState.RUNNING, RunState.PULLING)):
            if run and run.state is RunState.QUEUED:
                self.begin_attempt(number, 0, 0)
            if run and run.state is before:
                self.ledger.move_run(f"run-{number}", after)
                run.move(after)

    @rule(number=RUNS, state=st.just(RunState.SUCCEEDED) | st.sampled_from(RunState), scores=SCORES)
    def finish_run(self, number: int, state: RunState, scores: dict[str, float]) -> None:
        run = self.runs.get(f"run-{number}")
        in_one = (
            run is not None and state is RunState.SUCCEEDED and run.state in (RunState.RUNNING, RunState.PULL_PENDING)
        )
        allowed = run is not None and is_terminal(state) and (in_one or state in RUN[run.state])
        finished = self.expect(
            allowed,
            self.ledger.finish_run,
            f"run-{number}",
            state,
            reason=None,
            exit_code=0,
            detail="",
            scores=scores,
            metric=next(iter(scores), None),
            minimize=False,
            artifacts=[],
            passport=None,
            timings=Timings(),
            at=NOON,
        )
        if finished and run is not None:
            run.move(state)
            run.scores = scores

    @invariant()
    def the_tables_are_the_model(self) -> None:
        if not hasattr(self, "ledger"):
            return
        assert {launch.launch_id: launch.state for launch in self.ledger.launches()} == self.launches
        assert {unit.instance_id: unit.state for unit in self.ledger.units(live=False)} == self.units
        live = {instance_id for instance_id, state in self.units.items() if state is not UnitState.TERMINATED}
        assert {unit.instance_id for unit in self.ledger.units()} == live
        records = {record.run_id: record for record in self.ledger.runs()}
        assert records.keys() == self.runs.keys()
        for run_id, run in self.runs.items():
            record = records[run_id]
            assert (record.state, repr(record.scores)) == (run.state, repr(run.scores))
            assert (record.ended_at is not None) == is_terminal(run.state)
            attempts = self.ledger.attempts(run_id)
            assert [(one.instance_id, one.state, one.ended_at is not None) for one in attempts] == run.attempts
            assert record.attempts == len(attempts)
        known = {name for run in self.runs.values() for name in run.scores}
        if known and "a" not in known:
            with pytest.raises(UsageError):
                self.ledger.ranking("a")
            return
        best = [run.scores["a"] for run in self.ledger.ranking("a", minimize=False)]
        finite = [score for score in best if abs(score) < float("inf")]
        assert best[: len(finite)] == sorted(finite, reverse=True)


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=30, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
