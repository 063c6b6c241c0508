"""Which machine of a detached grid gets what, and what becomes of it where a machine does not come up or goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import Cancelled, LaunchError, TransferError
from cloudrun.core.events import nobody
from cloudrun.core.records import GridRecord, JobStatus, RunOnUnit, RunRecord
from cloudrun.core.rundir import run_dir
from cloudrun.core.states import EndReason, GridState, RunState
from cloudrun.grids.detaching import HandOver, Share, deal
from cloudrun.grids.gathering import catch_up, end_grids_of
from cloudrun.grids.watching import SeenGrid
from cloudrun.ledger import Ledger
from cloudrun.runs import attaching
from cloudrun.units.clients import this_client
from tests.fakes import Agent, Ec2, ManualClock, cloud_of, launch_one


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path)
    yield ledger
    ledger.close()


def cells(ledger: Ledger, count: int, begun: int = 0) -> list[str]:
    """The runs of a grid, of which the first `begun` are on a machine."""
    clock = ManualClock()
    unit = launch_one(ledger, clock, Ec2())
    ledger.begin_grid(GridRecord("g-1", "g", "a.py", GridState.OPEN, clock.now(), "same", count))
    runs = [(n, RunRecord(f"r-{n}", "a", "a.py", RunState.QUEUED, clock.now())) for n in range(count)]
    ledger.add_cells("g-1", runs)
    for number in range(begun):
        ledger.begin_attempt(f"r-{number}", unit.instance_id, clock.now())
    return [run.run_id for _, run in runs]


def states(ledger: Ledger) -> dict[RunState, int]:
    return {state: count for state, count in ledger.counts("g-1").items() if count}


# -- shares ------------------------------------------------------------------------------------------------------------


def test_a_queue_is_dealt_in_turns_so_that_all_machines_begin_with_what_comes_first() -> None:
    assert deal("abcde", [0, 0]) == [[(0, "a"), (2, "c"), (4, "e")], [(1, "b"), (3, "d")]]


def test_a_machine_that_has_cells_already_gets_fewer() -> None:
    dealt = deal(map(str, range(10)), [7, 0, 2])
    assert [len(each) + load for each, load in zip(dealt, [7, 0, 2], strict=True)] == [7, 6, 6]
    assert sorted(place for each in dealt for place, _ in each) == list(range(10))


def handed(ledger: Ledger, share: Share, error: BaseException | None, *, let_go: bool = False) -> HandOver:
    """What is left of a hand-over whose only share ended so."""
    work = HandOver(ledger, cast("Any", None), [share], nobody)
    assert work.take() is share
    assert (work.backlog().queued, work.backlog().running) == (0, 1)
    work._units[id(share)] = cast("Any", SimpleNamespace(is_let_go=let_go))
    work.ended(share, error)
    assert work.backlog().running == 0
    return work


def test_the_share_of_a_machine_that_did_not_come_up_waits_for_another_with_its_places(ledger: Ledger) -> None:
    ids = cells(ledger, 4, begun=2)
    work = handed(ledger, Share(cells=tuple(enumerate(ids))), LaunchError("it did not boot"))
    assert states(ledger) == {RunState.QUEUED: 4}
    again = work.take()
    assert again is not None
    assert again.cells == tuple(enumerate(ids))
    assert str(work.trouble) == "it did not boot"
    assert [each.end_reason for each in ledger.attempts("r-0")] == [EndReason.INTERRUPTED]


def test_what_is_cancelled_meanwhile_is_handed_to_nobody(ledger: Ledger) -> None:
    ids = cells(ledger, 2)
    ledger.move_run("r-0", RunState.CANCELLED, reason=EndReason.CANCELLED)
    work = handed(ledger, Share(cells=tuple(enumerate(ids))), LaunchError("it did not boot"))
    assert work.left == ["r-1"]


def test_where_the_user_stops_it_nothing_is_handed_out_again(ledger: Ledger) -> None:
    ids = cells(ledger, 2, begun=1)
    work = handed(ledger, Share(cells=tuple(enumerate(ids))), Cancelled("the process was told to stop"))
    assert work.left == []
    assert states(ledger) == {RunState.QUEUED: 2}, "its machine is ended: the next command hands it out"


def test_a_machine_that_goes_on_alone_keeps_what_it_has(ledger: Ledger) -> None:
    ids = cells(ledger, 2, begun=2)
    handed(ledger, Share(cells=tuple(enumerate(ids))), Cancelled("the process was told to stop"), let_go=True)
    assert states(ledger) == {RunState.SHIPPING: 2}


def test_what_is_wrong_with_the_files_is_not_tried_on_machine_after_machine(ledger: Ledger) -> None:
    ids = cells(ledger, 2)
    with pytest.raises(TransferError, match="cannot read"):
        handed(ledger, Share(cells=tuple(enumerate(ids))), TransferError("cannot read train.py"))


# -- what a machine had ------------------------------------------------------------------------------------------------


class Told(Agent):
    """An agent that knows these runs."""

    def __init__(self, known: dict[str, JobStatus]) -> None:
        super().__init__()
        self.known = known

    def status(self, place: str) -> JobStatus | None:
        return self.known.get(place)

    def runs(self) -> tuple[RunOnUnit, ...]:
        return tuple(RunOnUnit(place, status) for place, status in self.known.items())


@pytest.mark.parametrize("requeue", [False, True])
def test_of_a_machine_that_goes_on_what_has_ended_comes_home_and_nothing_else(ledger: Ledger, requeue: bool) -> None:
    """And what it never got is told, since its client died over it."""
    ids = cells(ledger, 4, begun=4)
    agent = Told(
        {
            run_dir("r-0", 1): JobStatus("exited", exit_code=0),
            run_dir("r-1", 1): JobStatus("running"),
            run_dir("r-2", 1): JobStatus("queued"),
        }
    )
    runs = [ledger.run(run_id) for run_id in ids]
    missing = catch_up(ledger, cloud_of(Ec2()), cast("Any", agent), runs, observe=nobody, requeue=requeue)
    assert [run.run_id for run in missing] == ["r-3"]
    there = {RunState.SUCCEEDED: 1, RunState.SHIPPING: 2 if requeue else 3}
    assert states(ledger) == (there | {RunState.QUEUED: 1} if requeue else there)


@pytest.mark.parametrize("attended", [False, True])
def test_a_grid_is_over_with_its_last_cell_whoever_has_ended_that_one(ledger: Ledger, attended: bool) -> None:
    ids = cells(ledger, 2)
    if attended:
        client = this_client(SystemClock().now())
        ledger.register_client(client)
        assert ledger.take_grid("g-1", client.client_id, of="")
    for run_id, state in zip(ids, (GridState.OPEN, GridState.OPEN if attended else GridState.DONE), strict=True):
        attaching.cancel(ledger, run_id, grace_s=1, observe=nobody)
        end_grids_of(ledger, run_id)
        assert ledger.grid("g-1").state is state


# -- how far it is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "step"),
    [
        ({"done": 2, "failed": 1, "running": 0}, "cloudrun pull g-1"),
        ({"done": 2, "running": 1}, "cloudrun attach g-1"),
        ({"done": 2, "waiting": 1}, "cloudrun attach g-1"),
        ({"done": 2, "lost": 1}, "cloudrun attach g-1"),
    ],
)
def test_what_to_type_next_depends_on_what_its_machines_do(ledger: Ledger, there: dict[str, int], step: str) -> None:
    cells(ledger, 3, begun=3)
    seen = SeenGrid(ledger.grid("g-1"), ledger.counts("g-1"), (), attended=False, there=Counter(there))
    assert seen.next_step.startswith(step)
    assert (seen.done, seen.failed) == (2, there.get("failed", 0))
    assert seen.left == there.get("lost", 0)
