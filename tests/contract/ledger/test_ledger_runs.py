"""What the ledger promises about runs, attempts and rankings, on a real SQLite file."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest

from cloudrun.core.errors import LedgerError, NotFound, UsageError
from cloudrun.core.records import Artifact, Passport, Timings
from cloudrun.core.states import EndReason, RunState, UnitState
from cloudrun.ledger import Ledger

# -- runs and attempts


def test_a_run_comes_back_as_it_was_added(ledger: Ledger, make: SimpleNamespace) -> None:
    run = make.run(
        name="größe\x00\udc80",
        arguments=("--alpha", "0.1", "\udcff"),
        params={"alpha": 0.1, "deep": True, "layers": [1, 2], "none": None, "limit": math.inf},
        metric="auc",
        minimize=True,
        code_digest="c",
        data_digest="d",
        environment_digest="e",
    )
    ledger.add_run(run)
    assert ledger.run("run-1") == replace(run, name="größe\x00\\udc80")


def test_a_run_is_in_the_ledger_once(ledger: Ledger, make: SimpleNamespace) -> None:
    ledger.add_run(make.run())
    with pytest.raises(LedgerError):
        ledger.add_run(make.run(name="again"))
    assert [run.name for run in ledger.runs()] == ["digits.py"]


def test_parameters_that_are_no_json_are_refused(ledger: Ledger, make: SimpleNamespace) -> None:
    with pytest.raises(UsageError, match="JSON"):
        ledger.add_run(make.run(params={"model": object()}))
    assert ledger.runs() == []


def test_an_attempt_is_claimed_once(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1", "i-2")
    ledger.add_run(make.run())
    attempt = ledger.begin_attempt("run-1", "i-1", make.noon)
    assert (attempt.number, attempt.instance_id, attempt.state) == (1, "i-1", RunState.SHIPPING)
    with pytest.raises(LedgerError, match="shipping and cannot become shipping"):
        ledger.begin_attempt("run-1", "i-2", make.noon)
    assert ledger.attempts("run-1") == [attempt]
    run = ledger.run("run-1")
    assert (run.instance_id, run.instance_type, run.attempts) == ("i-1", "m7i.large", 1)
    assert run.place == ledger.unit("i-1").place


def test_nothing_begins_on_a_unit_that_is_ending(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    ledger.add_run(make.run())
    ledger.move_unit("i-1", UnitState.TERMINATING)
    for instance_id in ("i-1", "i-9"):
        with pytest.raises(LedgerError, match="nothing can run on it"):
            ledger.begin_attempt("run-1", instance_id, make.noon)
    assert ledger.run("run-1").state is RunState.QUEUED
    assert ledger.attempts("run-1") == []


def test_a_retry_is_a_new_attempt_and_the_old_one_stays(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1", "i-2")
    ledger.add_run(make.run())
    ledger.begin_attempt("run-1", "i-1", make.noon)
    ledger.move_run("run-1", RunState.RUNNING)
    ledger.move_run("run-1", RunState.QUEUED, reason=EndReason.UNIT_LOST, detail="the machine went away")
    assert ledger.run("run-1").instance_id is None
    ledger.begin_attempt("run-1", "i-2", make.noon)
    first, second = ledger.attempts("run-1")
    assert (first.state, first.end_reason, first.detail) == (
        RunState.LOST,
        EndReason.UNIT_LOST,
        "the machine went away",
    )
    assert first.ended_at is not None
    assert (second.number, second.state, second.ended_at) == (2, RunState.SHIPPING, None)


def test_run_and_attempt_move_together(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    ledger.add_run(make.run())
    ledger.begin_attempt("run-1", "i-1", make.noon)
    for state in (RunState.RUNNING, RunState.PULL_PENDING, RunState.PULLING, RunState.FAILED):
        ledger.move_run("run-1", state, reason=EndReason.EXITED, exit_code=3, detail="it said no")
        run, [attempt] = ledger.run("run-1"), ledger.attempts("run-1")
        assert run.state is attempt.state is state
        assert run.exit_code == attempt.exit_code == 3
        assert (run.ended_at is None) == (attempt.ended_at is None) == (state is not RunState.FAILED)


def test_unfinished_runs_are_those_that_are_not_over(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1", "i-2")
    make.finished(ledger, make.run("run-0"))
    make.pulling(ledger, make.run("run-1"))
    make.pulling(ledger, make.run("run-2", 1), "i-2")
    ledger.add_run(make.run("run-3", 2))
    assert [run.run_id for run in ledger.unfinished_runs()] == ["run-1", "run-2", "run-3"]
    assert [run.run_id for run in ledger.unfinished_runs("i-2")] == ["run-2"]
    assert [run.run_id for run in ledger.unfinished_runs(placed=True)] == ["run-1", "run-2"]


def test_a_finished_run_has_all_it_made_and_keeps_the_order(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    passport = Passport("3.11.2", {"numpy": "2.1.0"}, "Linux-x86_64", "c", "d", "e")
    scores = {"z": 1.0, "accuracy": 0.5, "nan": math.nan, "up": math.inf, "down": -math.inf}
    returned = make.finished(
        ledger,
        make.run(),
        scores,
        files={"b.txt": b"b", "a.txt": b"a"},
        logs={"stdout.log": b"out"},
        passport=passport,
    )
    run = ledger.run("run-1")
    assert list(run.scores) == list(scores)
    assert math.isnan(run.scores["nan"])
    assert (run.scores["up"], run.scores["down"]) == (math.inf, -math.inf)
    assert [artifact.path for artifact in run.artifacts] == ["b.txt", "a.txt", "stdout.log"]
    assert [artifact.kind for artifact in run.artifacts] == ["output", "output", "log"]
    assert run.passport == passport
    assert (run.state, run.metric, run.exit_code) == (RunState.SUCCEEDED, "z", 0)
    assert run.ended_at == make.noon + timedelta(hours=1)
    assert repr(returned) == repr(run)
    assert ledger.attempts("run-1")[0].state is RunState.SUCCEEDED


def test_a_run_may_fail_before_any_attempt_and_still_keep_its_log(ledger: Ledger, make: SimpleNamespace) -> None:
    ledger.add_run(make.run())
    log = make.stored(ledger, "provision.log", b"TASK [environment] failed", "log")
    ledger.finish_run(
        "run-1",
        RunState.FAILED,
        reason=EndReason.PROVISION_FAILED,
        exit_code=None,
        detail="the playbook failed",
        scores={},
        metric=None,
        minimize=False,
        artifacts=[log],
        passport=None,
        timings=Timings(),
        at=make.noon,
    )
    assert ledger.get("run-1").log("provision") == "TASK [environment] failed"
    assert ledger.attempts("run-1") == []


@pytest.mark.parametrize("state", [RunState.SUCCEEDED, RunState.FAILED])
def test_a_run_does_not_finish_with_an_artifact_that_is_not_here(
    ledger: Ledger, make: SimpleNamespace, state: RunState
) -> None:
    make.launched(ledger, "i-1")
    make.pulling(ledger, make.run())
    here = make.stored(ledger, "model.joblib", b"model")
    for artifact in (Artifact("model.joblib", 5, "0" * 64), replace(here, size=6)):
        with pytest.raises(LedgerError, match="not in the artifact store"):
            ledger.finish_run(
                "run-1",
                state,
                reason=None,
                exit_code=0,
                detail="",
                scores={"accuracy": 1.0},
                metric="accuracy",
                minimize=False,
                artifacts=[here, artifact],
                passport=None,
                timings=Timings(),
                at=make.noon,
            )
    run = ledger.run("run-1")
    assert (run.state, run.scores, run.artifacts) == (RunState.PULLING, {}, ())


def test_a_run_succeeds_only_by_being_finished(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    make.pulling(ledger, make.run())
    with pytest.raises(LedgerError, match="finish_run"):
        ledger.move_run("run-1", RunState.SUCCEEDED)
    assert ledger.run("run-1").state is RunState.PULLING


def test_a_run_that_is_over_stays_as_it_is_but_for_its_timings(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    make.finished(ledger, make.run(), {"accuracy": 0.5})
    before = ledger.run("run-1")
    for state in RunState:
        with pytest.raises(LedgerError):
            ledger.move_run("run-1", state)
    ledger.set_timings("run-1", Timings(run_s=1.5, terminate_s=0.5, total_s=9.0))
    assert ledger.run("run-1") == replace(before, timings=Timings(run_s=1.5, terminate_s=0.5, total_s=9.0))


# -- looking


def test_a_run_is_found_by_id_by_name_and_by_the_beginning_of_its_id(ledger: Ledger, make: SimpleNamespace) -> None:
    ledger.add_run(make.run("run-0abc", name="first"))
    ledger.add_run(make.run("run-0abd", 1, name="twice"))
    ledger.add_run(make.run("run-1abc", 2, name="twice"))
    ledger.add_run(make.run("run-2abc", 3, name="run-0abc"))
    assert ledger.run("run-0abc").name == "first"
    assert ledger.run("twice").run_id == "run-1abc"
    assert ledger.run("run-1").run_id == "run-1abc"
    assert ledger.run("0abd").run_id == "run-0abd"
    with pytest.raises(UsageError, match=r"several runs begin with '0ab'.*run-0ab[cd], run-0ab[cd]"):
        ledger.run("0ab")
    with pytest.raises(NotFound, match="near: first") as caught:
        ledger.run("frist")
    assert caught.value.instead == ("frist", "first")
    for reference in ("", "%", "run-1ab_"):
        with pytest.raises(NotFound):
            ledger.run(reference)


def test_who_names_a_script_is_told_how_to_find_its_runs(ledger: Ledger, make: SimpleNamespace) -> None:
    ledger.add_run(replace(make.run("run-0abc", name="baseline"), script="jobs/train.py"))
    for reference, known in (
        ("train.py", "train.py"),
        ("jobs/train.py", "jobs/train.py"),
        ("trian.py", "jobs/train.py"),
    ):
        with pytest.raises(NotFound) as caught:
            ledger.run(reference)
        assert f"cloudrun results --script {known}" in caught.value.next_step


def test_runs_are_listed_by_time_and_state(ledger: Ledger, make: SimpleNamespace) -> None:
    for number in range(4):
        ledger.add_run(make.run(f"run-{number}", number))
    ledger.move_run("run-2", RunState.CANCELLED)
    ids = [run.run_id for run in ledger.runs(limit=2)]
    assert ids == ["run-3", "run-2"]
    assert [run.run_id for run in ledger.runs(newest_first=False, limit=1)] == ["run-0"]
    assert [run.run_id for run in ledger.runs(states=[RunState.CANCELLED])] == ["run-2"]
    assert ledger.runs(states=[]) == []


# -- rankings


def ids(runs: list[object]) -> list[str]:
    return [run.run_id for run in runs]  # type: ignore[attr-defined]


def test_the_best_comes_first_and_the_older_among_equals(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    for number, accuracy in enumerate([0.5, 0.9, 0.7, 0.9]):
        make.finished(ledger, make.run(f"run-{number}", number), {"accuracy": accuracy})
    assert ids(ledger.ranking("accuracy")) == ["run-1", "run-3", "run-2", "run-0"]
    assert ids(ledger.ranking("accuracy", limit=2)) == ["run-1", "run-3"]
    assert ids(ledger.ranking("accuracy", minimize=True)) == ["run-0", "run-2", "run-1", "run-3"]


def test_nan_and_infinities_never_win(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    for number, score in enumerate([math.nan, math.inf, 0.5, -math.inf, 0.7]):
        make.finished(ledger, make.run(f"run-{number}", number), {"score": score})
    assert ids(ledger.ranking("score")) == ["run-4", "run-2", "run-0", "run-1", "run-3"]
    assert ids(ledger.ranking("score", minimize=True)) == ["run-2", "run-4", "run-0", "run-1", "run-3"]


def test_only_succeeded_runs_that_have_the_score_are_ranked(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    make.finished(ledger, make.run("run-0"), {"accuracy": 0.5})
    make.finished(ledger, make.run("run-1"), {"accuracy": 0.9}, state=RunState.FAILED)
    make.finished(ledger, make.run("run-2"), {"auc": 0.9})
    assert ids(ledger.ranking("accuracy")) == ["run-0"]
    with pytest.raises(UsageError, match=r"no run here has the score 'acuracy'; did you mean accuracy\?") as caught:
        ledger.ranking("acuracy")
    assert caught.value.next_step == "ask for 'accuracy'"
    with pytest.raises(UsageError, match="'nothing'"):
        ledger.ranking("nothing")
    with pytest.raises(UsageError, match=r"no run here is of the script 'jobs/tran\.py'"):
        ledger.ranking(script="jobs/tran.py")
    with pytest.raises(NotFound, match="no grid 'g-none'"):
        ledger.ranking("accuracy", grid_id="g-none")


def test_a_metric_is_no_mistake_before_anything_has_a_score(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    assert ledger.ranking("accuracy") == []
    make.finished(ledger, make.run("run-0"))
    assert ledger.ranking("accuracy") == []
    make.finished(ledger, make.run("run-1"), {"accuracy": 0.9}, state=RunState.FAILED)
    assert ledger.ranking("accuracy") == [], "it is called so, and none has succeeded"


def test_runs_without_the_score_that_was_to_rank_them_are_ranked_by_their_first(
    ledger: Ledger, make: SimpleNamespace
) -> None:
    make.launched(ledger, "i-1")
    for number in range(2):
        make.finished(ledger, make.run(f"run-{number}", number, metric="acuracy"), {"accuracy": number, "f1": 0.5})
    assert ids(ledger.ranking()) == ["run-1", "run-0"]
    make.finished(ledger, make.run("run-2", 0, metric="f1"), {"accuracy": 9.0, "f1": 0.5})
    assert ids(ledger.ranking()) == ["run-0", "run-1", "run-2"]


def test_a_score_is_the_number_that_was_written_and_sorts_as_one(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    for number, score in enumerate([426, 99, 426.5, 1000.0]):
        make.finished(ledger, make.run(f"run-{number}", number), {"score": score})
    scores = [run.scores["score"] for run in ledger.ranking("score")]
    assert scores == [1000.0, 426.5, 426, 99]
    assert [type(score) for score in scores] == [float, float, int, int]


def test_without_a_metric_the_newest_succeeded_run_says_which(ledger: Ledger, make: SimpleNamespace) -> None:
    assert ledger.ranking() == []
    make.launched(ledger, "i-1")
    make.finished(ledger, make.run("run-0", 0), {"accuracy": 0.5})
    make.finished(ledger, make.run("run-1", 1, metric="rmse"), {"accuracy": 0.4, "rmse": 3.0}, minimize=True)
    ledger.add_run(make.run("run-2", 2, metric="auc"))
    assert ids(ledger.ranking()) == ["run-1"]


def test_the_direction_is_the_newest_runs_and_else_the_names(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    make.finished(ledger, make.run("run-0", 0), {"cost": 1.0, "val_loss": 2.0}, minimize=True)
    make.finished(ledger, make.run("run-1", 1), {"cost": 3.0, "val_loss": 1.0}, minimize=True)
    assert ids(ledger.ranking("cost")) == ["run-0", "run-1"]
    assert ids(ledger.ranking("val_loss")) == ["run-1", "run-0"]
    make.finished(ledger, make.run("run-2", 2), {"cost": 2.0})
    assert ids(ledger.ranking("cost")) == ["run-1", "run-2", "run-0"]


# -- a run as its user holds it


def test_a_run_in_json_is_strict_json(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    run = make.run(params={"alpha": [math.inf, -math.inf], "b": {"c": math.nan}})
    make.finished(ledger, run, {"loss": math.nan}, files={"a.txt": b"a"}, passport=Passport("3.11.2", {}, "Linux"))
    document = json.loads(json.dumps(ledger.get("run-1").to_dict(), allow_nan=False))
    assert document["scores"] == {"loss": "NaN"}
    assert document["params"] == {"alpha": ["Infinity", "-Infinity"], "b": {"c": "NaN"}}
    assert document["unit"] == {"instance_id": "i-1", "instance_type": "m7i.large", "region": "eu-west-1"}
    assert set(document) >= {
        *("run_id", "name", "state", "end_reason", "exit_code", "scores", "params", "artifacts", "unit", "digests"),
        *("created_at", "timings", "cost_usd"),
    }
    assert set(document["artifacts"][0]) >= {"path", "size", "sha256"}
    assert document["created_at"] == "2026-03-01T12:00:00.000000Z"
    assert document["timings"]["run_s"] == 1.5


def test_a_run_can_be_held_compared_and_hashed(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    make.finished(ledger, make.run(), {"accuracy": 0.5})
    run = ledger.get("run-1")
    assert run == ledger.get("run-1")
    assert len({run, ledger.get("run-1")}) == 1
    assert run.record == ledger.run("run-1")
    assert repr(run) == "<Run run-1 digits.py succeeded accuracy=0.5>"
