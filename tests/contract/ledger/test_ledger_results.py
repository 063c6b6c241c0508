"""Tables of runs, sorted and filtered by the database: what they agree on with plain Python, on a real SQLite file."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import pytest

from cloudrun.core.states import RunState
from cloudrun.ledger import Claim, Ledger, Move
from cloudrun.ledger.results import BATCH
from cloudrun.plan.filters import parse_where
from tests.contract.ledger.test_ledger_batches import an_end


def listed(ledger: Ledger, where: str = "", grid_id: str | None = None, **options: Any) -> list[str]:
    found = ledger.results(grid_id, where=parse_where(where) if where else (), **options)
    return [run.run_id.removeprefix("run-") for run in found]


@pytest.fixture
def mixed(ledger: Ledger, make: SimpleNamespace) -> Ledger:
    """Runs a to g with all kinds of parameters, and one without any."""
    make.launched(ledger, "i-1")
    for name, params, scores, state in (
        ("a", {"alpha": 0.1, "loss": "hinge", 'o"dd $.x': 1}, {"accuracy": 0.5, "loss": 0.7}, RunState.SUCCEEDED),
        ("b", {"alpha": 10, "deep": True}, {"accuracy": 0.9}, RunState.SUCCEEDED),
        ("c", {"alpha": "high", "deep": False}, {"accuracy": math.nan}, RunState.SUCCEEDED),
        ("d", {"alpha": math.inf, "layers": [1, 2]}, {"accuracy": math.inf}, RunState.SUCCEEDED),
        ("e", {"alpha": None, "big": 1 << 70}, {"accuracy": 0.99}, RunState.FAILED),
        ("f", {"alpha": math.nan, "text": "größe \udc80"}, {}, RunState.SUCCEEDED),
    ):
        make.finished(ledger, make.run(f"run-{name}", ord(name) - ord("a"), params=params), scores, state=state)
    ledger.add_run(make.run("run-g", 6))
    return ledger


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("alpha<1", "a"),
        ("alpha>1", "bd"),
        ("alpha>=10 and alpha<100", "b"),
        ("alpha=10.0", "b"),
        ("alpha!=10", "acd"),
        ("alpha=null", "efg"),
        ("alpha!=null", "abcd"),
        ("alpha=high", "c"),
        ("alpha>'a'", "c"),
        ("alpha<'z'", "c"),
        ("deep=true", "b"),
        ("deep=false", "c"),
        ("layers='[1, 2]'", "d"),
        ("big>1e20", "e"),
        ("text!=null", "f"),
        ("loss<1", "a"),
        ("params.loss=hinge", "a"),
        ("scores.loss=hinge", ""),
        ("accuracy>0.6", "bde"),
        ("accuracy>0.6 and state=succeeded", "bd"),
        ("accuracy=null", "cfg"),
        ("state=queued", "g"),
        ("state!=succeeded", "eg"),
        ("run_s=1.5", "abcdef"),
        ("timings.run_s<1", "g"),
        ("attempts=0", "g"),
        ("exit_code=0", "abcdef"),
        ("instance_type=m7i.large", "abcdef"),
        ("instance_id=null", "g"),
        ("created_at<'2026-03-01T12:02'", "ab"),
        ("name=digits.py and created_at>2026-03-01T12:05", "fg"),
        ("nowhere=1", ""),
        ('"x\' OR 1=1 --"=1', ""),
    ],
)
def test_only_runs_for_which_every_comparison_holds(mixed: Ledger, where: str, expected: str) -> None:
    assert sorted(listed(mixed, where)) == list(expected)


def test_a_parameter_may_be_called_anything(mixed: Ledger) -> None:
    assert listed(mixed, "'o\"dd $.x'=1") == ["a"]


def test_the_ranking_comes_first_then_the_newest_of_the_others(mixed: Ledger) -> None:
    assert listed(mixed) == ["b", "a", "c", "d", "g", "f", "e"]
    assert listed(mixed, minimize=True) == ["a", "b", "c", "d", "g", "f", "e"]
    assert listed(mixed, reverse=True) == ["a", "b", "c", "d", "g", "f", "e"]
    for limit in range(8):
        assert listed(mixed, limit=limit) == ["b", "a", "c", "d", "g", "f", "e"][:limit]
    assert listed(mixed, "alpha!=null", limit=2) == ["b", "a"]
    assert listed(mixed, metric="nothing") == ["g", "f", "e", "d", "c", "b", "a"]


def test_what_is_sorted_by_may_be_missing_and_comes_last_then(mixed: Ledger) -> None:
    assert listed(mixed, sort="params.alpha") == ["a", "b", "d", "c", "e", "f", "g"]
    assert listed(mixed, sort="alpha", reverse=True)[-3:] == ["e", "f", "g"]
    assert listed(mixed, sort="alpha", limit=2) == ["a", "b"]
    assert listed(mixed, sort="created_at", reverse=True) == list("gfedcba")
    assert listed(mixed, sort="accuracy") == listed(mixed, metric="accuracy")
    assert listed(mixed, sort="params.loss")[0] == "a"


def test_a_score_per_dollar_likes_the_cheaper_and_the_better(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    for name, score, cost in (
        ("a", 0.9, 1.0),
        ("b", 0.9, 0.5),
        ("c", 0.1, 0.5),
        ("d", -0.5, 0.5),
        ("e", -0.5, 1.0),
        ("f", math.inf, 0.1),
        ("g", 0.9, 0.0),
        ("h", 0.9, None),
    ):
        make.finished(ledger, make.run(f"run-{name}"), {"score": score})
        if cost is not None:
            ledger.set_cost(f"run-{name}", cost)
    assert listed(ledger, sort="score_per_usd") == list("bacdefgh")
    assert listed(ledger, sort="score_per_usd", minimize=True) == list("decbafgh")
    assert listed(ledger, sort="score_per_usd", reverse=True) == list("edcabfgh")


def test_a_ranking_among_many_equals_is_that_of_plain_python(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    numbers = random.Random(0)
    scores = {f"run-{number:03d}": numbers.randrange(4) / 4 for number in range(60)}
    ledger.begin_grid(make.grid(cells=60))
    with ledger.together():
        for run_id, score in scores.items():
            make.finished(ledger, make.run(run_id), {"accuracy": score})
        ledger.add_cells("g-1", [(number, f"run-{number:03d}") for number in range(0, 60, 2)])
    for grid_id, among in ((None, list(scores)), ("g-1", list(scores)[::2])):
        for minimize in (True, False):
            best = sorted(among, key=lambda run_id, sign=1 if minimize else -1: (sign * scores[run_id], run_id))
            for limit in (1, 2, 5, 14, 15, 16, 29, 30, 59, 60, 61, None):
                ranking = ledger.ranking("accuracy", minimize=minimize, limit=limit, grid_id=grid_id)
                assert [run.run_id for run in ranking] == best[:limit]
                found = ledger.results(grid_id, metric="accuracy", minimize=minimize, limit=limit)
                assert [run.run_id for run in found] == best[:limit]


def test_cells_without_a_score_come_after_the_ranking_by_number(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    for name in "abc":
        make.finished(ledger, make.run(f"run-{name}"), {"accuracy": ord(name) / 1000} if name != "b" else {})
    ledger.begin_grid(make.grid())
    ledger.add_cells("g-1", [(3, "run-a"), (2, "run-b"), (1, "run-c"), (0, make.run("run-x"))])
    assert ledger.primary_metric("g-1") == "accuracy"
    assert listed(ledger, grid_id="g-1") == ["c", "a", "x", "b"]
    assert listed(ledger, "state=queued", grid_id="g-1") == ["x"]
    assert listed(ledger, grid_id="g-1", sort="created_at", limit=2) == ["a", "b"]
    assert ledger.primary_metric("g-9") is None


def test_others_write_while_results_are_read(ledger: Ledger, make: SimpleNamespace) -> None:
    with ledger.together():
        for number in range(2 * BATCH):
            ledger.add_run(make.run(f"run-{number:04d}", number))
    runs = ledger.results()
    first = next(runs)
    other = Ledger(ledger.project)
    other.add_run(make.run("run-new"))
    other.close()
    assert first.run_id == f"run-{2 * BATCH - 1:04d}"
    assert len(list(runs)) == 2 * BATCH - 1


@pytest.mark.parametrize("newest", [1, 1000])  # of a script's runs are looked at by themselves
def test_whether_any_run_of_a_script_has_a_score(
    ledger: Ledger, make: SimpleNamespace, newest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloudrun.ledger.results.NEWEST", newest)
    make.launched(ledger, "i-1")
    for minute, (script, scores, state) in enumerate(
        [
            ("a.py", {"accuracy": 0.5}, RunState.SUCCEEDED),
            ("a.py", {"f1": 0.5}, RunState.SUCCEEDED),
            ("b.py", {"f1": math.nan}, RunState.SUCCEEDED),
            ("b.py", {"accuracy": 0.9}, RunState.FAILED),
            ("b.py", {"loss": 0.1}, RunState.SUCCEEDED),
        ]
    ):
        make.finished(ledger, make.run(f"run-{minute}", minute, script=script), scores, state=state)
    ledger.begin_grid(make.grid())
    cell = make.run("run-9", 9, script="b.py")
    ledger.add_cells("g-1", [(0, cell)])
    ledger.begin_attempts([Claim(cell.run_id, "i-1")], make.noon)
    ledger.move_runs([Move(cell.run_id, RunState.RUNNING)])
    ledger.finish_runs([an_end(cell.run_id, RunState.SUCCEEDED, {"recall": 0.4})])
    having = {
        (script, metric): ledger.has_score(metric, script=script)
        for script in ("a.py", "b.py")
        for metric in ("accuracy", "f1", "loss", "recall")
    }
    assert {key for key, has in having.items() if has} == {
        ("a.py", "accuracy"),
        ("a.py", "f1"),
        ("b.py", "f1"),
        ("b.py", "loss"),
        ("b.py", "recall"),
    }
