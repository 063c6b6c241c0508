"""What goes into a report, from a real ledger."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from cloudrun.core.errors import NotFound, UsageError
from cloudrun.core.records import RunRecord
from cloudrun.core.states import EndReason, RunState
from cloudrun.ledger import Ledger
from cloudrun.report import collect
from cloudrun.report.columns import document
from cloudrun.report.tails import log_tails

Ran = Callable[..., str]


def test_the_newest_succeeded_run_says_what_ranks_and_which_way(ledger: Ledger, ran: Ran) -> None:
    ran({"accuracy": 0.9})
    ran({"oddness": 3.0, "accuracy": 0.8, "log_loss": 1.0}, minimize=True)
    ran(detail="it broke")
    data = collect(ledger)
    assert data.metric == "oddness"
    assert data.minimize == {"oddness": True, "accuracy": False, "log_loss": True}


def test_a_metric_and_its_direction_can_be_asked_for(ledger: Ledger, ran: Ran) -> None:
    ran({"accuracy": 0.9, "log_loss": 1.0})
    data = collect(ledger, metric="log_loss", minimize=False)
    assert (data.metric, data.minimize["log_loss"]) == ("log_loss", False)


def test_a_metric_that_no_run_has_is_refused_with_those_that_there_are(ledger: Ledger, ran: Ran) -> None:
    ran({"accuracy": 0.9})
    with pytest.raises(UsageError, match="'acuracy'; did you mean accuracy") as caught:
        collect(ledger, metric="acuracy")
    assert caught.value.instead == ("acuracy", "accuracy")
    with pytest.raises(UsageError, match="'f1': there are accuracy"):
        collect(ledger, metric="f1")


def test_an_empty_ledger_is_refused(ledger: Ledger) -> None:
    with pytest.raises(UsageError, match="no runs yet"):
        collect(ledger)


def test_a_reference_to_nothing_is_refused(ledger: Ledger, ran: Ran) -> None:
    ran({"accuracy": 0.9})
    with pytest.raises(NotFound, match="no run 'nobody'"):
        collect(ledger, ["nobody"])


def test_chosen_runs_come_with_their_units_and_all_that_was_tried_on_those(ledger: Ledger, ran: Ran) -> None:
    mine = ran({"accuracy": 0.9}, unit="i-1")
    ran({"accuracy": 0.9}, unit="i-1")
    ran({"accuracy": 0.9}, unit="i-2")
    data = collect(ledger, [mine, mine])
    assert [run.run_id for run in data.runs] == [mine]
    assert [unit.instance_id for unit in data.units] == ["i-1"]
    assert document(data)["attempts"]["run"] == [0, -1]  # the second is of another run


def test_the_attempt_that_lost_its_unit_is_there_beside_the_one_that_worked(ledger: Ledger, ran: Ran) -> None:
    at = ledger.unit("i-1").created_at + timedelta(minutes=1)
    ledger.begin_run(RunRecord("r-again", "again", "train.py", RunState.QUEUED, at), "i-1", at)
    ledger.requeue_run("r-again", reason=EndReason.INTERRUPTED, detail="taken back")
    ledger.begin_attempt("r-again", "i-2", at + timedelta(minutes=2))
    tries = document(collect(ledger, ["r-again"]))["attempts"]
    assert tries["number"] == [1, 2]
    assert [tries["state"]["words"][at] for at in tries["state"]["at"]] == ["lost", "shipping"]
    assert tries["end"][1] is None


def test_more_runs_than_there_is_room_for_leave_the_oldest_out(ledger: Ledger, ran: Ran) -> None:
    ids = [ran({"accuracy": 0.9}) for _ in range(4)]
    data = collect(ledger, max_runs=3)
    assert [run.run_id for run in data.runs] == ids[:0:-1]
    assert data.cut
    assert not collect(ledger, max_runs=4).cut


def test_where_logs_do_not_all_fit_what_failed_comes_first_and_then_the_best(ledger: Ledger, ran: Ran) -> None:
    log = {"stdout.log": b"x" * 1000}
    for score in (0.1, 0.9, 0.5):
        ran({"accuracy": score}, logs=log)
    ran(detail="it broke", logs=log)
    wanted = collect(ledger).tails
    assert list(wanted) == ["r-0003", "r-0001", "r-0002", "r-0000"]
    in_that_order = [ledger.run(run_id) for run_id in wanted]
    assert list(log_tails(ledger.artifacts, in_that_order, room=1500)) == ["r-0003", "r-0001"]


def test_a_log_that_is_damaged_says_so_and_the_report_is_made(ledger: Ledger, ran: Ran, tmp_path: Path) -> None:
    run_id = ran({"accuracy": 0.9}, logs={"stdout.log": b"hello", "stderr.log": b"intact"})
    (log,) = [each for each in ledger.run(run_id).artifacts if each.path == "stdout.log"]
    place = ledger.artifacts.path(log.sha256)
    place.chmod(0o600)
    place.write_bytes(b"other")
    tails = collect(ledger).tails[run_id]
    assert "is damaged" in tails["stdout"]
    assert tails["stderr"] == "intact"
