"""What the ledger promises about grids and their cells, on a real SQLite file."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from cloudrun.core.errors import LedgerError, NotFound, UsageError
from cloudrun.core.records import CellRecord, GridRecord, Timings
from cloudrun.core.states import EndReason, GridState, RunState
from cloudrun.ledger import Ledger


def ids(runs: list[object]) -> list[str]:
    return [run.run_id for run in runs]  # type: ignore[attr-defined]


def with_cells(ledger: Ledger, make: SimpleNamespace, count: int, grid_id: str = "g-1") -> GridRecord:
    """A grid with so many queued cells, run-0, run-1, ..."""
    grid: GridRecord = make.grid(grid_id, cells=count)
    ledger.begin_grid(grid)
    ledger.add_cells(
        grid_id, [(number, make.run(f"run-{number}", cell_key=f"key-{number}")) for number in range(count)]
    )
    return grid


def finish(
    ledger: Ledger, make: SimpleNamespace, run_id: str, score: float, state: RunState = RunState.SUCCEEDED
) -> None:
    ledger.begin_attempt(run_id, "i-1", make.noon)
    ledger.move_run(run_id, RunState.RUNNING)
    ledger.finish_run(
        run_id,
        state,
        reason=EndReason.COMPLETED,
        exit_code=0,
        detail="",
        scores={"accuracy": score, "extra": 1.0},
        metric="accuracy",
        minimize=False,
        artifacts=[],
        passport=None,
        timings=Timings(),
        at=make.noon,
        cost_usd=0.25,
    )


# -- grids


def test_a_grid_comes_back_as_it_was_begun(ledger: Ledger, make: SimpleNamespace) -> None:
    grid = make.grid(
        name="größe", spec={"tables": [{"alpha": [0.1, 1]}]}, settings={"units": 4}, budget_usd=5.5, detail="\x00"
    )
    ledger.begin_grid(grid)
    assert ledger.grid("g-1") == grid
    with pytest.raises(LedgerError):
        ledger.begin_grid(make.grid(name="again"))


def test_the_same_command_finds_its_newest_grid(ledger: Ledger, make: SimpleNamespace) -> None:
    assert ledger.find_grid("identity-1") is None
    for number, identity in enumerate(["identity-1", "identity-2", "identity-1"]):
        ledger.begin_grid(make.grid(f"g-{number}", identity=identity, name=f"n{number % 2}"))
    found = ledger.find_grid("identity-1")
    assert found is not None
    assert found.grid_id == "g-2"
    assert [grid.grid_id for grid in ledger.grids()] == ["g-2", "g-1", "g-0"]
    assert [grid.grid_id for grid in ledger.grids(limit=1)] == ["g-2"]
    assert ledger.grid("n0").grid_id == "g-2"
    assert ledger.grid("1").grid_id == "g-1"
    with pytest.raises(UsageError, match="several grids begin with 'g-'"):
        ledger.grid("g-")
    for reference in ("", "g-9"):
        with pytest.raises(NotFound):
            ledger.grid(reference)


def test_a_grid_ends_once_and_only_a_stopped_one_goes_on(ledger: Ledger, make: SimpleNamespace) -> None:
    ledger.begin_grid(make.grid())
    ledger.end_grid("g-1", GridState.STOPPED, "the budget is spent")
    stopped = ledger.grid("g-1")
    assert (stopped.state, stopped.detail, stopped.ended_at is None) == (
        GridState.STOPPED,
        "the budget is spent",
        False,
    )
    with pytest.raises(LedgerError, match="is stopped: no cell can be added"):
        ledger.add_cells("g-1", [(0, make.run())])
    ledger.reopen_grid("g-1")
    ledger.update_grid("g-1", budget_usd=9.0, settings={"units": 8}, wishes={"slots": 2})
    assert ledger.grid("g-1") == make.grid(
        budget_usd=9.0, settings={"units": 8}, spec={**make.grid().spec, "wishes": {"slots": 2}}
    )
    ledger.end_grid("g-1", GridState.DONE)
    for act in (lambda: ledger.reopen_grid("g-1"), lambda: ledger.end_grid("g-1", GridState.CANCELLED)):
        with pytest.raises(LedgerError, match="done and cannot become"):
            act()
    assert [grid.grid_id for grid in ledger.grids(states=[GridState.DONE])] == ["g-1"]
    assert ledger.grids(states=[GridState.OPEN]) == []


def test_a_grid_is_taken_by_one_client_only_and_the_other_writes_nothing_more(
    ledger: Ledger, make: SimpleNamespace
) -> None:
    ledger.begin_grid(make.grid())
    assert ledger.take_grid("g-1", "client-2", of="client-1")
    assert not ledger.take_grid("g-1", "client-3", of="client-1")
    with pytest.raises(LedgerError, match="another process goes on"), ledger.together():  # noqa: PT012
        ledger.guard_grid("g-1", "client-1")
        ledger.add_cells("g-1", [(0, make.run())])
    with ledger.together():
        ledger.guard_grid("g-1", "client-2")
        ledger.add_cells("g-1", [(1, make.run())])
    assert [cell.number for cell in ledger.cells("g-1")] == [1]


# -- cells


def test_cells_are_read_a_page_at_a_time_in_their_order(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    with_cells(ledger, make, 7)
    ledger.begin_attempt("run-1", "i-1", make.noon)
    ledger.move_run("run-4", RunState.CANCELLED)
    queued = ledger.queued_cells("g-1", 3)
    assert [(number, run.run_id) for number, run in queued] == [(0, "run-0"), (2, "run-2"), (3, "run-3")]
    assert queued[0][1] == make.run("run-0", cell_key="key-0", grid_id="g-1")
    assert [number for number, _ in ledger.queued_cells("g-1", 3, after=3)] == [5, 6]
    assert ledger.cells("g-1", after=3, limit=2) == [
        CellRecord(4, "run-4", RunState.CANCELLED),
        CellRecord(5, "run-5", RunState.QUEUED),
    ]
    assert ledger.next_cell("g-1") == 7
    assert ledger.counts("g-1") == {
        **dict.fromkeys(RunState, 0),
        RunState.QUEUED: 5,
        RunState.SHIPPING: 1,
        RunState.CANCELLED: 1,
    }


def test_a_requeued_cell_is_in_the_queue_again(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    with_cells(ledger, make, 2)
    ledger.begin_attempt("run-0", "i-1", make.noon)
    assert [number for number, _ in ledger.queued_cells("g-1")] == [1]
    ledger.requeue_run("run-0", reason=EndReason.UNIT_LOST, detail="")
    assert [number for number, _ in ledger.queued_cells("g-1")] == [0, 1]


def test_cells_are_added_all_or_none(ledger: Ledger, make: SimpleNamespace) -> None:
    with_cells(ledger, make, 2)
    ledger.begin_grid(make.grid("g-2", cells=3))
    one, other = make.run("run-a"), make.run("run-b")
    for cells, problem in (
        ([(0, one), (3, other)], "has 3 cells"),
        ([(0, one), (-1, other)], "has 3 cells"),
        ([(0, one), (0, other)], "comes twice"),
        ([(0, one), (1, "run-z")], "not in the ledger"),
        ([(0, one), (1, one)], "UNIQUE"),
        ([(0, one), (1, make.run("run-0"))], "UNIQUE"),
        ([(0, one), (1, replace(other, state=RunState.RUNNING))], "begins as queued"),
    ):
        with pytest.raises(LedgerError, match=problem):
            ledger.add_cells("g-2", cells)
        assert ledger.cells("g-2") == []
        assert ids(ledger.runs()) == ["run-1", "run-0"]
    with pytest.raises(NotFound):
        ledger.add_cells("g-9", [(0, one)])
    ledger.add_cells("g-2", [])


def test_a_cell_is_replaced_only_where_its_run_came_to_nothing(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    with_cells(ledger, make, 3)
    finish(ledger, make, "run-0", 0.5)
    ledger.move_run("run-1", RunState.LOST)
    for taken in (0, 2):
        with pytest.raises(
            LedgerError, match=f"cell {taken} of grid g-1 is (succeeded|queued) already, as run-{taken}"
        ):
            ledger.add_cells("g-1", [(1, make.run("run-9")), (taken, make.run("run-8"))])
    ledger.add_cells("g-1", [(0, "run-0"), (1, make.run("run-9"))])
    assert [(cell.run_id, cell.state) for cell in ledger.cells("g-1")] == [
        ("run-0", RunState.SUCCEEDED),
        ("run-9", RunState.QUEUED),
        ("run-2", RunState.QUEUED),
    ]
    assert ledger.run("run-1").grid_id == "g-1", "what was tried first is not forgotten"


def test_a_run_of_an_earlier_grid_counts_in_a_later_one_whenever_it_ends(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    with_cells(ledger, make, 3)
    finish(ledger, make, "run-0", 0.9)
    ledger.begin_grid(make.grid("g-2"))
    ledger.add_cells("g-2", [(0, "run-0"), (1, "run-1"), (2, make.run("run-new"))])
    finish(ledger, make, "run-1", 0.95)
    finish(ledger, make, "run-2", 0.99)
    assert ids(ledger.ranking("accuracy", grid_id="g-2")) == ["run-1", "run-0"]
    assert ids(ledger.ranking("accuracy", grid_id="g-1")) == ["run-2", "run-1", "run-0"]
    assert ids(ledger.ranking("accuracy")) == ["run-2", "run-1", "run-0"]
    assert ledger.counts("g-2")[RunState.SUCCEEDED] == 2
    assert ledger.run("run-1").grid_id == "g-1"
    best = ledger.best("g-2")
    assert best is not None
    assert (best.run_id, best.cost_usd) == ("run-1", 0.25)
    worst = ledger.best("g-2", "accuracy", True)
    assert worst is not None
    assert worst.run_id == "run-0"
    assert ledger.best("g-2", "nothing") is None


def test_what_has_succeeded_before_is_found_by_its_key(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    for run_id, key in (("1", "a"), ("2", "a"), ("3", "a"), ("4", "a"), ("5", "b"), ("6", "c"), ("7", "")):
        ledger.add_run(make.run(f"run-{run_id}", cell_key=key))
    finish(ledger, make, "run-1", 0.5)
    finish(ledger, make, "run-2", 0.5)
    finish(ledger, make, "run-3", 0.5, RunState.FAILED)
    finish(ledger, make, "run-5", 0.5, RunState.FAILED)
    finish(ledger, make, "run-7", 0.5)
    assert ledger.succeeded_by_cell(["a", "b", "c", "d", ""]) == {"a": "run-2"}
    assert ledger.succeeded_by_cell([]) == {}


# -- transactions


def test_together_is_all_or_nothing_but_for_what_was_refused_and_caught(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    with ledger.together():
        ledger.add_run(make.run("run-1"))
        with pytest.raises(LedgerError, match="nothing can run on it"):
            ledger.begin_run(make.run("run-2"), "i-9", make.noon)
        ledger.begin_run(make.run("run-3"), "i-1", make.noon)
    assert ids(ledger.runs()) == ["run-3", "run-1"], "the half that begin_run had written is gone"
    with pytest.raises(ZeroDivisionError), ledger.together():  # noqa: PT012
        ledger.add_run(make.run("run-4"))
        print(1 / 0)
    assert ids(ledger.runs()) == ["run-3", "run-1"]


def test_what_is_asked_often_walks_an_index(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    with_cells(ledger, make, 3)
    finish(ledger, make, "run-0", 0.5)
    asked: list[Callable[[], object]] = [
        lambda: ledger.ranking(limit=3),
        lambda: ledger.ranking("accuracy", minimize=True, limit=3),
        lambda: ledger.ranking(grid_id="g-1", limit=3),
        lambda: list(ledger.results(limit=20)),
        lambda: list(ledger.results("g-1", limit=20)),
        lambda: ledger.runs(limit=3),
        lambda: ledger.runs(states=list(RunState), limit=3),
        lambda: ledger.unfinished_runs("i-1"),
        lambda: ledger.unfinished_runs(placed=True),
        lambda: ledger.run("run-0"),
        lambda: ledger.run("digits.py"),
        lambda: ledger.run("0"),
        lambda: ledger.grid("g-1"),
        lambda: ledger.find_grid("identity-1"),
        lambda: ledger.queued_cells("g-1"),
        lambda: ledger.counts("g-1"),
        lambda: ledger.next_cell("g-1"),
        lambda: ledger.succeeded_by_cell(["key-1"]),
        lambda: ledger.add_cells("g-1", [(0, "run-0")]),
        lambda: finish(ledger, make, "run-1", 0.5),
    ]
    for ask in asked:
        queries: list[str] = []
        with ledger._database.writing() as connection:
            connection.set_trace_callback(queries.append)
            ask()
            connection.set_trace_callback(None)
            for query in queries:
                if not query.lstrip().startswith(("SELECT", "INSERT", "UPDATE")):
                    continue
                for row in connection.execute(f"EXPLAIN QUERY PLAN {query}"):
                    scan = re.search(r"SCAN (runs|scores|ranked|cells|attempts|artifacts)( USING .*)?", row["detail"])
                    short = scan is None or "runs_under_way" in scan[0] or (scan[2] and "LIMIT" in query)
                    through_a_state = "runs_by_state" in row["detail"] and "LIMIT" not in query
                    assert short, f"{row['detail']}: {query}"
                    assert not through_a_state, query
